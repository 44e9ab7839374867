"""The open-vocabulary teacher in recipes: adapted, used for pseudo-labels, exactly resumed, checked before training."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

import tiny_vocab
from segdistill.config import UserError
from segdistill.data.dataset import DataSelection
from segdistill.data.pseudo import read_pseudo
from segdistill.data.pseudo_labelled import Mixed
from segdistill.data.rendered import WorldSource
from segdistill.files import sha256
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.runs.folder import fingerprints
from segdistill.runs.plan import make_plan
from segdistill.sharing.licences import chain
from segdistill.train import loop

RECIPE = """
name: open
task: instance
data: {source: world, classes: things8, size: [32, 64], least_pixels: 4}
student: {encoder: {name: world_student, weights: "shipped:world_student_local"},
          head: {type: masked_dpt, width: 64, heads: 2, queries: 6, decoder_layers: 1, decoder_feedforward: 16,
                 neck_channels: [8, 8, 8, 8], points: 32}}
stages:
  - {type: open_vocabulary, name: adapt_labels, data: &few {domains: [game], images: 6, fraction: 1/3}, batch: 2,
     model: &teacher {detector: DETECTOR, segmenter: SEGMENTER, threshold: 0.02, suppress: 1.0, licence: MIT},
     steps: 3, segmenter: {steps: 4, most: 4}}
  - {type: pseudo_label, name: first_labels, data: &many {domains: [game], images: 6, fraction: 1/3, rest: true},
     open_vocabulary: *teacher, adapted: adapt_labels, score: 0, least: 1, sheet: 2}
  - {type: open_vocabulary, name: adapt, data: *few, batch: 2, model: *teacher, steps: 2, segmenter: null,
     unlabelled: {data: *many, labels: first_labels, score: 0}}
  - {type: semi, name: transfer, data: *few, batch: 2, steps: 2,
     unlabelled: {data: *many, batch: 2, labels: first_labels, score: 0}}
log_every: 1
checkpoint_every: 2
accelerator: cpu
precision: 32-true
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("networks")
    return {"DETECTOR": tiny_vocab.detector(top / "d"), "SEGMENTER": tiny_vocab.segmenter(top / "s")}


@pytest.fixture(autouse=True)
def _cache(image_cache):
    """All tests share the rendered images."""


def recipe(tmp_path, folders, *changes, stages=4):
    text = RECIPE
    for name, folder in folders.items():
        text = text.replace(name, str(folder))
    head, _, rest = text.partition("stages:\n")
    listed, _, tail = rest.partition("log_every")
    kept = "  - {type".join(listed.split("  - {type")[: stages + 1])
    path = tmp_path / "open.yaml"
    path.write_text(f"{head}stages:\n{kept}log_every{tail}")
    return load(path, changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folders, image_cache):
    out = tmp_path_factory.mktemp("open") / "run"
    run(recipe(out.parent, folders), out)
    return out


def stage(folder, name):
    return next((folder / "stages").glob(f"[0-9]*-{name}"))


def lines(folder, label):
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(entry["step"], entry["terms"]) for entry in entries if entry["stage"] == label]


def weights(folder):
    return load_file(folder / "model.safetensors")


def moved(one, other):
    """Names of the tensors that differ."""
    return {name for name in one if not torch.allclose(one[name], other[name], rtol=0, atol=1e-12)}


def test_each_part_is_trained_for_its_own_steps(finished):
    assert [step for step, _ in lines(finished, "00-adapt_labels-detector")] == [1, 2, 3]
    assert [step for step, _ in lines(finished, "00-adapt_labels-segmenter")] == [1, 2, 3, 4]
    assert set(lines(finished, "00-adapt_labels-detector")[0][1]) == {"class", "box", "giou"}
    assert set(lines(finished, "00-adapt_labels-segmenter")[0][1]) == {"focal", "dice"}
    assert not lines(finished, "02-adapt-segmenter")


