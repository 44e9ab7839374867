"""The steps that ``accelerator.py`` measures. Each function returns what builds a step for a number of images."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerator_clock import Bench
from PIL import Image
from torch import Tensor

from segdistill.data.dataset import Dataset, Sample
from segdistill.data.loader import StepBatches, loaded
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.encoders.walks import linear_patches
from segdistill.heads import HEADS
from segdistill.methods import METHODS, qsd
from segdistill.methods.qsd import QSDHead
from segdistill.models import Segmenter, View
from segdistill.models.segmenter import positions
from segdistill.ops import full_precision, generator, own_mask, random_mask
from segdistill.runs.evaluation import evaluate
from segdistill.stages.views import student_views, teacher_views
from segdistill.tasks.semantic import SemanticMetric
from segdistill.train.blocks import compile_blocks
from segdistill.types import Mask, Views

CLASSES = 19


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
        endless: Iterator[dict[str, Tensor]] = loaded(steps, range(10**6), workers)
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
