"""Small samples of each data set in its official form, rendered from the procedural world.

They allow testing readers, checks, conversions and recipes before obtaining the data set.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from segdistill.config import UserError, choose
from segdistill.data.catalog import DatasetRecord
from segdistill.data.catalog.boxes import VOC2007_BOXES, VOC2012_BOXES
from segdistill.data.catalog.driving import ACDC, BDD100K, CITYSCAPES, GTAV, MAPILLARY, SYNTHIA, URBANSYN
from segdistill.data.catalog.others import (
    ADE20K,
    CAMVID_RECORD,
    ENDOVIS18,
    IMAGENET,
    POTSDAM_RGB,
    VAIHINGEN_IRRG,
    VOC2012,
)
from segdistill.data.catalog.things import ADE20K_INSTANCES, CITYSCAPES_INSTANCES, COCO_INSTANCES
from segdistill.data.sample import boxes, driving, others, own, things
from segdistill.data.sample.scenes import Codec, Member, Scenes
from segdistill.files import write_atomic, write_bytes, write_json

__all__ = ["SAMPLES", "Kind", "Layout", "write_sample"]

MARK = ".segdistill-sample.json"
SMALLEST, LARGEST = 16, 4000


@dataclass(frozen=True)
class Archive:
    """An official archive, a zip or tar file: it contains the files of folder ``of`` in a folder ``inside``."""

    name: str
    of: str = ""
    inside: str = ""


@dataclass(frozen=True)
class Layout:
    """One form of a data set: the function that yields its files, and the official archives that contain them."""

    members: Callable[[Scenes, Codec], Iterator[Member]]
    title: str = "official"  # of the record's layout, or of its raw layout
    archives: tuple[Archive, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A data set: its record, its layouts (the first is the default), the size of its images."""

    record: DatasetRecord
    layouts: Mapping[str, Layout]
    size: tuple[int, int] = (128, 256)
    varied: bool = False
    under: str = ""  # folders between the record's own and the files
    own: str | None = None  # the folder of the user's own data set, which has no record

    @property
    def folder(self) -> str:
        """Its folder in ``out``."""
        return self.own or self.record.folders[0]

    def codec(self, name: str, layout: Layout) -> Codec:
        """The conversion of the world's labels to those of ``layout``."""
        encodings = {one.title: one.encoding for one in (*self.record.raw, *self.record.layouts)}
        return Codec(name, self.record, encodings[layout.title])


def write_sample(
    name: str,
    out: Path,
    *,
    layout: str | None = None,
    images: int = 2,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    zipped: bool = False,
) -> tuple[Path, int]:
    """Write ``images`` images per split of data set ``name`` into its folder in ``out``: (folder, number of files).

    The same arguments write the same bytes. Folders with other content are refused.
    """
    kind = choose("sample", name, SAMPLES)
    layout = layout or next(iter(kind.layouts))
    form = choose(f"layout of {name}", layout, kind.layouts)
    if zipped and not form.archives:
        with_archives = [f"{n} ({k})" for n, one in SAMPLES.items() for k, f in one.layouts.items() if f.archives]
        raise UserError(
            f"layout {layout} of {name} has no archives; leave --zip out or take {', '.join(with_archives)}"
        )
    scenes = Scenes(images, size or kind.size, seed, kind.varied)
    if not all(SMALLEST <= side <= LARGEST for side in scenes.size):
        raise UserError(f"size is height and width, each from {SMALLEST} to {LARGEST} pixels, got {scenes.size}")
    folder = out / kind.folder
    facts = {"sample": name, "layout": layout, "images": images, "size": list(scenes.size), "seed": seed, "zip": zipped}
    _claim(folder, facts)
    members = partial(form.members, scenes, kind.codec(name, form))
    if not zipped:
        return folder, _write_files(folder / kind.under, members())
    for archive in form.archives:
        write_atomic(folder / archive.name, partial(_write_archive, archive, members()))
    return folder, len(form.archives)


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Mark ``folder`` as a sample with these ``facts``; refuse any other folder."""
    mark = folder / MARK
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    if not mark.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and not a sample; choose another --out")
        write_json(mark, facts)
        return
    try:
        same = json.loads(mark.read_text(encoding="utf-8")) == facts
    except ValueError:
        raise UserError(f"{mark} is damaged; delete {folder} or choose another --out") from None
    if not same:
        raise UserError(f"{folder} contains a sample with other settings; delete it or choose another --out")


def _write_files(folder: Path, members: Iterable[Member]) -> int:
    count = 0
    for count, (path, data) in enumerate(members, start=1):  # noqa: B007
        write_bytes(folder / path, data)
    return count


def _write_archive(archive: Archive, members: Iterable[Member], file: IO[bytes]) -> None:
    """The members of ``archive``, with the format's earliest date, so that the bytes are always the same."""
    inside = ((archive.inside + path.removeprefix(archive.of), data) for path, data in members
              if path.startswith(archive.of))  # fmt: skip
    if archive.name.endswith(".tar"):
        with tarfile.open(fileobj=file, mode="w") as target:
            for path, data in inside:
                header = tarfile.TarInfo(path)
                header.size = len(data)
                target.addfile(header, io.BytesIO(data))
        return
    with zipfile.ZipFile(file, "w") as target:
        for path, data in inside:
            target.writestr(zipfile.ZipInfo(path), data)


_CITYSCAPES = (Archive("leftImg8bit_trainvaltest.zip", "leftImg8bit/", "leftImg8bit/"),
               Archive("gtFine_trainvaltest.zip", "gtFine/", "gtFine/"))  # fmt: skip
