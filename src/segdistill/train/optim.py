"""Optimisers, parameter groups, and learning rates as pure functions of the step, so schedules have no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import nn

from segdistill.config import Betas, Config, Part, part_of

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm, nn.LocalResponseNorm)

Groups = list[dict[str, Any]]
"""Parameter groups, each with its ``weight_decay`` and ``lr_scale``."""

Schedule = Callable[[int, int], float]
"""(step, steps) -> learning rate of the base group."""


class AdamW:
    """Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101)."""

    class Config(Config):
        """Decay rates of the two moments."""

        betas: Betas = (0.9, 0.999)

    @staticmethod
    def build(groups: Groups, config: Any) -> torch.optim.Optimizer:
        """Uses the fused kernel if every parameter's device supports it (CPU, CUDA)."""
        fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
        return torch.optim.AdamW(groups, lr=1.0, betas=config.betas, fused=fused)


class SGD:
    """Stochastic gradient descent with momentum, as used by the CNN baselines of domain generalisation."""

    class Config(Config):
        """``momentum``: share of the last update that is kept; ``nesterov``: Nesterov momentum."""

        momentum: float = Field(0.9, ge=0, lt=1)
        nesterov: bool = False

        @model_validator(mode="after")
        def _looks_ahead(self) -> SGD.Config:
            if self.nesterov and not self.momentum:
                raise ValueError("nesterov needs a momentum above 0")
            return self

    @staticmethod
    def build(groups: Groups, config: Any) -> torch.optim.Optimizer:
        """torch's SGD."""
        return torch.optim.SGD(groups, lr=1.0, momentum=config.momentum, nesterov=config.nesterov)


OPTIMIZERS: dict[str, type[AdamW] | type[SGD]] = {"adamw": AdamW, "sgd": SGD}


def build_optimizer(part: Part, groups: Groups) -> torch.optim.Optimizer:
    """The optimiser of ``part``; the loop sets the learning rates."""
    kind: Any = OPTIMIZERS[part.type]
    return kind.build(groups, part.settings)


class CosineConfig(Config):
    """Optimiser of the distillation stages (spec A.7): cosine in epochs, linear learning-rate rule."""

    lr: float = Field(5e-4, gt=0, le=1, description="learning rate at the reference batch")
    lr_reference_batch: int | None = Field(
        512, ge=1, le=2**24, description="lr is scaled by batch / this; None: no scaling"
    )
    min_lr: float = Field(1e-5, ge=0, le=1)
    weight_decay: float = Field(0.05, ge=0, le=1)
    algorithm: part_of("optimizer", OPTIMIZERS, "adamw") = Field({}, validate_default=True)  # type: ignore[valid-type]
    warmup: float = Field(0.0, ge=0, lt=1, description="ours: share of the steps with linearly growing lr")
    epochs: int = Field(100, ge=1, le=10**6, description="the learning rate changes this many times in the stage")
    lag: int = Field(1, ge=0, le=10**6, description="epochs by which the schedule lags (1: as in the authors' code)")
    clip: float | None = Field(None, gt=0, le=1e6, description="largest gradient norm; None: no clipping")

    def spared(self, module: nn.Module) -> set[str]:
        """Names of the parameters that do not decay."""
        return vectors_and_biases(module)

    def schedule(self, batch: int) -> Schedule:
        """Epochs 0 and 1 run at the base rate, epoch e at the cosine of e - 1 (the authors' lag of one)."""
        base = self.lr * (batch / self.lr_reference_batch if self.lr_reference_batch else 1.0)

        def lr(step: int, steps: int) -> float:
            if step < self.warmup * steps:
                return base * min(1.0, (step + 1) / (self.warmup * steps))
            epoch = max(0, step * self.epochs // steps - self.lag)
            floor = min(self.min_lr, base)
            return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * epoch / self.epochs))

        return lr


class PolyConfig(Config):
    """Optimiser of the task stage (spec A.10): polynomial decay, no clipping."""

    lr: float = Field(1e-4, gt=0, le=1)
    encoder_lr_scale: float = Field(
        0.1, gt=0, le=1000, description="factor on the encoder's learning rate, if it is trained"
    )
    power: float = Field(0.9, ge=0, le=100)
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (),
        description="shares of the steps after which lr falls to a tenth, for detectors; none: polynomial",
    )
    weight_decay: float = Field(0.05, ge=0, le=1)
    algorithm: part_of("optimizer", OPTIMIZERS, "adamw") = Field({}, validate_default=True)  # type: ignore[valid-type]
    warmup: float = Field(0.0, ge=0, lt=1, description="ours: share of the steps with linearly growing lr")
    clip: float | None = Field(None, gt=0, le=1e6, description="largest gradient norm; None: no clipping")
    decay_norms: bool = Field(
        False, description="weight decay on norms and embeddings too, as in SHADE's and AdvStyle's training of CNNs"
    )

    def spared(self, module: nn.Module) -> set[str]:
        """Names of the parameters that do not decay."""
        return set() if self.decay_norms else norms_and_embeddings(module)

    def schedule(self, batch: int) -> Schedule:
        """``lr * (1 - t / (steps - 1)) ** power``: the last step's rate is zero, as in mmengine (spec A.10).

        With ``drops``, ``lr * 0.1 ** (drops passed)`` instead.
        """
        del batch

        def lr(step: int, steps: int) -> float:
            if step < self.warmup * steps:
                return self.lr * min(1.0, (step + 1) / (self.warmup * steps))
            if self.drops:
                return self.lr * 0.1 ** sum(step >= drop * steps for drop in self.drops)
            return self.lr * (1 - step / max(1, steps - 1)) ** self.power

        return lr


def vectors_and_biases(module: nn.Module) -> set[str]:
    """Names of the parameters that do not decay in a distillation stage: one dimension, or a bias.

    timm's ``filter_bias_and_bn``; embeddings do decay (spec A.7).
    """
    return {name for name, value in module.named_parameters() if value.ndim <= 1 or name.endswith(".bias")}


def norms_and_embeddings(module: nn.Module) -> set[str]:
    """Names of the parameters that do not decay in a task stage (spec A.10).

    Those of norm layers, with "norm" in their name, or with a prefix listed in the module's ``undecayed``. Biases of
    other layers do decay, as with mmengine's default constructor.
    """
    prefixes: tuple[str, ...] = getattr(module, "undecayed", ())
    norms = {f"{name}." for name, child in module.named_modules() if isinstance(child, _NORMS)}
    names = (name for name, _ in module.named_parameters())
    return {name for name in names if "norm" in name or name.startswith((*prefixes, *norms))}


def parameter_groups(
    modules: Iterable[tuple[nn.Module, float]], weight_decay: float, spared: Callable[[nn.Module], set[str]]
) -> Groups:
    """Groups of the trainable parameters of (module, learning-rate scale) pairs; no decay for names in ``spared``."""
    groups = []
    for module, scale in modules:
        decayed, plain, names = [], [], spared(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (plain if name in names else decayed).append(parameter)
        groups.append({"params": decayed, "weight_decay": weight_decay, "lr_scale": scale})
        groups.append({"params": plain, "weight_decay": 0.0, "lr_scale": scale})
    return [group for group in groups if group["params"]]
