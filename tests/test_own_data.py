"""The commands of docs/own-data.md, one after the other, on a generated folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from segdistill.world import render

PAGE = Path(__file__).parents[1] / "docs/own-data.md"
SMALL = {  # what makes them run in seconds and without a network
    "init": ["--teacher", "world_teacher", "--student", "world_student"],
    "export": ["--images", "1"],
    "probe": ["--images", "5"],
    "run": [f"stages.{name}.{change}" for name in ("teacher", "task")
            for change in ("steps=2", "batch=2")],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``photos`` with labels, ``new`` without."""
    for number in range(10):
        scene = render("game", "train", number, size=(32, 64))
        for kind, pixels in (("images", scene.image), ("labels", (scene.label % 4).astype("uint8"))):
            path = tmp_path / "photos" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "new").mkdir()
    for number in range(2):
        Image.fromarray(render("dusk", "val", number, size=(32, 64)).image).save(tmp_path / f"new/{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_from_a_folder_to_an_onnx_file(folder, call):
    block = re.search(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    commands = [shlex.split(line.removeprefix("$ ")) for line in block.group(1).splitlines()]
    assert len(commands) == 6
    for name, *words in (command[1:] for command in commands):
        status, out, err = call(name, *words, *SMALL.get(name, []))
        no_estimate = name == "estimate" and "no estimate" in out  # two steps of training may give no line
        assert status == 0 or no_estimate, (name, out, err)
    assert (folder / "worst.png").is_file()
    graph = onnxruntime.InferenceSession(folder / "photos.onnx", providers=["CPUExecutionProvider"])
    pixels = np.asarray(Image.open(folder / "new/0.png"))
    form = graph.get_inputs()[0].shape
    outputs = graph.run(
        None, {graph.get_inputs()[0].name: (pixels if form[-1] == 3 else pixels.transpose(2, 0, 1))[None]}
    )
    assert outputs[0].shape[-2:] == pixels.shape[:2]
    assert set(np.unique(outputs[0])) <= set(range(4))
