"""Street scenes in the forms of the driving data sets. Each function yields (path, contents)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segdistill.data.sample.pixels import jpeg, png, png_indexed, png_rgb16
from segdistill.data.sample.scenes import Codec, Member, Scenes, objects
from segdistill.world import Rendered

CONDITIONS = ("fog", "night", "rain", "snow")  # of ACDC, and domains of the world
MAPILLARY_NAMES = tuple(
    """Bird, Ground Animal, Curb, Fence, Guard Rail, Barrier, Wall, Bike Lane, Crosswalk - Plain, Curb Cut, Parking,
    Pedestrian Area, Rail Track, Road, Service Lane, Sidewalk, Bridge, Building, Tunnel, Person, Bicyclist,
    Motorcyclist, Other Rider, Lane Marking - Crosswalk, Lane Marking - General, Mountain, Sand, Sky, Snow, Terrain,
    Vegetation, Water, Banner, Bench, Bike Rack, Billboard, Catch Basin, CCTV Camera, Fire Hydrant, Junction Box,
    Mailbox, Manhole, Phone Booth, Pothole, Street Light, Pole, Traffic Sign Frame, Utility Pole, Traffic Light,
    Traffic Sign (Back), Traffic Sign (Front), Trash Can, Bicycle, Boat, Bus, Car, Caravan, Motorcycle, On Rails,
    Other Vehicle, Trailer, Truck, Wheeled Slow, Car Mount, Ego Vehicle, Unlabeled""".replace("\n    ", " ").split(", ")
)


def gtav(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """images/NNNNN.png, labels/NNNNN.png: palettised GTA ids. One split, numbered from 1."""
    for index, scene in scenes.of("game", "train"):
        yield f"images/{index + 1:05d}.png", png(scene.image)
        yield f"labels/{index + 1:05d}.png", png_indexed(codec.ids(scene.label, index), codec.palette)


def synthia(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """RGB/NNNNNNN.png; GT/LABELS: 16 bits, the class in the red channel, the instance in the green one.

    The authors' converter takes the last channel of an image in the order blue, green, red (spec D.1), which is red.
    """
    for index, scene in scenes.of("game", "train"):
        label = np.zeros((*scene.label.shape, 3), np.uint16)
        label[..., 0] = codec.ids(scene.label, index)
        label[..., 1] = scene.instance
        yield f"RGB/{index:07d}.png", png(scene.image)
        yield f"GT/LABELS/{index:07d}.png", png_rgb16(label)


def urbansyn(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """rgb/rgb_NNNN.png, ss/ss_NNNN.png: trainIds with 19 for ignored pixels. Numbered from 1."""
    for index, scene in scenes.of("game", "train"):
        yield f"rgb/rgb_{index + 1:04d}.png", png(scene.image)
        yield f"ss/ss_{index + 1:04d}.png", png(codec.ids(scene.label, index))


def cityscapes(scenes: Scenes, codec: Codec, *, train_ids: bool) -> Iterator[Member]:
    """leftImg8bit and gtFine with labelIds, instanceIds and colours; images alone for the test split.

    ``train_ids`` adds the labelTrainIds that cityscapesscripts makes. Polygons are not written: the world has none.
    """
    for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin")):
        for index, scene in scenes.of("clear", split):
            stem = f"{split}/{city}/{city}_000000_{index + 19:06d}"
            yield f"leftImg8bit/{stem}_leftImg8bit.png", png(scene.image)
            if split == "test":
                continue
            ids = codec.ids(scene.label, index)
            yield f"gtFine/{stem}_gtFine_labelIds.png", png(ids)
            yield f"gtFine/{stem}_gtFine_instanceIds.png", png(_instance_ids(scene, ids, 1000))
            yield f"gtFine/{stem}_gtFine_color.png", png(codec.colored(scene.label))
            if train_ids:
                yield f"gtFine/{stem}_gtFine_labelTrainIds.png", png(codec.classes(scene.label))


def acdc(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """rgb_anon and gt by condition and split; images alone for the test split; the clear-weather reference images."""
    for number, condition in enumerate(CONDITIONS):
        for split in ("train", "val", "test"):
            for index, scene in scenes.of(condition, split):
                drive = f"GOPR0{number}{index % 2:02d}"
                stem = f"{drive}/{drive}_frame_{index + 1:06d}"
                yield f"rgb_anon/{condition}/{split}/{stem}_rgb_anon.png", png(scene.image)
                reference = scenes.one("clear", split, index).image
                yield f"rgb_anon/{condition}/{split}_ref/{stem}_rgb_ref_anon.png", png(reference)
                if split == "test":
                    continue
                start = f"gt/{condition}/{split}/{stem}_gt"
                yield f"{start}_labelTrainIds.png", png(codec.classes(scene.label))
                yield f"{start}_labelIds.png", png(codec.ids(scene.label, index))
                yield f"{start}_labelColor.png", png(codec.colored(scene.label))


def bdd100k(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """The newer release: images/10k and labels/sem_seg with trainIds; images alone for the test split."""
    for split, stem, scene in _bdd_scenes(scenes):
        yield f"images/10k/{split}/{stem}.jpg", jpeg(scene.image)
        if split != "test":
            yield f"labels/sem_seg/masks/{split}/{stem}.png", png(codec.classes(scene.label))
            yield f"labels/sem_seg/colormaps/{split}/{stem}.png", png(codec.colored(scene.label))


def bdd100k_seg(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """The older release: seg/images, seg/labels with *_train_id.png, seg/color_labels."""
    for split, stem, scene in _bdd_scenes(scenes):
        yield f"seg/images/{split}/{stem}.jpg", jpeg(scene.image)
        if split != "test":
            yield f"seg/labels/{split}/{stem}_train_id.png", png(codec.classes(scene.label))
            yield f"seg/color_labels/{split}/{stem}_train_color.png", png(codec.colored(scene.label))


def mapillary(scenes: Scenes, codec: Codec, *, inner: str, config: str) -> Iterator[Member]:
    """training and validation with palettised labels of the 66 ids and 16-bit instances; images alone for testing.
    The palette shows the 19 classes in their colours, not the official 66.

    The v1.2 download has ``labels`` beside ``images`` and ``config.json``, the v2.0 one a folder per version and
    ``config_v1.2.json`` (spec D.1).
    """
    yield config, _mapillary_config(codec)
    for folder, split in (("training", "train"), ("validation", "val"), ("testing", "test")):
        for index, scene in scenes.of("clear", split):
            digest = hashlib.sha256(f"{split} {index} {scenes.seed}".encode()).digest()
            stem = base64.urlsafe_b64encode(digest)[
                :22
            ].decode()  # official stems contain - and _, also as first character
            yield f"{folder}/images/{stem}.jpg", jpeg(scene.image)
            if split != "test":
                ids = codec.ids(scene.label, index)
                yield f"{folder}/{inner}labels/{stem}.png", png_indexed(ids, codec.palette)
                yield f"{folder}/{inner}instances/{stem}.png", png(_instance_ids(scene, ids, 256, always=True))


def camvid(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """Folders per split, labels in colours beside them: all colours of the 32 original classes are used in turn."""
    for split, stem, index, scene in _camvid_scenes(scenes):
        yield f"{split}/{stem}.png", png(scene.image)
        yield f"{split}_labels/{stem}_L.png", png(codec.colored(scene.label, index))


def camvid_annot(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """Folders per split, labels as numbers beside them: 11 is unlabelled."""
    for split, stem, index, scene in _camvid_scenes(scenes):
        yield f"{split}/{stem}.png", png(scene.image)
        yield f"{split}annot/{stem}.png", png(codec.ids(scene.label, index))


def _camvid_scenes(scenes: Scenes) -> Iterator[tuple[str, str, int, Rendered]]:
    for split, drive in (("train", "0001TP"), ("val", "0016E5"), ("test", "Seq05VD")):
        for index, scene in scenes.of("dusk", split):
            yield split, f"{drive}_{index:06d}", index, scene


def _bdd_scenes(scenes: Scenes) -> Iterator[tuple[str, str, Rendered]]:
    for split in ("train", "val", "test"):
        for index, scene in scenes.of("clear", split):
            digest = hashlib.sha256(f"{split} {index} {scenes.seed}".encode()).hexdigest()
            yield split, f"{digest[:8]}-{digest[8:16]}", scene


def _mapillary_config(codec: Codec) -> bytes:
    labels = [
        {"name": name.lower().replace(" ", "-"), "readable": name, "color": list(color), "evaluate": True}
        for name, color in zip(MAPILLARY_NAMES, codec.palette.tolist(), strict=True)
    ]
    return (json.dumps({"version": "1.2", "mapping": "public", "labels": labels}, indent=1) + "\n").encode()


def _instance_ids(scene: Rendered, ids: NDArray[np.uint8], factor: int, *, always: bool = False) -> NDArray[np.uint16]:
    """id * factor + number of the instance in its class; plain ids (unless ``always``) for uncountable classes."""
    out = ids.astype(np.uint16) * (factor if always else 1)
    for _, number, mask in objects(scene):
        out[mask] = ids[mask].astype(np.uint16) * factor + number
    return out
