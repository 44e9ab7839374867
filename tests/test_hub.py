"""A packed file goes to a hub and comes back by its name, over HTTP, with the hub's own client: a stand-in answers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fake_hub import COMMIT, hub
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
