"""Any backbone of timm as an encoder: ``timm:convnext_tiny``, ``timm:vit_base_patch16_siglip_224.webli``.

The record is derived from the network itself, which runs once on torch's meta device: nothing is downloaded or
computed. Networks whose stages are not maps with integer strides are refused; networks with a fixed input size must be
built for the size of the data (``image_size``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_arch_name, get_pretrained_cfg, is_model, list_models, list_pretrained
from torch import nn
from torch.overrides import TorchFunctionMode

from segdistill.config import UserError, first_line, nearest
from segdistill.encoders.record import LICENCE, PREFIX, EncoderRecord, stage_taps
from segdistill.encoders.table import ENCODERS
from segdistill.encoders.walks import final_norm, is_plain, mask_shape, walk_maps, walk_of

FAILURES = (RuntimeError, AssertionError, TypeError, ValueError, AttributeError)  # of networks with other shapes
ANY_SIZE = (256, 256)  # of a network that is built for none


def record_of(name: str) -> EncoderRecord:
    """The record of an encoder of the table, or of ``timm:<name>``; a :class:`UserError` names the nearest one."""
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(PREFIX):
        return timm_record(name.removeprefix(PREFIX))
    if is_model(name):
        raise UserError(f"unknown encoder '{name}': did you mean '{PREFIX}{name}'?")
    raise UserError(
        f"unknown encoder '{name}': {nearest(name, ENCODERS)}`segdistill list encoders` names all {len(ENCODERS)}, "
        f"{PREFIX}<name> is any backbone of timm"
    )


class _Uninitialised(TorchFunctionMode):
    """Skips in-place initialisation, which takes most of the time on the meta device."""

    FILLING = frozenset({"uniform_", "normal_", "erfinv_", "clamp_", "fill_", "zero_", "copy_", "mul_", "add_", "div_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fills = bool(args) and getattr(func, "__name__", "") in self.FILLING
        return args[0] if fills else func(*args, **(kwargs or {}))


@contextmanager
def blueprint() -> Iterator[None]:
    """Networks built inside have shapes only; they use no memory and draw no random numbers."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _Uninitialised():
        yield


@cache
def timm_record(name: str) -> EncoderRecord:
    """The record of timm's ``name`` (architecture, or architecture.tag); a :class:`UserError` where it has none."""
    arch = get_arch_name(name)
    if not is_model(arch):
        raise UserError(f"timm has no backbone '{arch}': {nearest(arch, list_models())}see timm.list_models()")
    if name != arch and name not in (tags := list_pretrained(f"{arch}.*")):
        raise UserError(f"timm knows no weights '{name}': {nearest(name, tags)}see timm.list_pretrained('{arch}.*')")
    try:
        return _derive(name, arch)
    except FAILURES as error:
        raise UserError(
            f"timm's {name} cannot be an encoder, which needs maps of its stages, each of a whole stride "
            f"({first_line(error)}): choose another backbone"
        ) from None


def _derive(name: str, arch: str) -> EncoderRecord:
    """The record of a network, checked by running the network built from it."""
    with blueprint():
        bare = timm.create_model(arch, pretrained=False, num_classes=0)
        known = get_pretrained_cfg(name) or PretrainedCfg()
        sized = "img_size" in _parameters(bare) and known.fixed_input_size
        size = known.input_size[-2:] if sized else ANY_SIZE
        build, switches = partial(_create, arch), _switches(bare)
        network = build(**switches, **({"img_size": size} if sized else {}))
        shapes, has_cls = _probe(network, size)
        stages, (width, patch) = shapes[:-1], shapes[-1]
        flexible = _takes(network, (size[0] + patch, size[1] + 2 * patch))
        if not (sized or flexible):
            raise ValueError(f"takes no image of {size[0] + patch} x {size[1] + 2 * patch}")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return EncoderRecord(
        timm_name=arch,
        build=build,
        patch=patch,
        depth=len(stages),
        width=width,
        taps=stage_taps(tuple(stride for _, stride in stages)),
        image_size=size,
        parameters=parameters + math.prod(mask_shape(network)),
        licence=LICENCE,
        has_cls=has_cls,
        family="timm",
        timm_weights=name,
        stages=() if is_plain(network) else stages,
        sized=sized,
        flexible=flexible,
        switches=switches,
    )


@cache
def takes(name: str, size: tuple[int, int]) -> bool:
    """Whether the encoder ``name``, built for ``size`` (H, W) pixels, takes images of that size."""
    record = record_of(name)
    try:
        with blueprint():
            return _takes(record.build(img_size=size, **record.switches), size)
    except FAILURES:
        return False


def _parameters(network: nn.Module) -> frozenset[str]:
    """Constructor arguments of the network's class and its bases."""
    return frozenset(name for cls in type(network).__mro__ for name in inspect.signature(cls.__init__).parameters)


def _switches(bare: Any) -> dict[str, Any]:
    """Arguments with which timm builds ``bare`` for any size and with the final norm on all tokens."""
    known = _parameters(bare)
    switches: dict[str, Any] = {"num_classes": 0}
    if "dynamic_img_size" in known:
        switches["dynamic_img_size"] = True
    elif "strict_img_size" in known:
        switches["strict_img_size"] = False
    if "global_pool" in known and getattr(bare, "blocks", None) is not None and hasattr(bare, "cls_token"):
        switches["global_pool"] = "" if bare.cls_token is None else "token"  # pooling would remove the norm as well
    return switches


def _create(arch: str, **switches: Any) -> nn.Module:
    """The network without its classifier and the layers that only feed it."""
    network: Any = timm.create_model(arch, pretrained=False, **switches)
    if walk_of(network) is walk_maps and final_norm(network) is None:
        network.prune_intermediate_layers(prune_norm=False, prune_head=True)
    return network


def _takes(network: Any, size: tuple[int, int]) -> bool:
    """Whether the network takes images of ``size``."""
    try:
        _probe(network, size)
    except FAILURES:
        return False
    return True


def _probe(network: Any, size: tuple[int, int]) -> tuple[tuple[tuple[int, int], ...], bool]:
    """(channels, pixels per cell) of all stages and, last, of the tap -1; whether there is a CLS token."""
    images = torch.empty(2, 3, *size, device="meta")
    depth = len(network.eval().forward_intermediates(images, intermediates_only=True))
    taps = (*range(depth), -1)
    mask = torch.empty(mask_shape(network), device="meta")
    tapped, cls = walk_of(network)(network, images, taps, mask, None)
    shapes = []
    for tap in taps:
        tokens, (h, w) = tapped[tap]
        stride = size[0] // h
        if (h * stride, w * stride) != size or tokens.shape[1] != h * w:
            raise ValueError(f"tap {tap} has {tokens.shape[1]} cells in {h} x {w} for {size[0]} x {size[1]} pixels")
        shapes.append((tokens.shape[2], stride))
    return tuple(shapes), cls is not None
