"""Hub names without a network: what is in the cache is used, for the rest one line says where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from official import VIT, install, load
from segdistill.config import UserError
from segdistill.weights import hub, weights_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache: Path, repository: str, file: str = "model.safetensors") -> Path:
    """A file as the hub's client caches it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / COMMIT / file
    path.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    model = VIT(img_size=56, patch_size=14, num_classes=0, init_values=1e-5)
    if file.endswith(".safetensors"):
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("source", "repository", "file"),
    [
        ("timm:vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors"),
        ("timm:vit_small_patch14_dinov2", "timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors"),
        ("hf:somebody/tiny", "somebody/tiny", "model.safetensors"),
        (f"hf:somebody/tiny@{COMMIT}", "somebody/tiny", "pytorch_model.bin"),
    ],
)
def test_cached_files_are_used(cache, monkeypatch, source, repository, file):
    install(monkeypatch)
    path = put(cache, repository, file)
    assert weights_path(source, "any") == path
    encoder = load("tiny_dinov2", source)
    assert encoder.loaded.missing == ["mask_token"]
    assert encoder.loaded.source == str(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:vit_small_patch14_dinov2", "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m and give its"),
        ("timm:vit_small_patch14_dinov2.lvd142", "did you mean 'vit_small_patch14_dinov2.lvd142m'"),
        ("timm:vit_smal_patch14_dinov2.lvd142m", "timm has no weights.*did you mean 'vit_small_patch14_dinov2"),
        ("timm:", "timm has no weights ''"),
        ("timm:gcvit_tiny", r"is not on the Hugging Face hub: download https://.*\.pth and give its path"),
        (
            "hf:somebody/tiny",
            "neither model.safetensors nor pytorch_model.bin could be downloaded or found in",
        ),
        ("hf:some body", "is not a valid hub repository name: give hf:<owner>/<name>"),
        ("~no-such-user/x", "'~no-such-user/x' begins with the home folder of an unknown user: write the path out"),
    ],
)
def test_without_a_network_one_line_says_where_to_put_the_file(cache, source, message):
    with pytest.raises(UserError, match=message) as error:
        weights_path(source, "any")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "line"), [("timed out\nmore", "timed out"), ("", "Exception")])
def test_an_error_of_the_hubs_client_is_one_line(monkeypatch, text, line):
    """httpx's are plain exceptions, some without text."""

    def fail(*_, **__):
        raise Exception(text)

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=rf"^hf:a/b cannot be fetched \({line}\): fetch it from https://hugg"):
        weights_path("hf:a/b", "any")


def test_the_line_names_the_cache(cache):
    with pytest.raises(UserError, match=f"to {cache}$"):
        weights_path("hf:somebody/tiny", "any")
