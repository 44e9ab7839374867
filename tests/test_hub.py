"""A packed file goes to a hub and comes back by its name, over HTTP, with the hub's own client: a stand-in answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from unittest.mock import create_autospec

import pytest
from huggingface_hub import HfApi

from fake_hub import COMMIT, hub
from segdistill.config import UserError
from segdistill.sharing.hub import push
from segdistill.sharing.pack import card_path, pack

PUSH = "from segdistill.cli import main; import sys; sys.argv = ['segdistill', *sys.argv[1:]]; main()"
LOAD = """
import sys, numpy, segdistill
image = numpy.random.default_rng(0).integers(0, 256, (32, 64, 3)).astype(numpy.uint8)
there, here = segdistill.load(sys.argv[1], device="cpu"), segdistill.load(sys.argv[2], device="cpu")
assert (there.predict(image).confidence == here.predict(image).confidence).all()
assert there.digest == here.digest
assert not {"lightning", "transformers"} & set(sys.modules)  # seconds of imports
try:
    segdistill.load("hf:me/none")
except segdistill.UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory, finished):
    return pack(finished, tmp_path_factory.mktemp("packed") / "tiny.safetensors")[0]


def python(code, *arguments, url, home):
    """Run ``code`` in a process whose hub is at ``url``."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": "hf_of_nobody", "HF_HUB_DISABLE_XET": "1",
                    "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True,
                          text=True, check=False, timeout=300)  # fmt: skip


def test_a_pushed_file_loads_by_its_name(packed, tmp_path):
    with hub() as server:
        pushed = python(PUSH, "push", packed, "me/small", url=server.url, home=tmp_path)
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.strip() == f"{server.url}/me/small/commit/{COMMIT}"
        assert server.private == {"me/small": True}
        assert server.messages == ["segdistill: tiny"]
        assert server.files["me/small"] == {
            "model.safetensors": packed.read_bytes(), "README.md": card_path(packed).read_bytes()}  # fmt: skip
        loaded = python(LOAD, "hf:me/small", packed, url=server.url, home=tmp_path)
        assert loaded.returncode == 0, loaded.stderr
        assert loaded.stdout.startswith("hf:me/none: the hub has no such repository, or it is private")
        assert len(loaded.stdout.splitlines()) == 1
    for url, why in ((server.url, "a hub that is gone"), ("http://127.0.0.1:9", "no network")):
        refused = python(PUSH, "push", packed, "me/small", url=url, home=tmp_path)
        assert refused.returncode == 2, why
        assert refused.stderr.startswith("segdistill: cannot upload to me/small ("), refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_push_is_one_commit_of_file_and_card(packed):
    api = create_autospec(HfApi, instance=True)  # refuses calls that the real one would refuse
    api.create_commit.return_value.commit_url = "https://huggingface.co/me/small/commit/1"
    assert push(packed, "me/small", api=api).endswith("/commit/1")
    api.create_repo.assert_called_once_with("me/small", private=True, exist_ok=True)
    name, additions = api.create_commit.call_args.args
    assert name == "me/small"
    assert {each.path_in_repo: each.path_or_fileobj for each in additions} == {
        "model.safetensors": str(packed), "README.md": str(card_path(packed))}  # fmt: skip


def test_push_says_in_one_line_why_it_cannot(packed, finished, tmp_path):
    api = create_autospec(HfApi, instance=True)
    api.create_repo.side_effect = ConnectionError("no route to host")
    with pytest.raises(UserError, match=r"cannot upload to me/small .no route to host.: run 'hf auth login'"):
        push(packed, "me/small", api=api)
    with pytest.raises(UserError, match="'small' is no name of a hub repository"):
        push(packed, "small", api=api)
    shutil.copy(packed, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"has no model card bare.md"):
        push(tmp_path / "bare.safetensors", "me/small", api=api)
    shutil.copy(card_path(packed), tmp_path / "bare.md")
    (tmp_path / "bare.safetensors").write_bytes(pack(finished, tmp_path / "half", half=True)[0].read_bytes())
    with pytest.raises(UserError, match=r"bare.md is the model card of another file than bare.safetensors; pack"):
        push(tmp_path / "bare.safetensors", "me/small", api=api)
    api.create_commit.assert_not_called()
