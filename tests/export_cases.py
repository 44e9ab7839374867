"""Exports in a process of its own: tracing with symbols for sizes does not go together with checked annotations."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "export.md"

SEMFPN = {"type": "semfpn", "width": 8}
MASK2FORMER = {"type": "mask2former", "width": 64, "queries": 4, "encoder_layers": 1, "decoder_layers": 3}
MASKED_DPT = {"type": "masked_dpt", "width": 64, "queries": 6, "decoder_layers": 1, "neck_channels": [8, 8, 8, 8]}
FASTER_RCNN = {"type": "faster_rcnn", "width": 16, "hidden": 32, "anchors": [16, 32, 64, 128, 256], "proposals": 200,
               "most": 40}  # fmt: skip
CASES = {
    "vit": ({"name": "small_vit", "image_size": [64, 64]}, SEMFPN),
    "vit_mask2former": ({"name": "small_vit", "image_size": [64, 64]}, MASK2FORMER | {"decoder_layers": 1}),
    "convnext": ({"name": "timm:test_convnext"}, SEMFPN),
    "resnet_deeplabv3plus": ({"name": "world_resnet"}, {"type": "deeplabv3plus", "width": 8, "low_width": 8}),
    "mit_daformer": ({"name": "world_mit"}, {"type": "daformer", "width": 8}),
    "vit_rein": ({"name": "small_vit", "image_size": [64, 64], "rein": {"tokens": 5, "rank": 2}}, SEMFPN),
    "vit_objects": ({"name": "small_vit", "image_size": [64, 64]}, MASKED_DPT),
    "convnext_objects": ({"name": "timm:test_convnext"}, MASKED_DPT),
    "vit_mask2former_objects": ({"name": "small_vit", "image_size": [64, 64]}, MASK2FORMER | {"decoder_layers": 1}),
    "vit_boxes": ({"name": "small_vit", "image_size": [64, 64]}, FASTER_RCNN),
    "convnext_boxes": ({"name": "timm:test_convnext"}, FASTER_RCNN),
    **{name: ({"name": f"small_{name}"}, SEMFPN) for name in ("deit", "dinov3", "sam", "swin")},
}
SIZES = ((2, 96, 128), (1, 64, 64), (3, 70, 150))


def add_small_networks() -> None:
    """Put ViT, DeiT, DINOv3, SAM and Swin into the table of encoders, as timm builds them but narrow and short."""
    from dataclasses import replace
    from functools import partial

    from timm import create_model

    from segdistill.encoders import ENCODERS
    from segdistill.encoders.anytimm import timm_record

    narrow = {"pretrained": False, "embed_dim": 48, "depth": 2, "num_heads": 2}
    vit = {"depth": 2, "width": 48, "taps": (0, 0, 1, 1), "image_size": (64, 64)}
    for name, real in (("deit", "deit_s"), ("dinov3", "dinov3_s")):
        record = ENCODERS[real]
        ENCODERS[f"small_{name}"] = replace(record, build=partial(create_model, record.timm_name, **narrow), **vit)
    plain = timm_record("test_vit")
    ENCODERS["small_vit"] = replace(plain, build=partial(create_model, "test_vit", pretrained=False, depth=2), **vit | {
        "width": plain.width})  # fmt: skip
    windows = partial(create_model, "samvit_base_patch16", global_attn_indexes=(1,), window_size=3, **narrow)
    ENCODERS["small_sam"] = replace(ENCODERS["sam_b"], build=windows, **vit | {"width": 256, "stages": ((48, 16),) * 2})
    swin = timm_record("swin_tiny_patch4_window7_224")
    ENCODERS["small_swin"] = replace(
        swin,
        build=partial(create_model, swin.timm_name, pretrained=False, embed_dim=24, depths=(2, 2, 1, 1),
                      num_heads=(1, 2, 2, 4), window_size=2),
        image_size=(64, 64),
        width=192,
        stages=tuple((24 << stage, 4 << stage) for stage in range(4)),
    )  # fmt: skip


def build(encoder: dict, head: dict, classes: int = 7, task: str = "semantic"):
    """A network with random weights."""
    from segdistill.config import parse
    from segdistill.encoders import build_encoder
    from segdistill.stages.base import ModelConfig
    from segdistill.stages.task import build_model
    from segdistill.tasks.table import TASKS

    model = parse(ModelConfig, {"encoder": encoder, "head": head})
    names, network = [f"class {number}" for number in range(classes)], build_encoder(model.encoder, seed=0)
    if network.rein is not None:  # it starts by changing nothing
        network.rein.refine.weight.data.fill_(0.01)
    return build_model(TASKS[task], model, network, names, seed=0, stage="test").eval()


def pixels(shape: tuple[int, int, int]):
    """Smooth images (N, H, W, 3) uint8: of pure noise a random network makes nothing but ties."""
    import numpy as np

    count, height, width = shape
    rng = np.random.default_rng(sum(shape))
    coarse = rng.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3))
    return coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width].astype(np.uint8)


def export_case(name: str, size: tuple[int, int] | None, out: Path) -> None:
    """Trace, convert and run a case; writes what came of it as JSON."""
    from segdistill.export.check import View, torch_runner
    from segdistill.export.graph import Graph
    from segdistill.export.onnx_file import onnx_runner, operators, to_onnx, trace

    add_small_networks()
    if name.endswith(("_objects", "_boxes")):
        return export_objects(name, size, out)
    segmenter = build(*CASES[name])
    program = trace(Graph(segmenter, size), (96, 128))
    model = to_onnx(program, {"classes": ["a"]}, ["classes", "confidence"])
    run, reference = onnx_runner(model.SerializeToString()), torch_runner(segmenter, View(size))
    equal, difference = {}, 0.0
    for shape in SIZES:
        (classes, confidence), (expected, sure) = run(pixels(shape)), reference(pixels(shape))
        assert classes.shape == expected.shape == shape
        equal[str(shape)] = float((classes == expected).mean())
        difference = max(difference, float(abs(confidence - sure).max()))
    axes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)]  # fmt: skip
    facts = {"equal": equal, "difference": difference, "operators": operators(model), "axes": axes}
    out.write_text(json.dumps(facts))


def export_objects(name: str, size: tuple[int, int] | None, out: Path) -> None:
    """:func:`export_case` of an instance model or a detector."""
    import torch

    from segdistill.export.check import Domain, View, compare
    from segdistill.export.objects import object_runner
    from segdistill.export.onnx_file import onnx_runner, operators, to_onnx, trace

    boxes = name.endswith("_boxes")
    network = build(*CASES[name], task="detection" if boxes else "instance")
    kind, names, tally = object_parts(network, size)
    if boxes:  # as it starts, no score is far from another
        with torch.no_grad():
            for part, factor in ((network.head.regions.head, 8), (network.head.boxes.box_predictor, 40)):
                for values in part.parameters():
                    values.mul_(factor)
    model = to_onnx(trace(kind(network, size), (192, 256) if boxes else (96, 128)), {"classes": ["a"]}, names)
    run, reference, rows = onnx_runner(model.SerializeToString()), object_runner(network, View(size)), {}
    sizes = tuple((count, 2 * height, 2 * width) for count, height, width in SIZES) if boxes else SIZES
    for shape in sizes:
        domain = Domain("game", "source", Unlabelled(shape), 1)
        [rows[str(shape)]] = compare({"own": run}, reference, [domain], tally, lambda *_: None)["own"]
    outputs = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim][:3]
               for value in model.graph.output]  # fmt: skip
    answer = run(pixels(sizes[0]))
    facts = {"equal": {shape: row.equal for shape, row in rows.items()}, "shapes": [part.shape for part in answer],
             "difference": max(row.difference for row in rows.values()), "operators": operators(model),
             "outputs": outputs, "scores": [row.score for row in rows.values()],
             "found": sum(len(each) for each in reference(pixels(sizes[0])))}  # fmt: skip
    out.write_text(json.dumps(facts))


def object_parts(network, size: tuple[int, int] | None):
    """The graph of a model of objects, the names of its outputs, and what compares it."""
    from functools import partial

    from segdistill.export.boxes import BoxGraph
    from segdistill.export.graph import ObjectGraph
    from segdistill.export.objects import Decoder, ObjectTally, boxes_found
    from segdistill.metrics.boxes import BoxMetric
    from segdistill.metrics.instances import InstanceMetric
    from segdistill.models import Detector

    if isinstance(network, Detector):
        return BoxGraph, ["boxes", "scores", "labels"], partial(ObjectTally, 7, boxes_found, BoxMetric)
    decoder = Decoder(network.encoder.padded, size)
    return ObjectGraph, ["scores", "masks"], partial(ObjectTally, 7, decoder, InstanceMetric)


class Unlabelled:
    """One image without labels."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __getitem__(self, index: int):
        from types import SimpleNamespace

        return SimpleNamespace(image=pixels(self.shape)[index], label=None, objects=None)


def page_commands() -> list[list[str]]:
    """The arguments of every call in the page's shell blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def page_programs() -> list[str]:
    """The page's Python, block by block."""
    return re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run_page(folder: Path) -> None:
    """The page's commands, one after the other in ``folder``."""
    from segdistill.cli import main

    os.chdir(folder)
    for arguments in page_commands():
        sys.argv = ["segdistill", *arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
