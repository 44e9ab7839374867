"""Speed on one device: distillation steps, task steps, sliding windows, the input pipeline. See accelerator.sh.

Every step is forward, backward and optimiser, on random images and random weights. Forms of a distillation step:

- ``naive``: as the authors' code does it: two passes of the student over the whole batch, attention under autocast,
  torch's own choice of AdamW, and every loss term read back to the host at every step;
- ``ours``: one pass of plain and masked images, attention in fp32 (products in TF32), fused AdamW, nothing read back;
- ``compiled``: ours, with the setting ``compile``;
- ``cached``: ours, with the teacher's tokens at hand; ``cached, compiled``: both.

Nothing is compared with a program that does less: the naive form calls the package's own layers and loss. A step of
ours should not wait for the device: the page says how often it does by torch's check.

``share of peak`` is the step's matrix operations (counted by torch) per second over those of a large matrix product in
the same precision on the same device. Measurements that no time is left for are named in the page.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segdistill.data.dataset import Dataset, Sample
from segdistill.data.loader import StepBatches, batches
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.encoders.walks import linear_patches
from segdistill.environment import commit, hardware
from segdistill.files import write_atomic
from segdistill.heads import HEADS
from segdistill.methods import METHODS, qsd
from segdistill.methods.qsd import QSDHead
from segdistill.models import Segmenter, View, Window
from segdistill.models.segmenter import positions
from segdistill.ops import full_precision, generator, own_mask, random_mask
from segdistill.runs.evaluation import evaluate
from segdistill.stages.views import student_views, teacher_views
from segdistill.tasks.semantic import SemanticMetric
from segdistill.train.blocks import compile_blocks
from segdistill.types import Mask, Views

CLASSES = 19
FORMS = ("naive", "ours", "cached", "compiled", "cached, compiled")


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


def distillation(bench: Bench, pair: tuple[str, str], size: tuple[int, int, int], form: str) -> Callable[[int], Any]:
    """A GKD step of one form, for a number of images."""
    pixels, patch, _ = size

    def build(images: int) -> Callable[[], object]:
        # The world's encoders have one patch; a plain ViT is built for the pixels and the patch.
        plain = {} if pair[0].startswith("world") else {"patch": patch}
        teacher, student = (
            build_encoder(EncoderConfig(name=name, image_size=(pixels, pixels), **plain), seed=0).to(bench.device)
            for name in pair
        )
        teacher.eval().requires_grad_(False)
        gkd = METHODS["gkd"]
        method = gkd(gkd.Config(), student.spec(), teacher.spec()).to(bench.device)
        weights = [*student.parameters(), *method.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True if form != "naive" else None)
        if form == "naive":
            for part in (method.patch_head, method.fea_head, method.token_head):
                part.forward = partial(half_attention, part)
        pictures = torch.rand(images, 3, pixels, pixels, device=bench.device)
        h, w = student.mask_grid(pixels, pixels)
        drawn = own_mask(random_mask(images, h * w, rng=generator("mask"), **method.mask_settings()))
        mask = Mask(samples=drawn.samples.to(bench.device), tokens=drawn.tokens.to(bench.device))
        hidden = torch.zeros(images, h * w, dtype=torch.bool, device=bench.device)
        hidden[mask.samples] = mask.tokens
        everything = Mask(samples=torch.arange(images, device=bench.device), tokens=hidden)
        if "compiled" in form:
            compile_blocks(torch.nn.ModuleList([teacher, student, method]))
        known = None
        if "cached" in form:
            with bench.autocast():
                known = teacher_views(teacher, pictures, (-1,))

        def step() -> None:
            with bench.autocast():
                target = known or teacher_views(teacher, pictures, (-1,))
                if form == "naive":
                    views = Views(student(pictures, (-1,)), student(pictures, (-1,), hidden), everything)
                else:
                    views = student_views(student, pictures, (-1,), mask)
                terms = method(views, target)
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if form == "naive":
                [value.item() for value in terms.values()]

        return step

    return build


def half_attention(head: QSDHead, student: Tensor, teacher: Tensor, _: float = 0.0) -> Tensor:
    """A head as plain PyTorch under autocast, logits in half precision."""
    return (head.proj_q(student) @ teacher.transpose(1, 2)).softmax(-1) @ head.proj_v(student)


def attention(bench: Bench, shape: tuple[int, int, int], form: str) -> Callable[[int], Any]:
    """Forward and backward of one QSD head: tokens of an image, widths of student and teacher."""
    count, own, wide = shape

    def build(images: int) -> Callable[[], object]:
        head = QSDHead(own, wide).to(bench.device)
        student = torch.randn(images, count, own, device=bench.device, requires_grad=True)
        teacher = torch.randn(images, count, wide, device=bench.device)

        def step() -> None:
            with bench.autocast():
                if form == "whole, autocast":
                    found = half_attention(head, student, teacher)
                else:
                    query, values = head.proj_q(student), head.proj_v(student)
                    if form == "fused":
                        found = qsd.fused(query, teacher, values)
                    else:
                        with full_precision(query):
                            inputs = query.float(), teacher, values.float()
                            found = qsd.whole(*inputs) if form == "whole" else qsd.in_rows(*inputs, most=2**24)
            (found.float() - teacher).square().mean().backward()

        return step

    return build


def patches(bench: Bench, name: str, pixels: int, patch: int, *, linear: bool) -> Callable[[int], Any]:
    """Forward of a patch embedding: a convolution, or a matrix product."""

    def build(images: int) -> Callable[[], object]:
        config = EncoderConfig(name=name, image_size=(pixels, pixels), patch=patch)
        embed = build_encoder(config, seed=0).backbone.patch_embed.to(bench.device)
        pictures = torch.rand(images, 3, pixels, pixels, device=bench.device)

        def step() -> None:
            with bench.autocast():
                (linear_patches(embed, pictures) if linear else embed(pictures)).float().sum().backward()

        return step

    return build


def task(bench: Bench, kind: str, *, frozen: bool) -> Callable[[int], Any]:
    """A task step of a head on an encoder, frozen or trained."""
    side = bench.setting.task_size

    def build(images: int) -> Callable[[], object]:
        config = EncoderConfig(name=bench.setting.task_encoder, image_size=(side, side))
        encoder = build_encoder(config, seed=0)
        taps, head = encoder.record.taps, HEADS[kind]
        small = {"width": 64, "queries": 8, "encoder_layers": 1, "decoder_layers": 1} if not bench.cuda else {}
        settings = ({"width": 416} if bench.cuda else {"width": 16}) if kind == "semfpn" else small
        model = Segmenter(
            encoder,
            head(head.Config(**settings), encoder.spec(taps).channels, encoder.strides(taps), CLASSES),
            taps,
            CLASSES,
        ).to(bench.device)
        if frozen:
            model.freeze_encoder()
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        batch = {"image": torch.randint(256, (images, 3, side, side), dtype=torch.uint8, device=bench.device),
                 "label": torch.randint(CLASSES, (images, side, side), device=bench.device)}  # fmt: skip
        model.train()

        def step() -> None:
            with bench.autocast():
                terms = model.loss(batch)
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return build


def windows(bench: Bench, *, alone: bool) -> Callable[[int], Any]:
    """The evaluation of images through windows, up to their confusion matrices; ``alone``: the network's passes."""

    def build(images: int) -> Callable[[], object]:
        side = bench.setting.window.size[0]
        encoder = build_encoder(EncoderConfig(name=bench.setting.task_encoder, image_size=(side, side)), seed=0)
        taps, head = encoder.record.taps, HEADS["semfpn"]
        model = Segmenter(
            encoder,
            head(head.Config(width=48), encoder.spec(taps).channels, encoder.strides(taps), CLASSES),
            taps,
            CLASSES,
        ).to(bench.device)
        size = bench.setting.image
        batch = {"image": torch.randint(256, (images, 3, *size), dtype=torch.uint8),
                 "label": torch.randint(CLASSES, (images, *size), dtype=torch.uint8)}  # fmt: skip
        view, window = {"noise": View(window=bench.setting.window)}, bench.setting.window
        rows, columns = (positions(*side) for side in zip(size, window.size, window.stride, strict=True))
        count = images * len(rows) * len(columns)
        passes = [torch.rand(min(window.batch, count - first), 3, *window.size, device=bench.device)
                  for first in range(0, count, window.batch)]  # fmt: skip
        model.eval()

        def network() -> None:
            with torch.inference_mode(), bench.autocast():
                for each in passes:
                    model.decode(model.features(each))

        def step() -> None:
            metric = lambda: SemanticMetric(CLASSES, bench.device)  # noqa: E731
            evaluate(model, {"noise": [batch]}, metric, views=view, precision=bench.autocast)

        return network if alone else step

    return build


