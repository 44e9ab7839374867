"""A small instance of every data set that the shipped recipes read, in its official form, as a session fixture.

And what makes such a recipe small.
"""

from __future__ import annotations

import pytest

NEEDED = {  # sample -> the layout that recipes read; None: its first one
    "gtav": None, "synthia": None, "urbansyn": None, "cityscapes": None, "bdd100k": None, "mapillary": None,
    "acdc": None, "potsdam": "clips", "vaihingen": "clips", "endovis18": None, "imagenet": None, "voc2007_boxes": None,
    "voc2012_boxes": None,
}  # fmt: skip

# Encoders and pixels of the world in place of the papers': what runs is the recipe's stages on the official files.
NARROW = [
    "accelerator=cpu", "workers=0", "data.size=[32,64]", "teacher.encoder={name: world_teacher}",
    "student.encoder={name: world_student}", "teacher.head={type: semfpn, width: 8}",
    "student.head={type: semfpn, width: 8}", "evaluate.resize=[32,64]",
    "evaluate.window={size: [32,32], stride: [32,32]}", "evaluate.pictures=1", "evaluate.images=1",
    "log_every=1", "checkpoint_every=2",
]  # fmt: skip


@pytest.fixture(scope="session")
def facades(tmp_path_factory):
    """A folder with ``facades``, a small LabelMeFacade by place and photographs as benchmarks/real_pair/data.py links
    them: the working folder of the recipes ``real_*``.
    """
    import os
    import subprocess
    import sys
    from pathlib import Path

    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("facades")
    rng = np.random.default_rng(0)
    for part in ("images", "labels", "photographs"):
        (root / "raw" / part).mkdir(parents=True)
    for place in ("boston", "madrid", "mallorca", "barcelona", "barcelona_night", "london"):
        for number in range(8):
            name = f"{place}_{number}"
            pixels = rng.integers(0, 255, (48, 96, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "raw/images" / f"{name}.jpg")
            classes = np.array([0, 1, 5, 255], np.uint8)[(np.indices((48, 96))[1] // 12 + number) % 4]
            Image.fromarray(classes).save(root / "raw/labels" / f"{name}.png")
    for number in range(2000):  # as many as the recipes read
        os.link(root / f"raw/images/boston_{number % 8}.jpg", root / f"raw/photographs/{number:04d}.jpg")
    script = Path(__file__).parents[1] / "benchmarks/real_pair/data.py"
    folders = (root / "raw", root / "facades", "--proxy", root / "raw/photographs")
    subprocess.run([sys.executable, script, *folders], check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def official_files(tmp_path_factory):
    """The root of the data sets, which SEGDISTILL_DATA names meanwhile."""
    from segdistill.data.prepare import prepare
    from segdistill.data.sample import write_sample

    root = tmp_path_factory.mktemp("datasets")
    for name, layout in NEEDED.items():
        write_sample(name, root, layout=layout, images=4, size=(32, 64))
    raw, _ = write_sample("mapillary", tmp_path_factory.mktemp("raw"), images=2, size=(64, 128))
    prepare("mapillary_half", raw, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGDISTILL_DATA", str(root))
        yield root
