"""Generated images with objects and detections, and the scores that the libraries give them."""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official  # noqa: N813
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as tools
from PIL import Image

from segdistill.objects import Detections, Objects, decode, encode

SIZE = (140, 180)


def ellipse(rng, largest, size=SIZE):
    """A mask (H, W); with some luck a single pixel or none at all."""
    (height, width), (a, b) = size, rng.uniform(0.3, largest, 2)
    y, x = np.ogrid[:height, :width]
    return ((y - rng.uniform(0, height)) / a) ** 2 + ((x - rng.uniform(0, width)) / b) ** 2 < 1


def moved(rng, mask, most):
    """The mask a few pixels away, without some of its rows."""
    shifted = np.roll(mask, rng.integers(-most, most + 1, 2), axis=(0, 1))
    if rng.random() < 0.3:
        shifted[: rng.integers(0, mask.shape[0])] = False
    return shifted


def disjoint(rng, count, classes, *, crowd=0.2, void=False, size=SIZE):
    """Objects that do not overlap; at most one group per class, as in Cityscapes."""
    ids, found, groups = np.zeros(size, np.int32), [], []
    for _ in range(count):
        number, group = int(rng.integers(classes)), bool(rng.random() < crowd)
        free = ellipse(rng, rng.choice([8, 40, 80]), size) & (ids == 0)
        if free.any() and not (group and (number, True) in zip(found, groups, strict=True)):
            found.append(number)
            groups.append(group)
            ids[free] = len(found)
    empty = (ellipse(rng, 60, size) & (ids == 0)) if void else None
    return Objects(ids[None], np.array(found, np.int64), np.array(groups, bool), empty)


def overlapping(rng, count, classes, size=SIZE):
    """Objects in layers, some of them crowds."""
    masks = [mask for mask in (ellipse(rng, rng.choice([8, 40, 80]), size) for _ in range(count)) if mask.any()]
    return Objects.of_masks(
        masks, rng.integers(0, classes, len(masks)).tolist(), (rng.random(len(masks)) < 0.2).tolist(), size
    )


def detected(rng, objects, others, classes, *, levels=20, copies=2):
    """Detections near the objects, some twice, and ``others`` elsewhere; scores have ``levels`` values, so they tie."""
    again = rng.integers(0, copies + 1, len(objects.classes))
    masks = [
        moved(rng, decode(runs), 2) for runs, n in zip(objects.run_lengths(), again, strict=True) for _ in range(n)
    ]
    masks += [ellipse(rng, 30, objects.size) for _ in range(others)]
    numbers = np.concatenate([np.repeat(objects.classes, again), rng.integers(0, classes, others)])
    scores = (rng.integers(1, levels + 1, len(masks)) / levels).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return Detections(
        scores[order], numbers[order].astype(np.int64), [encode(masks[place]) for place in order], objects.size
    )


def detections(size, *entries):
    """Detections (score, class, rows, columns) that are rectangles, by descending score."""
    masks = []
    for _, _, rows, columns in entries:
        mask = np.zeros(size, bool)
        mask[slice(*rows), slice(*columns)] = True
        masks.append(encode(mask))
    scores, classes = ([entry[place] for entry in entries] for place in (0, 1))
    return Detections(np.array(scores, np.float32), np.array(classes, np.int64), masks, size)


def objects(size, *entries, crowd=(), void=None):
    """Objects (class, rows, columns) that are rectangles; those at the places ``crowd`` are crowds."""
    ids = np.zeros((1, *size), np.int32)
    for number, (_, rows, columns) in enumerate(entries, 1):
        ids[0, slice(*rows), slice(*columns)] = number
    classes = np.array([entry[0] for entry in entries], np.int64)
    return Objects(ids, classes, np.isin(np.arange(len(entries)), crowd), void)


def coco(pairs, classes) -> COCOeval_faster:
    """The library's evaluation of (detections, objects) pairs. Objects without pixels are left out."""
    images = [{"id": n, "height": o.size[0], "width": o.size[1]} for n, (_, o) in enumerate(pairs, 1)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (detections, objects) in enumerate(pairs, 1):
        for runs, number, crowd in zip(objects.run_lengths(), objects.classes, objects.crowd, strict=True):
            area = int(tools.area(runs))
            if area:
                entry = {"id": len(annotations) + 1, "segmentation": runs, "area": area, "iscrowd": int(crowd)}
                box = tools.toBbox(runs).tolist()
                annotations.append(entry | {"image_id": image, "category_id": int(number) + 1, "bbox": box})
        for runs, number, score in zip(detections.masks, detections.classes, detections.scores, strict=True):
            entry = {"image_id": image, "category_id": int(number) + 1, "score": float(score)}
            results.append(entry | {"segmentation": dict(runs)})
    truth = COCO({"images": images, "annotations": annotations, "categories": [
        {"id": number + 1, "name": str(number)} for number in range(classes)
    ]})  # fmt: skip
    evaluation = COCOeval_faster(truth, truth.loadRes(results), "segm", print_function=lambda *_: None)
    evaluation.run()
    return evaluation


def cityscapes(pairs, folder: Path, monkeypatch, *, min_pixels=100) -> dict[str, Any]:
    """The official script's results on files in ``folder``: classes 0 to 7 are person to bicycle."""
    labels = [label for label in official.labels if label.hasInstances and not label.ignoreInEval]
    truths, predictions = [], []
    for image, (detections, objects) in enumerate(pairs):
        ids = np.full(objects.size, 7, np.uint16)  # road
        if objects.void is not None:
            ids[objects.void] = 4  # static, which is ignored
        for number, (kind, group) in enumerate(zip(objects.classes, objects.crowd, strict=True), 1):
            own = labels[kind].id
            ids[objects.ids[0] == number] = own if group else own * 1000 + number
        truths.append(str(folder / f"{image}_instanceIds.png"))
        Image.fromarray(ids).save(truths[-1])
        lines = []
        for place, (runs, kind) in enumerate(zip(detections.masks, detections.classes, strict=True)):
            Image.fromarray(decode(runs).astype(np.uint8) * 255).save(folder / f"{image}_{place}.png")
            lines.append(f"{image}_{place}.png {labels[kind].id} {float(detections.scores[place])!r}\n")
        predictions.append(str(folder / f"{image}.txt"))
        Path(predictions[-1]).write_text("".join(lines))
    monkeypatch.setattr(official, "writeDict2JSON", lambda *_: None)  # records that nobody reads
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which NumPy 2.4 has not
    settings = {"gtInstancesFile": "", "predictionPath": str(folder), "quiet": True}
    settings |= {"JSONOutput": False, "minRegionSizes": np.array([min_pixels] * 3)}
    with contextlib.redirect_stdout(io.StringIO()):
        return official.evaluateImgLists(predictions, truths, Namespace(**vars(official.args) | settings))
