"""Run folders as the runner leaves them, small and quick to make."""

import json
from statistics import fmean

import numpy as np
from PIL import Image, ImageDraw

from segdistill.pictures import indexed

CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "person", "car", "train")
COLORS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (107, 142, 35), (70, 130, 180),
    (220, 20, 60), (0, 0, 142), (0, 80, 100)
)  # fmt: skip
SOURCE, UNSEEN, VALIDATION = ("game",), ("clear", "night", "fog", "snow", "rain"), ("dusk", "haze")
EASE = {"game": 1.0, "clear": 0.8, "night": 0.35, "fog": 0.55, "snow": 0.5, "rain": 0.6, "dusk": 0.7, "haze": 0.6}
ALL_PICTURES = {"domains": {domain: [0, 1] if domain == "fog" else [0] for domain in EASE}}
WORST_PICTURES = {"domains": {"fog": [0]}, "worst": {"fog": [[2, 0.05], [0, 0.1]], "night": [[4, 0.021], [7, 0.3]]}}
METRICS = {"miou": {"label": "mIoU", "unit": "%", "by_class": "iou", "by_class_label": "IoU"},
           "accuracy": {"label": "pixel accuracy", "unit": "%"}}  # fmt: skip
SIZE = (128, 64)  # width, height


def score(strength, domain, rng):
    """A domain's scores as evaluation writes them: the last class never occurs, one value per class else."""
    base = strength + (0.62 - strength) * max(EASE[domain] - 0.6, 0) * 1.8 + (EASE[domain] - 0.55) * 0.25
    iou = [float(np.clip(base * f + rng.normal(0, 0.02), 0, 1)) for f in (1.7, 0.9, 1.3, 1.2, 1.6, 0.4, 0.7)]
    known = [*iou, None]
    miou = fmean(iou)
    return {"miou": miou, "iou": known, "accuracy": min(miou + 0.3, 1), "mean_accuracy": miou, "images": 48}


def scene(domain, rng):
    """A street in ``domain``'s light and its label map (H, W)."""
    w, h = SIZE
    label = Image.new("L", SIZE, 4)
    draw = ImageDraw.Draw(label)
    for x in range(0, w, 16):
        draw.rectangle((x, int(rng.integers(4, 26)), x + 15, 40), fill=int(rng.choice([2, 2, 3])))
    draw.polygon([(0, h), (0, 44), (50, 36), (78, 36), (w, 44), (w, h)], fill=1)
    draw.polygon([(14, h), (58, 36), (70, 36), (w - 14, h)], fill=0)
    draw.rectangle((80, 36, 100, 47), fill=6)
    draw.rectangle((30, 36, 33, 47), fill=5)
    ids = np.asarray(label).copy()
    ids[-3:] = 255
    light = {"night": 0.25, "dusk": 0.5, "fog": 0.8}.get(domain, 1.0)
    colors = np.vstack([COLORS, np.zeros((248, 3))])[ids] * light
    veil = {"fog": 0.6, "haze": 0.4, "snow": 0.35}.get(domain, 0.0)
    image = colors * (1 - veil) + 215 * veil + rng.normal(0, 9, (h, w, 3))
    return np.clip(image, 0, 255).astype(np.uint8), ids


def blunder(ids, wrong, rng):
    """``ids`` with blocks replaced by other classes, about the share ``wrong`` of the pixels."""
    answer = np.where(ids == 255, 0, ids).astype(np.uint8)
    for y in range(0, answer.shape[0], 8):
        for x in range(0, answer.shape[1], 8):
            if rng.random() < wrong:
                answer[y : y + 8, x : x + 8] = rng.integers(0, 6)
    return answer