_TILES = ("2_Ortho_RGB", "3_Ortho_IRRG", "5_Labels_for_participants_no_Boundary")

SAMPLES: dict[str, Kind] = {
    "gtav": Kind(GTAV, {"official": Layout(driving.gtav)}),
    "synthia": Kind(SYNTHIA, {"official": Layout(driving.synthia)}, under="RAND_CITYSCAPES"),
    "urbansyn": Kind(URBANSYN, {"official": Layout(driving.urbansyn)}),
    "cityscapes": Kind(
        CITYSCAPES,
        {
            "official": Layout(partial(driving.cityscapes, train_ids=False), archives=_CITYSCAPES),
            "trainids": Layout(partial(driving.cityscapes, train_ids=True)),
        },
    ),
    "bdd100k": Kind(
        BDD100K,
        {
            "10k": Layout(
                driving.bdd100k,
                "images/10k",
                (
                    Archive("bdd100k_images_10k.zip", "images/", "bdd100k/images/"),
                    Archive("bdd100k_sem_seg_labels_trainval.zip", "labels/", "bdd100k/labels/"),
                ),
            ),
            "seg": Layout(driving.bdd100k_seg, "seg (first release)", (Archive("bdd100k_seg.zip", inside="bdd100k/"),)),
        },
    ),
    "mapillary": Kind(
        MAPILLARY,
        {
            "v1.2": Layout(
                partial(driving.mapillary, inner="", config="config.json"),
                "v1.2 archive",
                (Archive("mapillary-vistas-dataset_public_v1.2.zip"),),
            ),
            "v2.0": Layout(
                partial(driving.mapillary, inner="v1.2/", config="config_v1.2.json"),
                "v2.0 archive",
                (Archive("mapillary-vistas-dataset_public_v2.0.zip"),),
            ),
        },
        varied=True,
    ),
    "acdc": Kind(
        ACDC,
        {
            "official": Layout(
                driving.acdc,
                "labelIds",  # both forms of labels are written
                (
                    Archive("rgb_anon_trainvaltest.zip", "rgb_anon/", "rgb_anon/"),
                    Archive("gt_trainval.zip", "gt/", "gt/"),
                ),
            )
        },
    ),
    "potsdam": Kind(
        POTSDAM_RGB,
        {
            "clips": Layout(others.potsdam_clips, "clips"),
            "tiles": Layout(
                others.potsdam_tiles, _TILES[-1], tuple(Archive(f"{n}.zip", f"{n}/", f"{n}/") for n in _TILES)
            ),
        },
        size=(600, 600),
    ),
    "vaihingen": Kind(
        VAIHINGEN_IRRG,
        {
            "clips": Layout(others.vaihingen_clips, "clips"),
            "tiles": Layout(
                others.vaihingen_tiles, archives=tuple(Archive(f"{n}.zip", f"{n}/") for n in others.VAIHINGEN)
            ),
        },
        size=(600, 600),
    ),
    "endovis18": Kind(
        ENDOVIS18,
        {
            "flat": Layout(others.endovis18, "flat"),
            "official": Layout(
                others.endovis18_official,
                "official (miccai_challenge_2018_release_N)",
                tuple(Archive(f"{n}.zip", f"{n}/", f"{n}/") for n in others.RELEASES),
            ),
        },
    ),
    "voc2012": Kind(
        VOC2012,
        {
            "official": Layout(
                others.voc2012, archives=(Archive("VOCtrainval_11-May-2012.tar", inside="VOCdevkit/VOC2012/"),)
            )
        },
        varied=True,
    ),
    "ade20k": Kind(
        ADE20K,
        {
            "official": Layout(
                others.ade20k, archives=(Archive("ADEChallengeData2016.zip", inside="ADEChallengeData2016/"),)
            )
        },
        varied=True,
    ),
    "camvid": Kind(
        CAMVID_RECORD,
        {"colours": Layout(driving.camvid, "colours"), "annot": Layout(driving.camvid_annot, "annot")},
    ),
    "imagenet": Kind(IMAGENET, {"official": Layout(others.imagenet)}, varied=True),
    "cityscapes_instances": Kind(
        CITYSCAPES_INSTANCES,
        {
            "instanceIds": Layout(partial(things.cityscapes, polygons=False), "instanceIds", _CITYSCAPES),
            "polygons": Layout(partial(things.cityscapes, polygons=True), "polygons", _CITYSCAPES),
        },
    ),
    "ade20k_instances": Kind(ADE20K_INSTANCES, {"official": Layout(things.ade20k)}, varied=True),
    "coco_instances": Kind(
        COCO_INSTANCES,
        {
            "official": Layout(
                things.coco,
                archives=(
                    Archive("train2017.zip", "train2017/", "train2017/"),
                    Archive("val2017.zip", "val2017/", "val2017/"),
                    Archive("annotations_trainval2017.zip", "annotations/", "annotations/"),
                ),
            )
        },
        varied=True,
    ),
    "voc2007_boxes": Kind(VOC2007_BOXES, {"official": Layout(partial(boxes.voc, year=2007))}, varied=True),
    "voc2012_boxes": Kind(VOC2012_BOXES, {"official": Layout(partial(boxes.voc, year=2012))}, varied=True),
    "custom": Kind(
        CITYSCAPES,
        {"dataset.yaml": Layout(own.custom), "objects": Layout(partial(own.custom, objects=True))},
        own="custom",
    ),
    "coco": Kind(
        CITYSCAPES,
        {"instances": Layout(own.coco), "objects": Layout(partial(own.coco, objects=True))},
        varied=True,
        own="coco",
    ),
}
