"""The model card of a packed model: Hugging Face's form, every number from the file's header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segdistill.files import write_atomic
from segdistill.runlog import FEWEST_STEPS
from segdistill.tasks.table import TASKS


@dataclass(frozen=True)
class _Text:
    """What a card says of the models of one task; ``metric`` is Hugging Face's name of the primary score."""

    tag: str
    metric: str
    article: str
    predict: str
    limits: tuple[str, ...]
    hub_task: str = "image-segmentation"


TEXTS = {
    "semantic": _Text(
        tag="semantic-segmentation",
        metric="mean_iou",
        article="A semantic segmentation",
        predict="classes = model.predict(images)  # (B, 3, H, W) in [0, 1] -> (B, H, W)",
        limits=(
            "Every pixel is assigned one of its classes, even where none applies.",
            "The model is overconfident outside its training domain (calibration errors below).",
        ),
    ),
    "instance": _Text(
        tag="instance-segmentation",
        metric="average_precision",
        article="An instance segmentation",
        predict="objects = model.predict(images)  # (B, 3, H, W) in [0, 1] -> per image: scores, classes, masks",
        limits=(
            "It returns at most 100 objects per image, most of them with low scores; masks may overlap.",
            "A score is no probability of being right: choose the threshold on images of your own domain.",
        ),
    ),
    "detection": _Text(
        tag="object-detection",
        metric="average_precision",
        article="A detection",
        predict="objects = model.predict(images)  # (B, 3, H, W) in [0, 1] -> per image: scores, classes, boxes",
        limits=(
            "It returns at most as many boxes per image as its head is set to, most of them with low scores.",
            "A score is no probability of being right: choose the threshold on images of your own domain.",
        ),
        hub_task="object-detection",
    ),
}


def _text(header: Mapping[str, Any]) -> _Text:
    return TEXTS[_task(header)]


def _task(header: Mapping[str, Any]) -> str:
    return str(header.get("task", "semantic"))


def _primary(header: Mapping[str, Any]) -> tuple[str, Mapping[str, str]]:
    """The key of the score by which models of the header's task are compared, and its description."""
    task = TASKS[_task(header)]
    return task.primary, task.metrics[task.primary]


def write_card(path: Path, header: Mapping[str, Any], *, file: str, digest: str) -> None:
    """Write the card of the packed ``file`` with that SHA-256."""
    text = card(header, file=file, digest=digest)
    write_atomic(path, lambda out: out.write(text.encode()))


