"""Writes a ``dataset.yaml`` and a complete, commented recipe for a folder of images."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from segdistill.config import UserError, nearest
from segdistill.data.archives import BadSample
from segdistill.data.decode import upright_size
from segdistill.data.detect import detect
from segdistill.data.own import own_place
from segdistill.data.own_sets import IMAGES, OwnSet, files_in
from segdistill.encoders import EncoderConfig, outline, record_of
from segdistill.encoders.inherit import check_pair
from segdistill.files import write_bytes
from segdistill.recipe import load
from segdistill.weights import shipped_assets

TEACHER = "dinov2_b"
CNN = "timm:mobilenetv3_large_100.ra_in1k"
STUDENTS = {"semantic": CNN, "instance": "dinov2_s", "detection": CNN}
HEADS = {"semantic": "semfpn", "instance": "masked_dpt", "detection": "faster_rcnn"}
LARGEST, CELL = 512, 32  # pixels: longest side of the crops, and its divisor

TEMPLATE = """\
# {title}: {teacher} distilled into {student} on your own images, written by segdistill init.
# Before training: segdistill data check {first}, and segdistill run {recipe} --dry-run (what it costs).
# Every setting is explained in docs/settings.md; a single one is changed on the command line: stages.{last}.steps=500
name: {name}
{task}data:
  source: files
  size: [{height}, {width}]      # of the training crops, pixels; smaller is faster
  sets:                  # name of a domain: its description
{sets}
teacher:                 # the large network{trained}
  encoder: {{name: "{teacher}", weights: "{teacher_weights}"{teacher_more}}}
  head: {{type: {head}}}
student:                 # the network that you deploy: any of timm as timm:NAME, see segdistill list encoders
  encoder: {{name: "{student_name}", weights: "{student_weights}"{student_more}}}
  head: {{type: {head}}}
stages:
{stages}evaluate:
  domains: [{domains}]   # every domain that is scored
  validation: [{validation}]   # domains that you choose settings on
  unseen: [{unseen}]   # no setting is chosen on these: their mean is the honest number
  resize: [{height}, {width}]   # images are fitted into it, as large as the training crops; null: scored as they are
{splits}{missing}"""

SEMANTIC = """\
  # 1. The teacher learns your classes: the number to compare the student with.
  - {{type: task, name: teacher, model: teacher, data: {{domains: [{source}]}}, batch: 8, steps: 2000}}
{inherit}  # {number}. The student learns your classes, and the teacher's features and class scores, at once (Heir). The
  #    images of `proxy` need no labels: add all you have, above all of the places and weather that it is meant for.
  #    Is distillation worth it here? Compare: name=plain stages.task.method=null stages.task.proxy=null
  #    Faster with disk to spare: cache: {{views: 8}} here and cache: {{views: 1}} in proxy (--dry-run tells how much).
  #    With days of training, GKD's stages (recipes/gtav_gkd.yaml) are the paper's way; with hours they did worse.
  - type: task
    name: task
    method: {{type: heir}}
    data: {{domains: [{source}]}}
    proxy: {{data: {{domains: [{proxy}]}}, batch: 8,
            augment: {{crop_scale: [0.3, 1.0], keep_aspect: true, rand_augment: null, erase: 0.0}}}}
    optimizer: {{lr: 1.0e-3, encoder_lr_scale: {encoder_rate}, warmup: 0.05, clip: 1.0}}
    batch: 8
    steps: 4000
