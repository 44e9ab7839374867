"""Aerial, surgical and everyday data sets in their own form, with street scenes instead of their images."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segdistill.data.catalog.others import POTSDAM_TILES, VAIHINGEN, VAIHINGEN_TILES
from segdistill.data.sample.pixels import jpeg, png, png_indexed, tiff
from segdistill.data.sample.scenes import Codec, Member, Scenes
from segdistill.world import CLASSES, IGNORE, Rendered

RELEASES = ("miccai_challenge_2018_release_1", "miccai_challenge_2018_release_2")
_GREEN = (CLASSES.index("vegetation"), CLASSES.index("terrain"))


def potsdam_tiles(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """The official tiles: 2_Ortho_RGB, 3_Ortho_IRRG, and the colour labels without boundaries."""
    for split in ("train", "val"):
        for tile, _, scene in _tiles(scenes, POTSDAM_TILES, "clear", split):
            yield f"2_Ortho_RGB/top_potsdam_{tile}_RGB.tif", tiff(scene.image)
            yield f"3_Ortho_IRRG/top_potsdam_{tile}_IRRG.tif", tiff(irrg(scene))
            label = tiff(codec.colored(scene.label))
            yield f"5_Labels_for_participants_no_Boundary/top_potsdam_{tile}_label_noBoundary.tif", label


def vaihingen_tiles(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """The official areas: top (infrared, red, green) and the eroded colour labels."""
    top, eroded = VAIHINGEN
    for split in ("train", "val"):
        for area, _, scene in _tiles(scenes, VAIHINGEN_TILES, "haze", split):
            yield f"{top}/top/top_mosaic_09cm_{area}.tif", tiff(irrg(scene))
            yield f"{eroded}/top_mosaic_09cm_{area}_noBoundary.tif", tiff(codec.colored(scene.label))


def potsdam_clips(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """Output of the usual converter for both kinds of tiles: one clip of each."""
    yield from _clips(scenes, codec, POTSDAM_TILES, "clear", "RGB/")
    yield from _clips(scenes, codec, POTSDAM_TILES, "clear", "IRRG/")


def vaihingen_clips(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """Output of the usual converter for the areas: one clip of each."""
    yield from _clips(scenes, codec, VAIHINGEN_TILES, "haze")


def endovis18(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """Both releases in one folder, as GKD's configurations expect: images and id labels side by side."""
    for release, _, stem, index, scene in _endovis_scenes(scenes):
        folder = f"miccai_challenge_release_{release}"
        yield f"{folder}/images/{stem}.png", png(scene.image)
        yield f"{folder}/labels/{stem}.png", png(codec.ids(scene.label, index))


def endovis18_official(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """Both releases by sequence, with colour labels and labels.json, as downloaded."""
    legend = [
        {"name": name, "color": color.tolist(), "classid": number}
        for number, (name, color) in enumerate(zip(codec.names, codec.colors, strict=True))
    ]
    for release in RELEASES:
        yield f"{release}/labels.json", (json.dumps(legend, indent=1) + "\n").encode()
    for release, sequence, stem, _, scene in _endovis_scenes(scenes):
        folder = f"{RELEASES[release - 1]}/seq_{sequence}"
        frame = stem.removeprefix(f"seq_{sequence}_")
        yield f"{folder}/left_frames/{frame}.png", png(scene.image)
        yield f"{folder}/labels/{frame}.png", png(codec.colored(scene.label))


def voc2012(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """JPEGImages, palettised SegmentationClass with 255 along the borders of objects, and the lists of both splits."""
    lists = {}
    for split in ("train", "val"):
        lists[split] = [f"2007_{index + 1000 * (split == 'val'):06d}" for index in range(scenes.images)]
        for index, scene in scenes.of("clear", split):
            label = codec.ids(scene.label, index)
            label[borders(label)] = IGNORE
            yield f"JPEGImages/{lists[split][index]}.jpg", jpeg(scene.image)
            yield f"SegmentationClass/{lists[split][index]}.png", png_indexed(label, codec.palette)
    lists["trainval"] = sorted(lists["train"] + lists["val"])
    for name, stems in lists.items():
        yield f"ImageSets/Segmentation/{name}.txt", "".join(f"{stem}\n" for stem in stems).encode()


def ade20k(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """images and annotations; 0 is everything except the 150 classes."""
    for folder, split in (("training", "train"), ("validation", "val")):
        for index, scene in scenes.of("clear", split):
            stem = f"ADE_{split}_{index + 1:08d}"
            yield f"images/{folder}/{stem}.jpg", jpeg(scene.image)
            yield f"annotations/{folder}/{stem}.png", png(codec.ids(scene.label, index))


def imagenet(scenes: Scenes, _: Codec) -> Iterator[Member]:
    """train/class/*.JPEG and val/*.JPEG without labels; every third one grey, like some of the official ones."""
    for split in ("train", "val"):
        for index, scene in scenes.of("proxy", split):
            kind = ("n01440764", "n02102040")[index % 2]
            name = f"train/{kind}/{kind}_{index}" if split == "train" else f"val/ILSVRC2012_val_{index + 1:08d}"
            yield f"{name}.JPEG", jpeg(scene.image[..., 1] if index % 3 == 2 else scene.image)


def irrg(scene: Rendered) -> NDArray[np.uint8]:
    """Infrared, red, green: green surfaces reflect infrared (ours; the world renders no infrared)."""
    red, green = scene.image[..., 0], scene.image[..., 1]
    glow = np.where(np.isin(scene.label, _GREEN), 90, 0)
    infrared = np.clip(green.astype(np.int64) + glow, 0, 255).astype(np.uint8)
    return np.stack([infrared, red, green], axis=-1)


def borders(label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W): the pixels with another class to their left, right, above or below."""
    out = np.zeros(label.shape, bool)
    down, right = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    out[1:] |= down
    out[:-1] |= down
    out[:, 1:] |= right
    out[:, :-1] |= right
    return out


def _tiles(scenes: Scenes, tiles: dict[str, str], domain: str, split: str) -> Iterator[tuple[str, int, Rendered]]:
    """(tile, number, scene), as long as the official split has tiles."""
    for tile, (index, scene) in zip(tiles[split].split(), scenes.of(domain, split), strict=False):
        yield tile, index, scene


def _clips(scenes: Scenes, codec: Codec, tiles: dict[str, str], domain: str, above: str = "") -> Iterator[Member]:
    """img_dir, and ann_dir with ids 0 to 6 (spec D.4)."""
    for split in ("train", "val"):
        for tile, index, scene in _tiles(scenes, tiles, domain, split):
            height, width = scene.label.shape
            name = f"{tile}_0_0_{width}_{height}.png"
            yield f"{above}img_dir/{split}/{name}", png(scene.image if above == "RGB/" else irrg(scene))
            yield f"{above}ann_dir/{split}/{name}", png(codec.ids(scene.label, index))


def _endovis_scenes(scenes: Scenes) -> Iterator[tuple[int, int, str, int, Rendered]]:
    """(release, sequence, stem, number, scene): sequences 1 to 4 are for training, 5 to 7 for validation."""
    for release, split, sequences in ((1, "train", (1, 2, 3, 4)), (2, "val", (5, 6, 7))):
        for index, scene in scenes.of("broad", split):
            sequence = sequences[index % len(sequences)]
            yield release, sequence, f"seq_{sequence}_frame{index // len(sequences):03d}", index, scene