def test_the_folders_hold_adapted_networks_and_the_manifest_their_digests(finished, folders):
    place = stage(finished, "adapt_labels")
    manifest = json.loads((place / "manifest.json").read_text())
    below = {
        path.relative_to(place).as_posix() for part in ("detector", "segmenter") for path in (place / part).rglob("*")
    }
    assert set(manifest["files"]) == below
    assert manifest["files"]["detector/model.safetensors"] == sha256(place / "detector/model.safetensors")
    assert json.loads((place / "detector/licence.json").read_text())["licence"] == "MIT"
    changed = moved(weights(folders["DETECTOR"]), weights(place / "detector"))
    assert any(name.startswith("model.decoder.") for name in changed)
    assert not any(name.startswith("model.text_backbone.") for name in changed)
    changed = moved(weights(folders["SEGMENTER"]), weights(place / "segmenter"))
    assert {name.partition(".")[0] for name in changed} == {"mask_decoder", "prompt_encoder"}
    assert not (stage(finished, "adapt") / "segmenter").exists()
    assert not (place / "checkpoint").exists()


def test_a_changed_file_of_an_adapted_network_is_noticed(finished, folders, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = stage(tmp_path / "run", "adapt_labels") / "segmenter/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"segmenter/model.safetensors does not match the digest in its manifest"):
        run(recipe(tmp_path, folders), tmp_path / "run")


def test_the_second_adaptation_starts_from_the_start_weights(finished, folders, tmp_path):
    """With a learning rate of almost 0 a stage's result is its start."""
    changed = recipe(tmp_path, folders, "stages.adapt.detector={lr: 1.0e-30, weight_decay: 0}", stages=3)
    run(changed, tmp_path / "run", reuse=[finished])
    ours, start = weights(stage(tmp_path / "run", "adapt") / "detector"), weights(folders["DETECTOR"])
    assert not moved({name: value for name, value in start.items() if name in ours}, ours)
    assert moved(weights(stage(finished, "adapt") / "detector"), start)


@pytest.mark.parametrize("part", ["detector", "segmenter"])
def test_an_interrupted_adaptation_continues_in_its_part(finished, folders, tmp_path, monkeypatch, part):
    saved = loop.checkpoint.save

    def stop(folder, *args, **kwargs):
        saved(folder, *args, **kwargs)
        if folder.name == part:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path, folders, stages=1), tmp_path / "run")
    monkeypatch.undo()
    made = stage(tmp_path / "run", "adapt_labels") / "detector/model.safetensors"
    written = made.stat().st_mtime_ns if part == "segmenter" else None
    run(recipe(tmp_path, folders, stages=1), tmp_path / "run")
    assert written in (None, made.stat().st_mtime_ns)  # the finished part is not trained again
    for each in ("detector", "segmenter"):
        ours, whole = (stage(place, "adapt_labels") / each for place in (tmp_path / "run", finished))
        assert not moved(weights(ours), weights(whole))
        label = f"00-adapt_labels-{each}"
        assert lines(tmp_path / "run", label) == lines(finished, label)


def test_pseudo_labels_name_their_teacher_prompt_thresholds_and_counts(finished, folders):
    labels = read_pseudo(stage(finished, "first_labels") / "labels.json")
    assert len(labels) == 4
    assert labels.info["teacher"] == "d + s, adapted by adapt_labels"
    assert labels.info["licence"] == "MIT"
    assert labels.info["prompt"].startswith("person . rider . car")
    assert labels.info["thresholds"] == {
        "threshold": 0.02,
        "most": 100,
        "suppress": 1,
        "largest": 1,
        "score": 0,
        "pixels": 1,
    }
    counts = labels.info["counts"]
    assert {
        "boxes",
        "suppressed",
        "empty_masks",
        "images_without_boxes",
        "found",
        "hidden",
        "phrase: car",
    } <= counts.keys()
    assert counts["objects"] == counts["found"] == sum(len(labels.detections(image)) for image in labels) > 0
    assert (stage(finished, "first_labels") / "sheet.png").is_file()
    assert {line[1]["semi_class"] > 0 for line in lines(finished, "03-transfer")} == {True}


def unadapted(tmp_path, folders, *changes):
    """The recipe whose only stage predicts with the teacher as it comes."""
    teacher = f"{{detector: {folders['DETECTOR']}, segmenter: {folders['SEGMENTER']}}}"
    data = "{domains: [game], images: 2}"
    text = f"stages: [{{type: pseudo_label, name: labels, data: {data}, open_vocabulary: {teacher}}}]\n"
    path = tmp_path / "plain.yaml"
    path.write_text(RECIPE[: RECIPE.index("student:")] + text + RECIPE[RECIPE.index("log_every") :])
    return load(path, changes)