class Photographs(Dataset):
    """JPEG files of noise that has a photograph's size on disk; every image is read and decoded."""

    names, colors = ("none",), np.zeros((1, 3), np.uint8)

    def __init__(self, folder: Path, count: int, size: tuple[int, int]) -> None:
        self.paths = [folder / f"{number}.jpg" for number in range(count)]
        rng = np.random.default_rng(0)
        for path in self.paths:
            coarse = Image.fromarray(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8))
            out = io.BytesIO()
            coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
            path.write_bytes(out.getvalue())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        with Image.open(self.paths[index]) as image:
            return Sample(np.asarray(image.convert("RGB")), None, "photographs", str(index))


def pipeline(folder: Path, side: int, workers: int) -> Callable[[int], Any]:
    """One batch out of the loader: read, decode, RandAugment, crop, erase."""
    photographs = Photographs(folder, 64, (375, 500) if side > 64 else (40, 56))

    def build(images: int) -> Callable[[], object]:
        transform = DistillTransform(DistillAugment(), (side, side))
        steps = StepBatches(photographs, transform, batch=images, seed=(0,), repeats=3)
        endless: Iterator[dict[str, Tensor]] = batches(steps, range(10**6), workers)
        return lambda: next(endless)

    return build


def stream(bench: Bench, name: str, build: Callable[[int], Any], images: int) -> None:
    """Images per second out of the loader, after every worker has begun."""
    if time.monotonic() > bench.ends:
        bench.left.append(f"Input pipeline: {name}")
        return
    print(f"Input pipeline: {name}", flush=True)
    following = build(images)
    for _ in range(4 * (os.cpu_count() or 1) if bench.cuda else 1):
        following()
    began, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - began < bench.setting.seconds:
        following()
        count += 1
    seconds = (time.perf_counter() - began) / count
    row = {"part": "Input pipeline", "name": name, "images": images, "seconds": seconds}
    bench.rows.append(
        row | {"images_per_s": images / seconds, "flops": 0, "share": None, "memory_mib": None, "waits": None}
    )


