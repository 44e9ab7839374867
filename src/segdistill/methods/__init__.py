"""Distillation methods: one paper, one file. A method sees features, never a network.

The contract of an entry of :data:`METHODS`::

    class X(nn.Module):
        needs = Needs(...)                    # with default settings; an instance's `needs` follows its settings
        class Config(segdistill.config.Config): ...
        @staticmethod
        def needs_for(config) -> Needs        # what a stage asks before it builds the method
        def __init__(self, config, student: FeatureSpec, teacher: FeatureSpec)
        def forward(self, student: Views, teacher: Views) -> LossTerms

Optional: ``mask_settings()`` (arguments of :func:`segdistill.ops.random_mask`, where ``needs.masked``),
``set_progress(fraction)`` (how much of the stage is done, before each step), ``diagnostics`` (named detached scalars
of the last forward, to be logged and never optimised) and a third argument of ``forward``, ``noise`` (B, N) uniform in
[0, 1): the random numbers of a method that draws some. Without it, they come from :func:`segdistill.processes.rand`,
which reads torch's global generator; the loop seeds that at every step. A mean over as many elements as are not the
same in every process (hidden tokens) divides by :func:`segdistill.processes.shared_count`. The teacher's views are
constants to every method. Where ``needs.logits``, both views hold logits of one size, before any upsampling; only a
task stage can give them. What several methods compute stands in a module of its own
(:mod:`segdistill.methods.kl`).
"""

from __future__ import annotations

from torch import nn

from segdistill.methods.afdcd import AfDCD
from segdistill.methods.cwd import CWD
from segdistill.methods.g2sd import G2SD
from segdistill.methods.gkd import GKD
from segdistill.methods.logit_kd import LogitKD
from segdistill.methods.mse import MSE
from segdistill.methods.proteus import Proteus
from segdistill.methods.vitkd import ViTKD

METHODS: dict[str, type[nn.Module]] = {
    "afdcd": AfDCD,
    "cwd": CWD,
    "g2sd": G2SD,
    "gkd": GKD,
    "logit_kd": LogitKD,
    "mse": MSE,
    "vitkd": ViTKD,
    "proteus": Proteus,
}