def test_classes_whose_words_never_match_are_warned_of_once(folders, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(unadapted(tmp_path, folders, "stages.labels.open_vocabulary.threshold=0.99"), tmp_path / "run")
    assert [line for line in caplog.messages if "'rider'" in line] == [
        "warning: 00-labels: no box matched the words of class 'rider' (rider): give it other words "
        "(prompt: {rider: ...}), or lower the threshold"
    ]
    assert len([line for line in caplog.messages if "no box matched" in line]) == 8
    labels = read_pseudo(stage(tmp_path / "run", "labels") / "labels.json")
    assert labels.info["counts"]["images_without_boxes"] == 2
    assert not any(len(labels.detections(image)) for image in labels)


def test_fingerprints_depend_on_the_weights(folders, tmp_path):
    own = {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}
    before = fingerprints(recipe(tmp_path, own))
    path = own["SEGMENTER"] / "model.safetensors"
    tensors = weights(own["SEGMENTER"])
    from safetensors.torch import save_file

    save_file(tensors | {"no_memory_embedding": tensors["no_memory_embedding"] + 1}, path, metadata={"format": "pt"})
    after = fingerprints(recipe(tmp_path, own))
    assert all(one != other for one, other in zip(before, after, strict=True))
    path.unlink()
    with pytest.raises(UserError, match=r"stage adapt_labels: segmenter: .* has no weights model\.safetensors"):
        run(recipe(tmp_path, own), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_plans_every_stage(folders, tmp_path):
    plan = make_plan(recipe(tmp_path, folders))
    assert [each.kind for each in plan.stages] == ["open_vocabulary", "pseudo_label", "open_vocabulary", "semi"]
    assert [each.images for each in plan.stages] == [2, 4, 6, 6]
    assert all(each.flops > 0 and each.seconds > 0 and each.memory > 0 for each in plan.stages)
    first, labels, second, _ = plan.stages
    assert first.trained > second.trained > 0 == labels.trained
    assert labels.frozen > 0


def test_the_teachers_licence_is_in_the_chain(folders, tmp_path):
    links = [(link.part, link.name, link.licence) for link in chain(recipe(tmp_path, folders))]
    assert [link for link in links if link[2] == "MIT"] == [("teacher", "d", "MIT"), ("teacher", "s", "MIT")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.first_labels.adapted=none", "stage first_labels: no earlier stage is called 'none'; allowed: adapt_l"),
        ("stages.adapt.unlabelled.labels=adapt_labels", "stage adapt_labels is of type open_vocabulary; name a pseudo"),
        ("stages.transfer.unlabelled.labels=adapt", "stage adapt is of type open_vocabulary; name a pseudo_label"),
        ("stages.adapt.detector.milestones=[2]", "milestones.0: Input should be less than 1, got 2"),
        ("stages.first_labels.open_vocabulary=null", "a stage adapts an open-vocabulary teacher; add open_vocabulary"),
        ("stages.first_labels.open_vocabulary.detector=x", "adapt_labels adapts other networks; name the same ones"),
        ("stages.adapt.unlabelled.data.images=9", "stage adapt: stage first_labels labels"),
        ("stages.adapt.detector=null", "detector and segmenter are null: nothing is adapted"),
        ("stages.adapt.model.segmenter=null", "SAM 3 is used as it is"),
        ("stages.adapt.hands_over=[head]", "hands_over: the head is not trained here"),
        ("task=semantic", "an open_vocabulary stage learns objects; the task 'semantic' has none"),
        ("stages.adapt.model.detector=nowhere", "stage adapt: detector: there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(tmp_path, folders, change, message):
    with pytest.raises(UserError, match=message) as error:
        run(recipe(tmp_path, folders, change), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_images_of_two_data_sets_are_mixed():
    source = WorldSource(classes="things8", size=(32, 64))
    one, two = (source.open(DataSelection(domains=("game",), images=n, first=f)) for n, f in ((2, 0), (3, 5)))
    mixed = Mixed(one, two)
    assert (len(mixed), mixed.sizes, mixed.weights) == (5, (2, 3), ())
    assert list(mixed.listing()) == [*one.listing(), *two.listing()]
    assert [sample.name for sample in mixed] == [sample.name for part in (one, two) for sample in part]
    two.weights = (4.0,)
    assert Mixed(one, two).weights == (2, 3)
    with pytest.raises(UserError, match="cannot be mixed"):
        Mixed(one, WorldSource(size=(32, 64)).open(DataSelection(domains=("game",), images=1)))
