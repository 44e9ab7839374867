"""Ends runs at random moments, continues them, and compares with the uninterrupted run: weights, log and scores.

    python benchmarks/kills.py --count 200 --seed 0 --out runs/kills

``--kinds`` names what is ended: ``workers`` (two processes that make batches), ``mask2former``, ``torchrun`` (two
processes; the loader's and the head's kinds run in one). Signals: SIGKILL, SIGTERM, Ctrl-C (SIGINT to the whole
process group, as a terminal sends it), and SIGKILL to one loader process or one rank. After a signal the command must
end within 45 seconds with a status other than 0, at most one line of its own per process and no traceback, and leave no
process behind. Every trial is one line of ``trials.jsonl`` in ``--out``; trials that stand there are not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = """
name: kills
data: {size: [32, 64], classes: world13}
teacher: {encoder: {name: world_teacher}, head: {type: semfpn, width: 8}}
student: {encoder: {name: world_student}, head: HEAD}
stages:
  - {type: task, name: teacher, model: teacher, data: {domains: [game], images: 4}, batch: 2, steps: 2}
  - {type: distill, name: agnostic, data: {domains: [proxy], images: 4}, batch: 2, steps: 8, method: {type: gkd}}
  - {type: task, name: task, data: {domains: [game], images: 4}, batch: 2, steps: 8, freeze_encoder: true}
evaluate: {domains: [game, fog], unseen: [fog], images: 2, pictures: 1}
log_every: 2
checkpoint_every: 3
accelerator: cpu
"""
SEMFPN = "{type: semfpn, width: 8}"
MASK2FORMER = (
    "{type: mask2former, queries: 8, width: 64, encoder_layers: 1, decoder_layers: 2, heads: 2, "
    "encoder_feedforward: 32, decoder_feedforward: 32}"
)
KINDS = {"workers": (SEMFPN, 2), "mask2former": (MASK2FORMER, 0), "torchrun": (SEMFPN, 0)}
SIGNALS = ("kill", "term", "ctrl-c", "kill one")
PRELOAD = ["segdistill.runs.execute", "segdistill.cli.commands", "segdistill.report", "segdistill.heads.mask2former",
           "segdistill.progress", "torch.utils.tensorboard"]  # fmt: skip
LIMIT = 45.0  # seconds from a signal to the end of the command, and of everything that it started


def command(arguments: list[str], output: Path, cache: Path) -> None:
    """The command line in a process of a fork server, at the head of a session of its own."""
    from segdistill.cli import main

    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as the command line by itself on Linux up to Python 3.13
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["SEGDISTILL_CACHE"] = str(cache)
    sys.argv = ["segdistill", *arguments]
    main()


class Run:
    """One start of the command."""

    def __init__(self, kind: str, place: Path, recipe: Path, folder: Path) -> None:
        arguments = ["run", str(recipe), "--out", str(folder), f"workers={KINDS[kind][1]}"]
        self.folder = str(folder)
        self.output, self.began = place / "output.txt", time.monotonic()
        cache = place.parent / "cache"
        if kind == "torchrun":
            words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
            words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "segdistill", *arguments]
            environment = os.environ | {"SEGDISTILL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
            with self.output.open("w") as file:
                process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
            self.pid, self.poll, self.join = process.pid, process.poll, lambda: process.wait()
        else:
            child = multiprocessing.get_context("forkserver").Process(
                target=command, args=(arguments, self.output, cache)
            )
            child.start()
            assert child.pid is not None
            self.pid, self.poll, self.join = (
                child.pid,
                lambda: child.exitcode,
                lambda: (child.join(), child.exitcode)[1],
            )

    def wait(self, seconds: float) -> int | None:
        """The exit status; None where it still runs after ``seconds``."""
        end = time.monotonic() + seconds
        while (status := self.poll()) is None and time.monotonic() < end:
            time.sleep(0.02)
        return status

    @staticmethod
    def _command(process: Path) -> str:
        try:
            return (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return ""

    def members(self) -> list[int]:
        """Living processes of its session, and those that torchrun has put into sessions of their own."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ours = int(fields[3]) == self.pid or self.folder in self._command(stat.parent)
            if fields[0] != "Z" and ours:
                found.append(int(stat.parent.name))
        return found

    def send(self, what: str, rng: random.Random) -> str:
        """Send a signal; returns what was really sent."""
        others = [pid for pid in self.members() if pid != self.pid]
        if self.pid not in self.members():  # it has ended and was not waited for yet: a signal would go nowhere
            return "nothing: it had ended"
        try:
            if what == "ctrl-c":
                os.killpg(self.pid, signal.SIGINT)
            elif what == "kill one" and others:
                os.kill(rng.choice(others), signal.SIGKILL)
            elif what == "term":
                os.kill(self.pid, signal.SIGTERM)
            else:
                what = "kill"
                os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            what = "nothing: it had ended"
        return what


