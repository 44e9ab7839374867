"""What is done to the blocks of an encoder: compiling them, and sharding a frozen one over the processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from segdistill.config import UserError, first_line
from segdistill.encoders import Encoder
from segdistill.encoders.walks import through_blocks, walk_vit
from segdistill.processes import rank_and_size

RECOMPILED = 64
"""Most variants of a block: by class, width, number of images, and with or without gradients; torch allows 8."""


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The composed parts of ``network`` that stand in its outermost sequences: blocks of a ViT, stages."""
    for child in network.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            parts = [part for part in child if any(True for _ in part.children())]
            yield from (part for part in parts if any(True for _ in part.parameters()))
        else:
            yield from blocks(child)


def compile_blocks(objective: nn.Module) -> None:
    """Compile the blocks of every encoder, in place: names of parameters, and so checkpoints, do not change.

    The blocks of a plain ViT are compiled as one function, those of other networks one by one, and with them the parts
    of a method that say ``compiled_whole``: none of it has Python that depends on the step. Sharded encoders are left
    as they are. A :class:`UserError` if torch finds no working compiler.
    """
    found = [encoder for encoder in objective.modules() if isinstance(encoder, Encoder)]
    if not found:
        return
    _check_compiler(next(found[0].parameters()).device)
    config: Any = torch._dynamo.config  # all blocks share one function, which is compiled for each kind of them
    config.recompile_limit = max(config.recompile_limit, RECOMPILED)
    for encoder in found:
        if isinstance(encoder, FSDPModule):
            continue
        if encoder.walk is walk_vit:
            encoder.through = torch.compile(through_blocks)
        else:
            for block in blocks(encoder):
                block.compile()
    for part in objective.modules():
        if getattr(part, "compiled_whole", False):
            part.compile()


def _check_compiler(device: torch.device) -> None:
    """Compile the smallest function."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # noqa: BLE001  torch raises many types for missing compilers
        line = f"compile=true, but torch cannot compile here: {first_line(error)}; use compile=false"
        raise UserError(line) from None


def shard(network: nn.Module, device: torch.device) -> None:
    """Split the parameters of a frozen network over the processes; each block is gathered while it runs.

    The results do not change. A single process keeps all parameters.
    """
    if any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("only frozen networks are sharded")
    size = rank_and_size()[1]
    if size == 1:
        return
    mesh = init_device_mesh(device.type, (size,))
    settings: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    for block in blocks(network):
        fully_shard(block, **settings)
    fully_shard(network, **settings)


def hide_shards(objective: nn.Module) -> None:
    """Make DDP leave sharded parameters alone: it would broadcast one process's shard to all others."""
    names = {name for name, value in objective.named_parameters() if isinstance(value, DTensor)}
    if names:
        own: Any = objective
        own._ddp_params_and_buffers_to_ignore = names
