"""How good is a student's encoder while it is being distilled? A frozen probe per snapshot, on validation domains only.

    uv run python benchmarks/probe.py runs/x/stages/00-task_agnostic/checkpoint --out runs/probe      # once

Each checkpoint (``step-*.pt``) or encoder (``*.safetensors``) becomes one run of the recipe below: a fresh head on
the frozen encoder, source labels, scores on the source and the validation domains. Scores go to ``OUT/probes.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from segdistill.config import parse
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.recipe import Recipe
from segdistill.runs.execute import run
from segdistill.weights import save_encoder


def recipe(name: str, weights: Path, steps: int) -> Recipe:
    """Head on the frozen encoder in ``weights``; validation domains only."""
    head = {"type": "semfpn", "width": 48}
    stage = {
        "type": "task",
        "name": "probe",
        "freeze_encoder": True,
        "data": {"domains": ["game"], "images": 1000},
        "augment": {"scale": [0.8, 1.6], "max_share": 0.9},
        "optimizer": {"lr": 2e-3, "warmup": 0.05, "clip": 1.0},
        "steps": steps,
    }
    domains = {"domains": ["game", "dusk", "haze", "drizzle"], "validation": ["dusk", "haze", "drizzle"]}
    values = {
        "name": name,
        "precision": "bf16-mixed",
        "data": {"size": [64, 128], "classes": "world13"},
        "student": {"encoder": {"name": "world_student", "weights": str(weights)}, "head": head},
        "stages": [stage],
        "evaluate": domains | {"split": "val", "images": 60, "pictures": 0},
    }
    return parse(Recipe, values)


def encoder_file(snapshot: Path, out: Path) -> Path:
    """The snapshot as an encoder file."""
    if snapshot.suffix == ".safetensors":
        return snapshot
    state = torch.load(snapshot, map_location="cpu", weights_only=True)
    encoder = build_encoder(EncoderConfig(name="world_student"), seed=0)
    encoder.load_state_dict(state["modules"]["student"])
    path = out / "encoders" / f"{snapshot.stem}.safetensors"
    save_encoder(encoder, path)
    return path


def main() -> None:
    """Probe every snapshot that has no score yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshots", type=Path, nargs="+", help="files, or folders with step-*.pt")
    parser.add_argument("--out", type=Path, default=Path("runs/probe"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = [
        file for path in options.snapshots for file in (sorted(path.glob("step-*.pt")) if path.is_dir() else [path])
    ]
    for file in files:
        name = "probe_" + "".join(c if c.isalnum() else "_" for c in file.stem.lower())
        began = time.perf_counter()
        results = run(recipe(name, encoder_file(file, options.out), options.steps), options.out / name)
        scores = {domain: score["miou"] for domain, score in results["models"]["student"]["domains"].items()}
        validation = [scores[domain] for domain in ("dusk", "haze", "drizzle")]
        line = {"snapshot": file.name, "validation": sum(validation) / len(validation), "domains": scores}
        with (options.out / "probes.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(line | {"seconds": round(time.perf_counter() - began, 1)}) + "\n")


if __name__ == "__main__":
    main()