"""

INSTANCE = """\
  # 1. The teacher is adapted to your objects: the number to compare the student with. Rates and steps below were
  #    measured on no photographs; choose them on your validation images.
  - {{type: semi, name: adapt, model: teacher, data: &few {{domains: [{source}]}}, batch: 4, contrast: {{}},
     steps: 2000, optimizer: &rates {{lr: 1.0e-4, encoder_lr_scale: 0.1, warmup: 0.05, clip: 1.0}}}}
{pseudo}{inherit}  # {number}. The student learns from {material} (CAST).
  - {{type: semi, name: transfer, data: *few, batch: 4, contrast: {{}}, steps: 4000, hands_over: [encoder, head],
     {unlabelled}optimizer: {{lr: 1.0e-4, encoder_lr_scale: {encoder_rate}, warmup: 0.05, clip: 1.0}}}}
{refine}"""

DETECTION = """\
  # 1. The teacher learns your boxes: the number to compare the student with. Rates and steps below were measured on
  #    no photographs; choose them on your validation images.
  - {{type: task, name: teacher, model: teacher, data: &labelled {{domains: [{source}]}}, batch: 4, steps: 2000,
     optimizer: {{lr: 1.0e-3, warmup: 0.05, clip: 1.0}}}}
{inherit}  # {number}. The student learns your boxes and the teacher's features. Images of `proxy` need no labels: add
  #    all you have. Is distillation worth it here? Compare: name=plain stages.task.method=null stages.task.proxy=null
  - type: task
    name: task
    method: {{type: mse, weight: 20.0}}
    data: *labelled
    proxy: {{data: {{domains: [{proxy}]}}, batch: 4,
            augment: {{crop_scale: [0.3, 1.0], keep_aspect: true, rand_augment: null, erase: 0.0}}}}
    optimizer: {{lr: 1.0e-3, encoder_lr_scale: {encoder_rate}, warmup: 0.05, clip: 1.0}}
    batch: 4
    steps: 4000
"""

PSEUDO = """\
  # 2. It pseudo-labels your unlabelled images, keeping only confident predictions. sheet.png in the stage's folder
  #    shows some of them.
  - {{type: pseudo_label, name: labels, score: 0.6, data: &many {{domains: [{alone}]}}}}
"""
UNLABELLED = "unlabelled: {data: *many, batch: 4, labels: labels, no_object: 0.25},\n     "
REFINE = """\
  # {number}. The student is refined on your labels.
  - {{type: task, name: refine, data: *few, batch: 4, steps: 500, optimizer: *rates}}
"""
INHERIT = """\
  # {number}. The student has no weights of its own: it starts as a slice of its teacher{included}.
  - {{type: inherit, name: start, data: {{domains: [{proxy}]}}, hands_over: [{given}]}}