def facts(folder: Path) -> dict[str, Any]:
    """All of a run that two runs must have in common."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    models = json.loads((folder / "results.json").read_text())["models"]
    return {
        "weights": {path.parent.name + path.name: path.read_bytes() for path in folder.rglob("*.safetensors")},
        "log": [{k: v for k, v in line.items() if k not in ("images_per_s", "crc")} for line in lines],
        "scores": {role: {k: v for k, v in model.items() if k != "seconds"} for role, model in models.items()},
        "pictures": {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")},
    }


def trial(kind: str, rng: random.Random, place: Path, reference: dict[str, Any], seconds: float) -> dict[str, Any]:
    """End a run, perhaps twice, and continue it to its end."""
    folder, faults, sent = place / "run", [], []
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(rng.choice((1, 1, 2))):
        what, delay = rng.choice(SIGNALS), rng.uniform(0.2, 1.0) * seconds
        run = Run(kind, place, place / "recipe.yaml", folder)
        if run.wait(delay) is not None:
            break
        what, at = run.send(what, rng), time.monotonic()
        status = run.wait(LIMIT)
        sent.append({"signal": what, "after_s": round(delay, 2), "status": status, "end_s": time.monotonic() - at})
        faults += _ended_badly(run, what, status, kind)
    run = Run(kind, place, place / "recipe.yaml", folder)
    if run.wait(300) != 0:
        faults.append(f"not continued: {run.output.read_text()[-2000:]}")
        _end(run)
        return {"sent": sent, "faults": faults}
    ours = facts(folder)
    faults += [f"{key} differ" for key in ours if ours[key] != reference[key]]
    faults += [f"left: {path.relative_to(folder)}" for path in folder.rglob("*") if path.name.startswith(".")]
    return {"sent": sent, "faults": faults}


def _ended_badly(run: Run, what: str, status: int | None, kind: str) -> list[str]:
    """What was wrong with the end that a signal brought about."""
    faults, text = [], run.output.read_text()
    if status is None:
        faults.append(f"{what}: still running after {LIMIT:.0f} s")
    if status == 0 and what in ("kill", "term", "ctrl-c"):
        faults.append(f"{what}: exit status 0")
    ours = [line for line in text.splitlines() if line.startswith("segdistill: ")]
    if len(ours) > (2 if kind == "torchrun" else 1):
        faults.append(f"{what}: {len(ours)} lines")
    blocks = text.split("Traceback")
    if (len(blocks) > 1 and kind != "torchrun") or any("segdistill/" in block for block in blocks[1:]):
        faults.append(f"{what}: traceback {blocks[1][-600:]}")
    end = time.monotonic() + 30
    while run.members() and time.monotonic() < end:
        time.sleep(0.1)
    if left := run.members():
        faults.append(f"{what}: {len(left)} processes left")
        _end(run)
    return faults


def _end(run: Run) -> None:
    for pid in run.members():
        os.kill(pid, signal.SIGKILL)
    run.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    options = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "trials.jsonl"
    done = {json.loads(line)["number"] for line in log.read_text().splitlines()} if log.exists() else set()
    references: dict[str, tuple[dict[str, Any], float]] = {}
    for number in range(options.count):
        kind = options.kinds[number % len(options.kinds)]
        place = (options.out / kind).absolute()
        if number in done:
            continue
        if kind not in references:
            place.mkdir(exist_ok=True)
            (place / "recipe.yaml").write_text(RECIPE.replace("HEAD", KINDS[kind][0]))
            for _ in range(2):  # the second one finds its images rendered
                shutil.rmtree(place / "whole", ignore_errors=True)
                run = Run(kind, place, place / "recipe.yaml", place / "whole")
                if run.wait(600) != 0:
                    sys.exit(run.output.read_text())
                seconds = time.monotonic() - run.began
            references[kind] = facts(place / "whole"), seconds
        outcome = trial(kind, random.Random(f"{options.seed} {number}"), place, *references[kind])
        line = {"number": number, "seed": options.seed, "kind": kind, **outcome}
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(number, kind, [each["signal"] for each in outcome["sent"]], outcome["faults"] or "equal", flush=True)
    trials = [json.loads(line) for line in log.read_text().splitlines()]
    signals = sum(len(each["sent"]) for each in trials)
    print(f"{len(trials)} runs, {signals} signals, {sum(bool(each['faults']) for each in trials)} with a fault")


if __name__ == "__main__":
    main()