def run(bench: Bench, workers: int, parts: Collection[str]) -> None:
    """The measurements of ``parts``, the most wanted first."""
    bench.peak = matmul_peak(bench)
    torch.set_float32_matmul_precision("high" if bench.cuda else "highest")  # as the package does under bf16-mixed
    for name, measure in PARTS.items():
        if name in parts:
            measure(bench, workers)
    bench.write()


def run_distillation(bench: Bench, _: int) -> None:
    """Steps of every pair, size and form."""
    for size in bench.setting.sizes:
        for pair in bench.setting.pairs:
            for form in FORMS if bench.cuda else tuple(form for form in FORMS if "compiled" not in form):
                name = f"{pair[0]} -> {pair[1]}, {size[0]}/{size[1]}: {form}"
                bench.measure("Distillation step", name, distillation(bench, pair, size, form), size[2])


def run_layers(bench: Bench, _: int) -> None:
    """QSD heads and patch embeddings."""
    for shape, images in (((256, 384, 768), 256), ((4096, 384, 768), 8), ((1024, 192, 192), 64)):
        for form in ("whole, autocast", "whole", "in rows", *(("fused",) if shape[2] <= qsd.FUSED else ())):
            name = f"{shape[0]} tokens, {shape[1]} -> {shape[2]} channels: {form}"
            tokens = shape if bench.cuda else (16, 8, 8)
            bench.measure("One QSD head", name, attention(bench, tokens, form), images if bench.cuda else 2)
    for name in bench.setting.embeddings:
        pixels, patch, images = bench.setting.sizes[0]
        for linear in (False, True):
            form = f"{name}: {'matrix product' if linear else 'convolution'}"
            bench.measure("Patch embedding", form, patches(bench, name, pixels, patch, linear=linear), images)


def run_tasks(bench: Bench, _: int) -> None:
    """Steps of two heads."""
    for kind in ("semfpn", "mask2former"):
        for images in bench.setting.task_batches:
            for frozen in (False, True):
                name = f"{kind}, {images} images, {'frozen' if frozen else 'trained'} encoder"
                bench.measure("Task step", name, task(bench, kind, frozen=frozen), images)


def run_windows(bench: Bench, _: int) -> None:
    """Evaluation by windows."""
    for form in ("network alone", "evaluation"):
        name = f"{bench.setting.image[0]} x {bench.setting.image[1]}: {form}"
        bench.measure("Evaluation by windows", name, windows(bench, alone=form == "network alone"), 1)


def run_pipeline(bench: Bench, workers: int) -> None:
    """The loader."""
    side = bench.setting.sizes[0][0]
    with tempfile.TemporaryDirectory() as folder:
        for count in dict.fromkeys((0, workers)):
            name = f"{side} pixels, {count} workers"
            stream(bench, name, pipeline(Path(folder), side, count), 64 if bench.cuda else 4)


PARTS = {
    "distillation": run_distillation,
    "layers": run_layers,
    "tasks": run_tasks,
    "windows": run_windows,
    "pipeline": run_pipeline,
}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"))
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--commit", default=commit(), help="of the sources, where they are no checkout")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    bench = Bench(TINY if options.tiny else FULL, options.minutes, options.out, options.commit)
    run(bench, 1 if options.tiny else options.workers, options.parts)
    print(bench.page())


if __name__ == "__main__":
    main()
