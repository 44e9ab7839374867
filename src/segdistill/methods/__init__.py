"""Distillation methods: one paper, one file. A method sees features, never a network.

The contract of an entry of :data:`METHODS`::

    class X(nn.Module):
        needs = Needs(...)                    # with default settings; an instance's `needs` follows its settings
        class Config(segdistill.config.Config): ...
        @staticmethod
        def needs_for(config) -> Needs        # read by a stage before it builds the method
        def __init__(self, config, student: FeatureSpec, teacher: FeatureSpec)
        def forward(self, student: Views, teacher: Views) -> LossTerms

Optional: ``mask_settings()`` (arguments of :func:`segdistill.ops.random_mask`, if ``needs.masked``),
``set_progress(fraction)`` (called before each step with the completed share of the stage), ``diagnostics`` (named
detached scalars of the last forward, logged and never optimised) and a third argument of ``forward``, ``noise`` (B, N)
uniform in [0, 1), for methods that draw random numbers. By default these come from :func:`segdistill.processes.rand`,
which reads torch's global generator; the training loop seeds it at every step. A mean whose count differs between
processes (hidden tokens) divides by :func:`segdistill.processes.shared_count`. The teacher's views are constants. With
``needs.logits`` both views hold logits of one size, before any upsampling; only task stages supply them. Shared losses
are in :mod:`segdistill.methods.kl`.
"""

from __future__ import annotations

from torch import nn

from segdistill.methods.afdcd import AfDCD
from segdistill.methods.cwd import CWD
from segdistill.methods.g2sd import G2SD
from segdistill.methods.gkd import GKD
from segdistill.methods.heir import Heir
from segdistill.methods.logit_kd import LogitKD
from segdistill.methods.mse import MSE
from segdistill.methods.proteus import Proteus
from segdistill.methods.vitkd import ViTKD

METHODS: dict[str, type[nn.Module]] = {
    "afdcd": AfDCD,
    "cwd": CWD,
    "g2sd": G2SD,
    "gkd": GKD,
    "heir": Heir,
    "logit_kd": LogitKD,
    "mse": MSE,
    "vitkd": ViTKD,
    "proteus": Proteus,
}
