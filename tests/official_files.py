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
