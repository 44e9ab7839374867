"""The clock of ``accelerator.py``: settings, the measurement of a step, the page."""

from __future__ import annotations

import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from segdistill.environment import hardware
from segdistill.files import write_atomic
from segdistill.models import Window


@dataclass(frozen=True)
class Setting:
    """What differs between a device and the tiny form for a CPU test."""

    pairs: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[int, int, int], ...]  # pixels, patch, images per step
    embeddings: tuple[str, ...]
    task_encoder: str
    task_size: int
    task_batches: tuple[int, ...]
    image: tuple[int, int]  # of the evaluation
    window: Window
    seconds: float  # of one measurement


FULL = Setting(
    pairs=(("dinov2_b", "deit_s"), ("dinov2_s", "deit_ti")),
    sizes=((224, 14, 256), (512, 16, 64)),
    embeddings=("dinov2_b", "deit_s"),
    task_encoder="deit_s",
    task_size=512,
    task_batches=(4, 16),
    image=(1024, 2048),
    window=Window(size=(512, 512), stride=(341, 341), batch=8),
    seconds=2.5,
)
TINY = Setting(
    pairs=(("world_teacher", "world_student"),),
    sizes=((32, 8, 2),),
    embeddings=("deit_ti",),
    task_encoder="world_student",
    task_size=32,
    task_batches=(2,),
    image=(48, 64),
    window=Window(size=(32, 32), stride=(16, 16)),
    seconds=0.05,
)


class Bench:
    """One run of all measurements: the device, the clock, what was found so far."""

    def __init__(self, setting: Setting, minutes: float, out: Path, commit: str) -> None:
        self.commit = commit
        self.setting, self.out, self.ends = setting, out, time.monotonic() + 60 * minutes
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.rows: list[dict[str, Any]] = []
        self.left: list[str] = []
        self.peak = 0.0

    def autocast(self) -> Any:
        """bf16 on a GPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.cuda else nullcontext()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def timed(self, step: Callable[[], object], warmup: int = 3) -> float:
        """Median seconds of a step, over as many as fit the time."""
        for _ in range(warmup if self.cuda else 1):
            step()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        times, ends = [], time.monotonic() + self.setting.seconds
        while len(times) < 3 or (time.monotonic() < ends and len(times) < 200):
            began = time.perf_counter()
            step()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def waits(self, step: Callable[[], object]) -> int | None:
        """How often a step waits for the device, as torch's check sees it; None without a GPU."""
        if not self.cuda:
            return None
        self.wait()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with torch.compiler.set_stance("force_eager"), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("called a synchronizing" in str(each.message) for each in caught)

    def measure(self, part: str, name: str, build: Callable[[int], Callable[[], object]], images: int) -> None:
        """Time the step that ``build(images)`` makes, with half as many images where they do not fit into memory."""
        title = f"{part}: {name}"
        if time.monotonic() > self.ends:
            self.left.append(title)
            return
        print(title, flush=True)
        while images:
            try:
                gc.collect()
                step = build(images)
                with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
                    step()
                waits = self.waits(step)
                seconds = self.timed(step)
                row = {"part": part, "name": name, "images": images, "seconds": seconds, "waits": waits}
                row |= {"images_per_s": images / seconds, "flops": counter.get_total_flops()}
                row["share"] = row["flops"] / seconds / self.peak
                row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20 if self.cuda else None
                self.rows.append(row)
                self.write()
                return
            except torch.cuda.OutOfMemoryError:
                images //= 2
                torch.cuda.empty_cache()
            except Exception as error:  # noqa: BLE001  the other measurements are still wanted
                self.left.append(f"{title}: {type(error).__name__}: {str(error)[:200]}")
                return

    def write(self) -> None:
        """The page and the numbers so far."""
        self.out.mkdir(parents=True, exist_ok=True)
        facts = {"hardware": hardware(), "torch": torch.__version__, "commit": self.commit, "peak": self.peak}
        text = json.dumps(facts | {"rows": self.rows, "left": self.left}, indent=1)
        write_atomic(self.out / "accelerator.json", lambda file: file.write(text.encode()))
        write_atomic(self.out / "accelerator.md", lambda file: file.write(self.page().encode()))

    def page(self) -> str:
        """As Markdown."""
        lines = ["# Speed on one device", "", f"{hardware()}, torch {torch.__version__}, commit {self.commit}, "
                 f"{'bf16 autocast' if self.cuda else 'float32'}; matrix product: {self.peak / 1e12:.1f} TFLOP/s. "
                 "`benchmarks/accelerator.sh`"]  # fmt: skip
        for part in dict.fromkeys(row["part"] for row in self.rows):
            lines += ["", f"## {part}", ""]
            lines += [
                "| what | images | ms | images/s | peak MiB | share of peak | waits | times the first |",
                "|---" * 8 + "|",
            ]
            own = [row for row in self.rows if row["part"] == part]
            for row in own:
                first = next(each for each in own if group(each) == group(row))
                memory = "-" if row["memory_mib"] is None else f"{row['memory_mib']:,.0f}"
                ratio = row["images_per_s"] / first["images_per_s"]
                cells = [row["name"], row["images"], f"{1000 * row['seconds']:.1f}", f"{row['images_per_s']:,.1f}"]
                share = "-" if row["share"] is None else f"{100 * row['share']:.0f} %"
                cells += [memory, share, "-" if row["waits"] is None else row["waits"], f"{ratio:.2f}"]
                lines.append(f"| {' | '.join(map(str, cells))} |")
        if self.left:
            lines += ["", "Not measured:", "", *(f"- {line}" for line in self.left)]
        return "\n".join([*lines, ""])


def group(row: dict[str, Any]) -> str:
    """What a row's ratio is taken within: the name before its form, or before its last setting."""
    name: str = row["name"]
    return name.partition(": ")[0] if ": " in name else name.rpartition(", ")[0]


def matmul_peak(bench: Bench) -> float:
    """Operations per second of a large matrix product in the precision of the steps."""
    side = 8192 if bench.cuda else 256
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / bench.timed(lambda: a @ b)