"""


@dataclass(frozen=True)
class Started:
    """The domains found and the files written."""

    sets: tuple[OwnSet, ...]
    files: tuple[Path, ...]
    recipe: Path
    roles: dict[str, str]  # domain -> source, validation, unseen, unlabelled
    copied: tuple[OwnSet, ...] = ()  # left out: all their images are copies of others

    def lines(self) -> list[str]:
        """For the user: one line per domain, then what was written."""
        lines = []
        for each in self.sets:
            counts = ", ".join(f"{split} {count}" if count else split for split, count in each.counts.items())
            copies = f" (copies of other images, left out: {each.copies})" if each.copies else ""
            lines.append(f"{each.name}: {self.roles[each.name]}, {counts}{copies}")
        lines += [f"{each.name}: left out, all images are copies of others ({each.copies})" for each in self.copied]
        return [*lines, *(f"wrote {path}" for path in self.files)]


def start(
    folder: Path,
    out: Path | None = None,
    *,
    task: str = "semantic",
    teacher: str = TEACHER,
    student: str | None = None,
    validation: Sequence[str] = (),
    unseen: Sequence[str] = (),
    force: bool = False,
) -> Started:
    """Write the descriptions into ``folder`` and the recipe to ``out`` (default: ``NAME.yaml`` here).

    ``task``: semantic, instance or detection; ``student``: None for the task's of :data:`STUDENTS`.
    The largest labelled domain is the source; the others are unseen unless ``validation`` and ``unseen`` say otherwise.
    Existing files are replaced only with ``force``.
    """
    found = detect(folder, boxes=task == "detection")
    sets = [each for each in found if each.labelled or each.counts["train"]]
    copied = tuple(each for each in found if each not in sets)
    sets = sets if task == "semantic" else with_objects(sets, folder, task)
    labelled = [each for each in sets if each.labelled]
    if not labelled:
        raise UserError(
            f"{folder} has images but no recognised labels: put label maps (PNG of class numbers) into "
            "labels/ or masks/ beside images/, or name them like their image with _mask at the end; outlines of COCO, "
            "LabelMe and YOLO are read, too, and with --task detection also boxes, of YOLO, COCO and Pascal VOC"
        )
    roles = _roles(sets, validation, unseen)
    source = next(name for name, role in roles.items() if role == "source")
    recipe = out or Path(f"{source}.yaml")
    names = {each.name: "dataset.yaml" if len(sets) == 1 else f"dataset-{each.name}.yaml" for each in sets}
    described = {folder / names[each.name]: yaml.safe_dump(each.settings, sort_keys=False) for each in sets}
    texts = {folder / name: text for each in sets for name, text in each.texts.items()} | described
    if existing := [path for path in (*texts, recipe) if path.exists() and not force]:
        raise UserError(f"{existing[0]} exists; give --force to replace it, or another --out for the recipe")
    size = _size(folder)
    facts = _facts(sets, roles, {name: folder / path for name, path in names.items()})
    networks = _networks(teacher, student or STUDENTS[task], size)
    text = TEMPLATE.format(
        title=source,
        name=source,
        recipe=recipe,
        first=folder / names[source],
        head=HEADS[task],
        **_stages(task, facts | networks),
        **facts,
        **networks,
    )
    for path, content in texts.items():
        write_bytes(path, content.encode())
    for name, path in names.items():
        own_place(name, folder / path)  # raises if the written file cannot be read
    write_bytes(recipe, text.encode())
    load(recipe)  # raises if it cannot be read
    return Started(tuple(sets), (*texts, recipe), recipe, roles, copied)


def with_objects(sets: Sequence[OwnSet], folder: Path, task: str) -> list[OwnSet]:
    """``sets`` with objects or boxes instead of class maps; a :class:`UserError` if the labels are maps."""
    kind, needs = {
        "instance": ("objects", "outlines: files of COCO, LabelMe or YOLO"),
        "detection": ("boxes", "boxes or outlines: files of COCO, LabelMe, YOLO or Pascal VOC"),
    }[task]
    found = []
    for each in sets:
        if each.labelled and each.settings.get("layout") != "coco":
            raise UserError(f"{folder}: label maps do not tell one object from the next; task {task} needs {needs}")
        settings = {key: value for key, value in each.settings.items() if key != "background"}
        found.append(replace(each, settings=settings | {kind: True} if each.labelled else settings))
    return found


def _stages(task: str, facts: dict[str, Any]) -> dict[str, str]:
    """The recipe's stages, and its parts that depend on them and on the task."""
    pseudo = PSEUDO.format(**facts) if task == "instance" and facts["alone"] else ""
    number = 2 + bool(pseudo)
    included, given = ("", "encoder") if task == "detection" else (", head included", "encoder, head")
    inherit = INHERIT.format(number=number, included=included, given=given, **facts) if facts["inherits"] else ""
    number += bool(inherit)
    if task != "instance":
        stages = (SEMANTIC if task == "semantic" else DETECTION).format(inherit=inherit, number=number, **facts)
        named = "" if task == "semantic" else f"task: {task}\n"
        return {"task": named, "trained": "; only its head is trained", "last": "task", "stages": stages}
    stages = INSTANCE.format(
        pseudo=pseudo,
        inherit=inherit,
        number=number,
        material="your labels and those of its teacher" if pseudo else "your labels",
        unlabelled=UNLABELLED if pseudo else "",
        refine=REFINE.format(number=number + 1) if pseudo else "",
        **facts,
    )
    return {"task": "task: instance\n", "trained": "", "last": "transfer", "stages": stages}


def _roles(sets: Sequence[OwnSet], validation: Sequence[str], unseen: Sequence[str]) -> dict[str, str]:
    """The role of every domain."""
    labelled = [each for each in sets if each.labelled]
    known = [each.name for each in labelled]
    for name in (*validation, *unseen):
        if name not in known:
            raise UserError(f"no labelled domain '{name}': {nearest(name, known)}found: {', '.join(known)}")
    training = [each for each in labelled if "train" in each.counts and each.name not in (*validation, *unseen)]
    if not training:
        raise UserError("no domain is left to train on: leave one out of --validation and --unseen")
    roles = dict.fromkeys((each.name for each in sets if not each.labelled), "unlabelled")
    others = {each.name: "validation" if set(each.counts) == {"val"} and each.name.endswith("val") else "unseen"
              for each in labelled}  # fmt: skip
    others |= dict.fromkeys(validation, "validation") | dict.fromkeys(unseen, "unseen")
    return {training[0].name: "source"} | {k: v for k, v in others.items() if k != training[0].name} | roles