def card(header: Mapping[str, Any], *, file: str, digest: str) -> str:
    """The card as Markdown with YAML front matter."""
    sections = (
        f"---\n{_front_matter(header)}---",
        _summary(header),
        _use(header, file),
        _robustness(header),
        _licences(header),
        _limits(header),
        _reproduce(header, file),
        _integrity(header, file, digest),
    )
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _front_matter(header: Mapping[str, Any]) -> str:
    front: dict[str, Any] = {"license": header["licence"]}
    if header["licence"] == "other":
        front |= {"license_name": "see-the-chain-of-licences", "license_link": "#licences"}
    text, (primary, about) = _text(header), _primary(header)
    front |= {
        "library_name": "segdistill",
        "pipeline_tag": text.hub_task,
        "tags": [text.tag, "knowledge-distillation", "domain-generalization"],
    }
    metrics = [
        {
            "task": {"type": text.hub_task},
            "dataset": {"type": name, "name": f"{name} ({kind})"},
            "metrics": [
                {"type": text.metric, "value": round(100 * score[primary], 2), "name": f"{about['label']} (%)"}
            ],
        }
        for name, kind, score in _domains(header, header["role"])
        if score[primary] is not None
    ]
    if metrics:
        front["model-index"] = [{"name": header["name"], "results": metrics}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _summary(header: Mapping[str, Any]) -> str:
    parameters, model = header["parameters"], header["model"]
    classes = ", ".join(header["classes"])
    return (
        f"# {header['title']}\n\n"
        f"{_text(header).article} model of {len(header['classes'])} classes, the {header['role']} of the run "
        f"`{header['name']}` of [segdistill](https://arxiv.org/abs/2603.02554): encoder `{model['encoder']['name']}` "
        f"({parameters['encoder'] / 1e6:.2f} M parameters), head `{model['head']['type']}` "
        f"({parameters['head'] / 1e6:.2f} M).\n\nClasses: {classes}."
    )


def _use(header: Mapping[str, Any], file: str) -> str:
    view = header["preprocessing"]
    lines = [f"Images are RGB in [0, 1]; the encoder subtracts {view['mean']} and divides by {view['std']}."]
    height, width = view["size"]
    lines.append(f"It was trained on {height} x {width} pixels.")
    if view["resize"]:
        lines.append(f"Images are fitted into {view['resize'][0]} x {view['resize'][1]} pixels.")
    if view["window"]:
        size, stride = view["window"]["size"], view["window"]["stride"]
        lines.append(f"They are seen through windows of {size[0]} x {size[1]} every {stride[0]} x {stride[1]} pixels.")
    return (
        "## Use\n\n```python\nfrom segdistill.sharing.pack import load_packed\n\n"
        f'model, header = load_packed("{file}")  # or "hf:<owner>/<name>"\n'
        f"{_text(header).predict}\n```\n\n" + " ".join(lines)
    )


def _robustness(header: Mapping[str, Any]) -> str:
    role, kept = header["role"], header["kept"]
    primary, about = _primary(header)
    label, interval = about["label"], f"{primary}_interval"
    rows = _domains(header, role)
    if not rows:
        return "## Robustness\n\nNot measured: the run was not evaluated."
    teacher = {name: score for name, _, score in _domains(header, "teacher")} if kept and role == "student" else {}
    heads = ["domain", "kind", "images", f"{role} {label} (%)"]
    heads += [f"teacher {label} (%)", "kept (%)"] if teacher else []
    table = [heads, ["---"] * len(heads)]
    for name, kind, score in rows:
        row = [name, kind, str(score["images"]), _score(score[primary], score[interval])]
        if teacher:
            ratio = kept["domains"][name]
            other = teacher[name]
            row += [_score(other[primary], other[interval]), _score(ratio["retention"], ratio["interval"])]
        table.append(row)
    text = "## Robustness\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table)
    own = header["scores"][role]
    short = [stage for stage in header["history"]["stages"] if 0 < stage["steps"] < FEWEST_STEPS]
    if own.get("mean_unseen") is not None and not short:
        text += f"\n\nMean over the unseen domains: {_score(own['mean_unseen'], own['mean_unseen_interval'])} % {label}"
        if teacher and kept["unseen"] is not None:
            text += f"; of the teacher's it keeps {_score(kept['unseen'], kept['interval'])} %"
        text += "."
    text += (
        " In brackets: 95 % intervals of a bootstrap over images (of the ratio: paired). They cover the choice of test "
        "images, not training seeds or other domains."
    )
    if short:
        names = ", ".join(f"{stage['name']} ({stage['steps']} steps)" for stage in short)
        text += f"\n\n**Too short to mean anything:** {names}. The numbers show that everything runs, no more."
    return text


def _licences(header: Mapping[str, Any]) -> str:
    lines = [
        f"- {link['part']}: {link['name']}: {link['licence']}"
        + (f" (**{', '.join(link['restrictions'])}**)" if link["restrictions"] else "")
        for link in header["licences"]
    ]
    restricted = any(link["restrictions"] for link in header["licences"])
    verdict = (
        "Terms in bold also apply to models derived from that part; read them before you use or redistribute this "
        "model."
        if restricted
        else "No link of the chain restricts the use of this model beyond its own licence, Apache-2.0."
    )
    return "## Licences\n\nTeacher, data, student:\n\n" + "\n".join(lines or ["- none known"]) + f"\n\n{verdict}"


def _limits(header: Mapping[str, Any]) -> str:
    role = header["role"]
    primary, about = _primary(header)
    rows = [(name, kind, score) for name, kind, score in _domains(header, role) if score[primary] is not None]
    lines = [*_text(header).limits]
    if rows:
        name, _, worst = min(rows, key=lambda row: row[2][primary])
        lines.append(f"Weakest domain measured: {name}, {100 * worst[primary]:.1f} % {about['label']}.")
        unseen = [score[about["by_class"]] for _, kind, score in rows if kind == "unseen"]
        weak = _weak_classes(header["classes"], unseen)
        if weak:
            label = about["by_class_label"]
            lines.append(f"Classes below 20 % {label} on average over the unseen domains: {', '.join(weak)}.")
        known = [(name, error) for name, _, score in rows if (error := score.get("calibration_error")) is not None]
        if known:
            errors = ", ".join(f"{name} {100 * error:.1f}" for name, error in known)
            lines.append(f"Calibration error (percentage points): {errors}.")
    if "source: world" in header["history"]["recipe"]:
        lines.append("Trained on the rendered world that comes with segdistill: no model for photographs.")
    if header["precision"] == "float16":
        lines.append("Weights are stored in half precision; the scores were measured before that.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _weak_classes(classes: Sequence[str], scores: Sequence[Sequence[float | None] | None]) -> list[str]:
    """Classes with a mean below 0.2; ``scores``: each domain's values by class."""
    weak = []
    for number, name in enumerate(classes):
        values = [value for score in scores if score and (value := score[number]) is not None]
        if values and sum(values) / len(values) < 0.2:
            weak.append(name)
    return weak


def _reproduce(header: Mapping[str, Any], file: str) -> str:
    history, name = header["history"], header["name"]
    versions = ", ".join(f"{key} {value}" for key, value in history["versions"].items())
    half = " --half" if header["precision"] == "float16" else ""
    role = " --role teacher" if header["role"] == "teacher" and "student" in header["scores"] else ""
    return (
        "## Reproduce\n\n"
        f"Commit {history['commit']}, seed {history['seed']}, {history['hardware']}; segdistill {versions}. Save the "
        f"recipe below as `{name}.yaml`, put files in the places that it names (data sets below `SEGDISTILL_DATA`), "
        f"and:\n\n```bash\nsegdistill run {name}.yaml --out runs/{name}\n"
        f"segdistill pack runs/{name} {file}{half}{role}\nsegdistill verify {file} --run runs/{name}\n```\n\n"
        f"<details><summary>{name}.yaml</summary>\n\n```yaml\n{history['recipe'].strip()}\n```\n\n</details>"
    )


def _integrity(header: Mapping[str, Any], file: str, digest: str) -> str:
    rows = [["what", "name", "sha256"], ["---"] * 3, ["this file", file, f"`{digest}`"]]
    rows += [[each["what"], each["name"], f"`{each['sha256']}`"] for each in header["rests_on"]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"## Integrity\n\n`segdistill verify {file}` checks what is at hand of:\n\n{table}"


def kinds_of(header: Mapping[str, Any]) -> dict[str, str]:
    """source, validation or unseen: the kind of every domain that the run was scored on."""
    return {name: kind for kind, names in header["domains"].items() for name in names}


def _domains(header: Mapping[str, Any], role: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, source / validation / unseen, scores) of every domain that ``role`` was scored on."""
    found = header["scores"].get(role, {}).get("domains", {})
    return [(name, kind, found[name]) for name, kind in kinds_of(header).items() if name in found]


def _score(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