def make_run(folder, name="gkd", title="GKD", seed=0, strength=0.3, **changes):
    """A run folder as the runner leaves it. ``changes`` replace top-level keys of ``results.json``."""
    rng = np.random.default_rng([len(name), seed])
    fixed = np.random.default_rng(7)  # the teacher and the scenes are the same for every run
    domains = (*SOURCE, *UNSEEN, *VALIDATION)
    models = {}
    for role, power, source in (("teacher", 0.36, fixed), ("student", strength, rng)):
        scores = {domain: score(power, domain, source) for domain in domains}
        size = {"encoder": 5_200_000 if role == "teacher" else 1_050_000, "head": 150_000}
        models[role] = {
            "title": "Teacher" if role == "teacher" else title,
            "parameters": size,
            "seconds": 61.25 if role == "teacher" else 120.5 + seed,
            "domains": scores,
            "mean_unseen": fmean(scores[d]["miou"] for d in UNSEEN),
        }
    results = {
        "format": 1, "primary": "miou", "metrics": METRICS, "distilled": True,
        "name": name, "title": title, "seed": seed, "classes": CLASSES, "colors": COLORS,
        "source": SOURCE, "unseen": UNSEEN, "validation": VALIDATION, "models": models,
        "retention": models["student"]["mean_unseen"] / models["teacher"]["mean_unseen"],
        "pictures": {"domains": {"fog": [1]}},
    }  # fmt: skip
    results |= changes
    kept = {(domain, index) for domain, indices in results["pictures"]["domains"].items() for index in indices}
    kept |= {(domain, i) for domain, pairs in results["pictures"].get("worst", {}).items() for i, _ in pairs}
    for domain, index in sorted(kept):
        image, ids = scene(domain, np.random.default_rng([index, domains.index(domain)]))
        place = {kind: folder / "pictures" / kind for kind in ("image", "truth", "teacher", "student")}
        for path in place.values():
            path.mkdir(parents=True, exist_ok=True)
        png = f"{domain}-{index}.png"
        Image.fromarray(image).save(place["image"] / png)
        indexed(ids, COLORS).save(place["truth"] / png)
        indexed(blunder(ids, 0.5 - 0.3 * EASE[domain], fixed), COLORS).save(place["teacher"] / png)
        indexed(blunder(ids, 0.9 - strength - 0.4 * EASE[domain], rng), COLORS).save(place["student"] / png)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "recipe.yaml").write_text(f"# {title}\nstudent: {{encoder: world_student}}\nseed: {seed}\n")
    environment = {"commit": "1a2b3c4", "hardware": "2 cores", "python": "3.11.9", "command": f"segdistill run {name}"}
    (folder / "environment.json").write_text(json.dumps(environment))
    write_log(folder, ["01-domain_agnostic", "02-task"] if name == "gkd" else ["01-task"], rng)
    return results


def write_log(folder, stages, rng):
    lines = []
    for stage in stages:
        path = folder / "stages" / stage / "manifest.json"
        path.parent.mkdir(parents=True)
        kind = "task" if stage.endswith("task") else "distill"
        record = {"name": stage.split("-")[1], "type": kind, "steps": 600, "seconds": 75.5}
        path.write_text(json.dumps(record | {"finished": "2026-11-20T10:00:00"}))
        for step in range(20, 601, 20):
            loss = 2.2 * np.exp(-step / 150) + 0.4 + rng.normal(0, 0.03)
            line = {"stage": stage, "step": step, "steps": 600, "loss": loss, "lr": 1e-3, "images_per_s": 55.0}
            if kind == "distill":
                line |= {"terms": {"token": loss / 2}, "diagnostics": {"own_position_share": 0.01 + 0.7 * step / 600}}
            lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def flat(folder, score, name="gkd", teacher=0.5, **changes):
    """A run whose every domain has the same score, without pictures and log."""
    results = make_run(folder, name, **({"title": name, "pictures": {"domains": {}}} | changes))
    for role, value in (("teacher", teacher), ("student", score)):
        for domain in results["models"][role]["domains"].values():
            domain["miou"] = value
        results["models"][role]["mean_unseen"] = value
    results["retention"] = score / teacher
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def rewrite(folder, **changes):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