def _facts(sets: Sequence[OwnSet], roles: dict[str, str], places: dict[str, Path]) -> dict[str, Any]:
    """The recipe's values about the data."""
    by_role = {role: [name for name, each in roles.items() if each == role]
               for role in ("source", "validation", "unseen", "unlabelled")}  # fmt: skip
    counts = {each.name: each.counts for each in sets}
    source = by_role["source"][0]
    scored = [
        *(by_role["source"] if set(counts[source]) != {"train"} else []),
        *by_role["validation"],
        *by_role["unseen"],
    ]
    scored = scored or [source]
    splits = {name: next(split for split in ("val", "test", "train") if split in counts[name]) for name in scored}
    missing = [
        f"# Without {role} domains {why}\n# describe one in a dataset.yaml, name it under data.sets, and list it above."
        for role, why in (
            ("unseen", "there is no score for places that the model has not seen:"),
            ("validation", "settings are chosen on the source:"),
        )
        if not by_role[role]
    ]
    return {
        "sets": "\n".join(f"    {name}: {_quoted(str(path.resolve()))}" for name, path in places.items()),
        "source": source,
        "proxy": ", ".join([*by_role["unlabelled"], source]),
        "alone": ", ".join(by_role["unlabelled"]),
        "domains": ", ".join(scored),
        "validation": ", ".join(by_role["validation"]),
        "unseen": ", ".join(by_role["unseen"]),
        "splits": f"  splits: {{{', '.join(f'{name}: {split}' for name, split in splits.items())}}}\n",
        "missing": "\n".join(missing) + "\n" if missing else "",
    }


def _quoted(text: str) -> str:
    """Any text in YAML."""
    return json.dumps(text, ensure_ascii=False)


def _networks(teacher: str, student: str, size: tuple[int, int]) -> dict[str, Any]:
    """The recipe's values about the networks."""
    facts: dict[str, Any] = {"teacher": teacher, "student": student, "student_name": student}
    facts |= {"height": size[0], "width": size[1]}
    for role, name in (("teacher", teacher), ("student", student)):
        record = record_of(name)
        more = f", image_size: [{size[0]}, {size[1]}]" if record.sized and record.family != "world" else ""
        if record.plain and record.patch % 16 and record.family != "world":
            more += ", patch: 16"
        facts[f"{role}_more"] = more
        own = next((f"shipped:{asset}" for asset in shipped_assets() if asset.startswith(name)), "random")
        public = f"timm:{record.timm_weights}" if record.hub is None else f"hf:{record.hub}"
        named = public if record.timm_weights or record.hub else "random"
        facts[f"{role}_weights"] = own if record.family == "world" else named
    heir = facts["student_weights"] == "random" and _can_inherit(student, teacher)
    return facts | {"inherits": heir, "encoder_rate": 1.0 if heir else 0.1}


def _can_inherit(student: str, teacher: str) -> bool:
    """Whether the student can start as a slice of its teacher."""
    small, large = (outline(EncoderConfig(name=name)) for name in (student, teacher))
    try:
        check_pair(small, large)
    except UserError:
        return False
    return True


def _size(folder: Path) -> tuple[int, int]:
    """A crop size for the images: their median size, at most LARGEST, a multiple of CELL."""
    sizes = []
    paths = [folder / path for path in files_in(folder) if path.suffix.lower() in IMAGES]
    for path in paths[:: max(1, len(paths) // 50)]:
        with suppress(BadSample):
            sizes.append(upright_size(path))
    if not sizes:
        raise UserError(f"{folder}: no image can be opened")
    height, width = (int(statistics.median(each[axis] for each in sizes)) for axis in (0, 1))
    fitted = [max(CELL, min(side, LARGEST) // CELL * CELL) for side in (height, width)]
    return fitted[0], fitted[1]
