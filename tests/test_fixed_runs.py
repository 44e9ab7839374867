"""Short runs whose losses and scores are written down: a change that should move no number shows here that it does not.

After a change that is meant to move them, write them anew with ``SEGDISTILL_RECORD=1 uv run pytest -n 0 FILE``
and name the reason in the commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from segdistill.methods import METHODS
from tiny_runs import TINY, tiny_file

GOLDEN = Path(__file__).parent / "golden" / "runs.json"
LOGITS = {
    "heir": {"type": "heir"},
    "logit_kd": {},
    "afdcd": {"type": "afdcd", "pool": 2, "patch": 2},
    "g2sd_specific": {"type": "g2sd", "phase": "specific"},
    "cwd_logits": {"type": "cwd", "maps": "logits"},
}
HEADS = {"semfpn": {"type": "semfpn", "width": 8},
         "mask2former": {"type": "mask2former", "queries": 8, "width": 64, "encoder_layers": 1,
                         "decoder_layers": 2}}  # fmt: skip


def settings(kind):
    """A recipe of two steps a stage: a teacher's head, a method in a distillation stage or in a task stage, a head."""
    recipe = yaml.safe_load(TINY)
    head, agnostic, task = recipe["stages"]
    for key in ("method", "proxy", "presence_weight"):
        task.pop(key)
    method = LOGITS.get(kind, {"type": kind}) | {"type": LOGITS.get(kind, {}).get("type", kind)}
    if kind in HEADS:
        recipe["student"]["head"] = HEADS[kind]
        recipe["stages"] = [head, task]
    elif kind in LOGITS:
        recipe["stages"] = [head, task | {"method": method}]
    else:
        recipe["stages"] = [head, agnostic | {"method": method}, task | {"freeze_encoder": True}]
    for stage in recipe["stages"]:
        stage["steps"] = 2
    return recipe


KINDS = [*(name for name in METHODS if name not in LOGITS), *LOGITS, *HEADS]


def measured(folder, kind):
    from segdistill.recipe import load
    from segdistill.runs.execute import run

    path = tiny_file(folder, yaml.safe_dump(settings(kind), sort_keys=False))
    results = run(load(path), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {name: domain["iou"] for name, domain in results["models"]["student"]["domains"].items()}
    return {
        "terms": [[line["stage"], line["step"], line["terms"]] for line in lines],
        "iou": scores,
    }


def flat(value):
    """Every number of a tree, in order; None stays."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in (key, *flat(value[key]))]
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_scores_are_what_they_were(tmp_path, kind):
    made = measured(tmp_path, kind)
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("SEGDISTILL_RECORD"):
        GOLDEN.write_text(json.dumps(known | {kind: made}, indent=1) + "\n")
        return
    for one, other in zip(flat(made), flat(known[kind]), strict=True):
        assert one == (pytest.approx(other, rel=2e-3, abs=5e-3) if isinstance(other, float) else other)
