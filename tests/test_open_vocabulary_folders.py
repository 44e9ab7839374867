"""Folders of the open-vocabulary teacher: damaged ones, names of the hub, licences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny_vocab
from segdistill.config import UserError, parse
from segdistill.models import open_vocabulary_parts as parts
from segdistill.models.open_vocabulary import OpenVocabulary, OpenVocabularyConfig
from tiny_vocab import concepts_config, config, images

CLASSES = ("person", "train", "traffic light")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_vocab.networks(tmp_path_factory.mktemp("networks"))


def copied(folders: dict[str, Path], kind: str, to: Path) -> Path:
    return Path(shutil.copytree(folders[kind], to / "copy"))


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lack(path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    save_file({key: value for key, value in state.items() if key != name}, path, metadata={"format": "pt"})


DAMAGE = {
    "no folder": ("segmenter", shutil.rmtree, "there is no folder"),
    "no config": ("segmenter", lambda f: (f / "config.json").unlink(), "no config.json"),
    "config": ("segmenter", lambda f: (f / "config.json").write_text("{"), "does not say which network"),
    "other": ("segmenter", lambda f: rewrite(f / "config.json", model_type="bert"), "type 'bert'; allowed: sam2"),
    "no weights": ("segmenter", lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "no processor": ("segmenter", lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    "processor": ("segmenter", lambda f: (f / "preprocessor_config.json").write_text("{"), "cannot be loaded"),
    "torn": ("segmenter", lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot be loaded as Sam2Model"),
    "lacks": ("segmenter", lambda f: lack(f / "model.safetensors", "no_memory_embedding"), "lacks 1 weights"),
    "no tokenizer": (
        "mm-grounding-dino",
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "vocab.txt")],
        "no tokenizer.json or vocab.txt",
    ),
    "size": ("mm-grounding-dino", lambda f: rewrite(f / "config.json", d_model=64), "cannot be loaded as MM"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_folders(folders, tmp_path, damage) -> None:
    kind, change, message = DAMAGE[damage]
    folder = copied(folders, kind, tmp_path)
    change(folder)
    with pytest.raises(UserError) as raised:
        OpenVocabulary(config(folders | {kind: folder}), CLASSES)
    assert message in str(raised.value)


def test_a_tokenizer_of_another_network(folders, tmp_path) -> None:
    folder = copied(folders, "mm-grounding-dino", tmp_path)
    text = (folder / "tokenizer.json").read_text()
    values = json.loads(text)
    vocab = values["model"]["vocab"]
    vocab["."], vocab["[unused5]"] = vocab["[unused5]"], vocab["."]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="the tokenizer that belongs to the detector"):
        OpenVocabulary(config(folders | {"mm-grounding-dino": folder}), CLASSES)


def test_names_of_the_hub_without_network(folders) -> None:
    with pytest.raises(UserError, match="is not on this machine and cannot be fetched"):
        OpenVocabulary(config(folders, segmenter="hf:nobody/nothing"), CLASSES)
    with pytest.raises(UserError, match="not a valid hub repository name"):
        OpenVocabulary(config(folders, segmenter="hf:a/b/c"), CLASSES)


def test_names_in_the_cache_of_the_hub(folders, monkeypatch, tmp_path) -> None:
    """In the layout of the hub's client, with a branch and another revision."""
    place = tmp_path / "models--facebook--sam2.1-tiny"
    for commit, branch in (("a" * 40, "main"), ("b" * 40, "other")):
        shutil.copytree(folders["segmenter"], place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / branch).write_text(commit)
    (place / "snapshots" / ("b" * 40) / "config.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "hf:facebook/sam2.1-tiny"
    teacher = OpenVocabulary(config(folders, segmenter=name, licence=None), CLASSES)
    assert teacher.licence == "unknown: that of mm-grounding-dino and Apache-2.0"
    assert teacher.origin().teacher == "mm-grounding-dino + facebook/sam2.1-tiny"
    with pytest.raises(UserError, match=r"sam2\.1-tiny@other has no config\.json"):
        OpenVocabulary(config(folders, segmenter=f"{name}@other"), CLASSES)


def test_a_video_checkpoint_is_a_segmenter(folders, tmp_path) -> None:
    folder = copied(folders, "segmenter", tmp_path)
    rewrite(folder / "config.json", model_type="sam2_video")
    batch = images(tmp_path, (32, 48))
    first = OpenVocabulary(config(folders), CLASSES).predict(batch)
    second = OpenVocabulary(config(folders | {"segmenter": folder}), CLASSES).predict(batch)
    assert [each.masks for each in first] == [each.masks for each in second]


def test_sam_3_needs_its_licence_accepted(folders) -> None:
    for settings in (
        concepts_config(folders, licence_accepted=""),
        parse(OpenVocabularyConfig, {"detector": "hf:facebook/sam3"}),
    ):
        with pytest.raises(UserError, match="SAM 3 carries the SAM License"):
            OpenVocabulary(settings, CLASSES)
    with pytest.raises(UserError, match="segmenter: null"):
        OpenVocabulary(concepts_config(folders, segmenter=str(folders["segmenter"])), CLASSES)
    teacher = OpenVocabulary(concepts_config(folders), CLASSES)
    assert teacher.licence == "SAM License"
    with pytest.raises(UserError, match="used as it is"):
        teacher.tune("detector")


@pytest.mark.parametrize(
    ("detector", "accepted", "expected"),
    [
        ("hf:facebook/sam3", "", "SAM License"),
        ("mirrors/sam3", "SAM License", "SAM License"),
        ("hf:IDEA-Research/grounding-dino-tiny", "", "Apache-2.0"),
        ("hf:me/mine", "", "MIT"),
    ],
)
def test_the_setting_licence_replaces_no_known_licence(detector, accepted, expected) -> None:
    settings = OpenVocabularyConfig(detector=detector, segmenter=None, licence="MIT", licence_accepted=accepted)
    assert list(settings.licences().values()) == [expected]


def test_a_detector_needs_a_segmenter(folders) -> None:
    with pytest.raises(UserError, match="give a segmenter"):
        OpenVocabulary(config(folders, segmenter=None), CLASSES)


def test_licences(folders) -> None:
    standard = OpenVocabularyConfig()
    assert {parts.licence_of(str(each)) for each in (standard.detector, standard.segmenter)} == {"Apache-2.0"}
    assert parts.licence_of("hf:facebook/sam3") == "SAM License"
    assert parts.licence_of("hf:me/mine") == "unknown: that of me/mine"
    assert parts.licence_of("hf:me/mine", "MIT") == "MIT"
    teacher = OpenVocabulary(config(folders), CLASSES)
    assert teacher.licence == "unknown: that of mm-grounding-dino and unknown: that of segmenter"
