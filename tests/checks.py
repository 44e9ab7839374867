"""Checks that every entry of a table passes, and the inputs they need. Tests parametrise them over the tables."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdistill.config import Config
from segdistill.methods import METHODS
from segdistill.ops import generator, random_mask
from segdistill.types import Features, FeatureSpec, LossTerms, Mask, Needs, Views

GOLDEN = Path(__file__).parent / "golden"
DEPTH = 6
CLASSES = 3

# Parameters that a method's own formula leaves without a gradient.
SILENT = {"gkd": "token_head.proj_q."}

# Grid, widths of student and teacher, and settings that let a method work on them and every term weigh something.
Shape = tuple[tuple[int, int], tuple[int, int], dict[str, Any]]
CASES: dict[str, Shape] = {
    "afdcd": ((4, 8), (5, 8), {"feature_weight": 0.1, "contrast_weight": 0.1, "groups": 2, "pool": 2, "patch": 2}),
    "g2sd": ((2, 3), (5, 7), {"decoder_width": 4, "decoder_depth": 1, "decoder_heads": 2}),
    "vitkd": ((2, 3), (5, 7), {"mimic_weight": 0.1, "generate_weight": 0.1}),
}
TINY: dict[str, Shape] = {  # for finite differences
    "afdcd": ((2, 4), (3, 4), {"patch": 1}),
    "g2sd": ((1, 3), (3, 4), {}),
}

# Every method, and every method between networks without a CLS token: what it sets then stands behind the hyphen.
ENTRIES = [
    *METHODS,
    *(
        f"{name}-{token}"
        for name, method in METHODS.items()
        for token in (("pooled", "none") if "token" in method.Config.model_fields else ("bare",))
    ),
]

# For every setting: companions that let it act, and the value that must change the outcome.
PERTURBED: dict[str, dict[str, tuple[dict[str, Any], Any]]] = {
    "afdcd": {
        "feature_weight": ({}, 0.5),
        "contrast_weight": ({}, 0.5),
        "pixel_weight": ({}, 0.5),
        "drop": ({}, 0.25),
        "enhanced": ({}, True),
        "pool": ({}, 1),
        "patch": ({}, 1),
        "groups": ({}, 4),
        "tau": ({}, 0.5),
        "pixel_tau": ({}, 2.0),
    },
    "cwd": {
        "maps": ({}, "logits"),
        "weight": ({}, 0.5),
        "tau": ({}, 1.0),
        "form": ({}, "cross_entropy"),
    },
    "g2sd": {
        "token": ({}, "pooled"),
        "phase": ({}, "specific"),
        "generic_weight": ({}, 0.5),
        "mask_ratio": ({}, 0.25),
        "decoder_width": ({}, 8),
        "decoder_depth": ({}, 2),
        "decoder_heads": ({}, 1),
        "beta": ({}, 0.5),
        "specific_weight": ({"phase": "specific"}, 0.5),
        "tau": ({"phase": "specific"}, 2.0),
    },
    "gkd": {
        "token": ({}, "pooled"),
        "token_weight": ({}, 0.5),
        "feature_weight": ({}, 0.5),
        "patch_weight": ({}, 0.5),
        "mask_probability": ({}, 0.25),
        "mask_ratio": ({}, 0.25),
        "mask_first": ({}, False),
        "masked_only": ({}, True),
        "scale": ({}, 0.5),
        "own_position_bias": ({}, 3.0),
        "own_position_anneal": ({"own_position_bias": 3.0}, 0.9),
    },
    "heir": {
        "feature_weight": ({}, 0.5),
        "class_weight": ({}, 0.5),
        "tau": ({}, 2.0),
        "taps": ({}, (2,)),
        "teacher_taps": ({}, (2,)),
    },
    "logit_kd": {
        "weight": ({}, 0.5),
        "tau": ({}, 2.0),
    },
    "mse": {
        "weight": ({}, 0.5),
        "cls_weight": ({}, 0.5),
        "relative": ({}, True),
        "taps": ({}, (2,)),
        "teacher_taps": ({}, (2,)),
    },
    "proteus": {
        "token": ({}, "pooled"),
        "token_weight": ({}, 0.5),
        "feature_weight": ({}, 0.5),
        "patch_weight": ({}, 0.5),
        "mask_probability": ({}, 0.25),
        "mask_ratio": ({}, 0.25),
        "mask_first": ({}, False),
    },
    "vitkd": {
        "mimic_weight": ({}, 0.5),
        "generate_weight": ({}, 0.5),
        "drop": ({}, 0.25),
    },
}


def golden(name: str) -> dict[str, Any]:
    """The content of ``golden/<name>.json``."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def wave(shape: tuple[int, ...], a: float, b: float = 0.0) -> Tensor:
    """``sin(a * arange(n) + b)`` in float64: the inputs of the golden values."""
    return torch.sin(a * torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + b).reshape(shape)


def fill(module: nn.Module, a: float) -> None:
    """Set the i-th named parameter to ``wave(shape, a, 0.1 i)``."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(wave(tuple(parameter.shape), a, 0.1 * index))


class MethodCase:
    """A method with random tokens, and logits where it needs some, in place of two networks.

    ``name`` is one of :data:`ENTRIES`.
    """

    def __init__(
        self, name: str, *, batch: int = 4, grid: tuple[int, int] | None = None, widths: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any,
    ) -> None:  # fmt: skip
        name, hyphen, token = name.partition("-")
        self.has_cls = not hyphen
        settings |= {"token": token} if "token" in METHODS[name].Config.model_fields and hyphen else {}
        usual = CASES.get(name, ((2, 3), (5, 7), {}))
        self.name, self.batch, self.dtype = name, batch, dtype
        self.grid, self.widths = grid or usual[0], widths or usual[1]
        cls = METHODS[name]
        self.config: Config = cls.Config(**usual[2] | settings)
        self.needs: Needs = cls.needs_for(self.config)
        specs = [
            FeatureSpec((width,) * len(taps), width if self.has_cls else None, DEPTH)
            for width, taps in zip(self.widths, (self.needs.taps, self.needs.of_teacher), strict=True)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.method = cls(self.config, *specs).to(dtype)

    def _features(self, who: str, width: int, tap_names: tuple[int, ...], *, grad: bool) -> Features:
        h, w = self.grid
        tokens = [torch.randn(self.batch, h * w, width, generator=generator(who, tap), dtype=torch.float64)
                  for tap in tap_names]  # fmt: skip
        cls = torch.randn(self.batch, width, generator=generator(who, "cls"), dtype=torch.float64)
        leaves = [x.to(self.dtype).requires_grad_(grad) for x in [*tokens, cls]]
        return Features(tokens=tuple(leaves[:-1]), cls=leaves[-1] if self.has_cls else None, grid=self.grid)

    def _logits(self, who: str, *, grad: bool) -> Tensor | None:
        """Class logits on twice the tokens' grid."""
        if not self.needs.logits:
            return None
        shape = (self.batch, CLASSES, 2 * self.grid[0], 2 * self.grid[1])
        logits = torch.randn(shape, generator=generator(who, "logits"), dtype=torch.float64)
        return logits.to(self.dtype).requires_grad_(grad)

    def views(self, *, grad: bool = False) -> tuple[Views, Views]:
        """The student's and the teacher's views; every tensor a leaf, with a gradient if ``grad``."""
        student, teacher = (
            Views(plain=self._features(who, width, taps, grad=grad), logits=self._logits(who, grad=grad))
            for who, width, taps in zip(
                ("student", "teacher"), self.widths, (self.needs.taps, self.needs.of_teacher), strict=True
            )
        )
        if not self.needs.masked:
            return student, teacher
        plain = student.plain
        count = self.grid[0] * self.grid[1]
        mask = random_mask(self.batch, count, rng=generator("mask"), **self.method.mask_settings())
        noise = self._features("hidden", self.widths[0], self.needs.taps, grad=False)
        hidden = mask.tokens.unsqueeze(-1)
        rows = mask.samples
        tokens = [
            torch.where(hidden, other[rows], own.detach()[rows]).requires_grad_(grad)
            for own, other in zip(plain.tokens, noise.tokens, strict=True)
        ]
        cls = None if noise.cls is None else noise.cls[rows]
        masked = Features(tokens=tuple(tokens), cls=cls, grid=self.grid)
        plain = student.plain if self.needs.plain else Features(tokens=(), cls=None, grid=self.grid)
        return replace(student, plain=plain, masked=masked, mask=mask), teacher

    def terms(self, student: Views, teacher: Views, order: Tensor | None = None) -> LossTerms:
        """The method's terms; one that draws random numbers is given the same ones each time, samples in ``order``."""
        if "noise" not in inspect.signature(self.method.forward).parameters:
            return self.method(student, teacher)
        noise = torch.rand(self.batch, self.grid[0] * self.grid[1], generator=generator("noise"))
        return self.method(student, teacher, noise if order is None else noise[order])

    def outcome(self) -> dict[str, float]:
        """The terms at 30 % of a stage, as numbers."""
        if hasattr(self.method, "set_progress"):
            self.method.set_progress(0.3)
        return {name: term.item() for name, term in self.terms(*self.views()).items()}


def check_terms(name: str) -> None:
    """Named, finite, non-negative scalars; diagnostics are detached scalars."""
    case = MethodCase(name)
    terms = case.terms(*case.views(grad=True))
    assert terms
    for key, term in terms.items():
        assert key.isidentifier()
        assert term.shape == ()
        assert term.isfinite()
        assert term.item() > 0
    for value in getattr(case.method, "diagnostics", {}).values():
        assert value.shape == ()
        assert not value.requires_grad


def check_gradients(name: str) -> None:
    """The loss reaches what the student says and every parameter but the declared ones, and nothing of the teacher."""
    case = MethodCase(name)
    student, teacher = case.views(grad=True)
    sum(case.terms(student, teacher).values()).backward()
    for key, parameter in case.method.named_parameters():
        assert parameter.grad is not None, key
        silent = key.startswith(SILENT.get(case.name, " "))
        assert (parameter.grad.abs().max().item() == 0) == silent, key
    for view in [student.plain] + ([student.masked] if student.masked else []):
        assert all(tokens.grad is not None and tokens.grad.abs().sum() > 0 for tokens in view.tokens)
    assert student.logits is None or student.logits.grad.abs().sum() > 0
    assert all(tokens.grad is None for tokens in teacher.plain.tokens)
    assert teacher.plain.cls is None or teacher.plain.cls.grad is None
    assert teacher.logits is None or teacher.logits.grad is None


def check_batch_order(name: str) -> None:
    """Samples do not know their neighbours' order."""
    case = MethodCase(name)
    student, teacher = case.views()
    order = torch.tensor([2, 0, 3, 1])

    def shuffle(features: Features) -> Features:
        cls = None if features.cls is None else features.cls[order]
        return Features(tuple(tokens[order] for tokens in features.tokens), cls, features.grid)

    mask = student.mask and Mask(samples=order.argsort()[student.mask.samples], tokens=student.mask.tokens)
    moved, target = (
        replace(views, plain=shuffle(views.plain), logits=None if views.logits is None else views.logits[order])
        for views in (student, teacher)
    )
    expected = case.terms(student, teacher)
    for key, term in case.terms(replace(moved, mask=mask), target, order).items():
        torch.testing.assert_close(term, expected[key], rtol=1e-12, atol=0)


def check_finite_differences(name: str) -> None:
    """Analytic gradients of tokens, logits and parameters equal finite differences in float64."""
    grid, widths, settings = TINY.get(name.partition("-")[0], ((1, 2), (3, 4), {}))
    case = MethodCase(name, batch=2, grid=grid, widths=widths, **settings)
    student, teacher = case.views(grad=True)
    views = [student.plain] + ([student.masked] if student.masked else [])
    leaves = [tokens for view in views for tokens in view.tokens]
    leaves += [] if student.logits is None else [student.logits]
    parameters = dict(case.method.named_parameters())

    def loss(*_: Tensor) -> Tensor:  # the leaves are perturbed in place
        return sum(case.terms(student, teacher).values())

    assert torch.autograd.gradcheck(loss, (*leaves, *parameters.values()))


def check_half_precision(name: str) -> None:
    """Finite under bfloat16 autocast, near the fp32 value, and in fp32."""
    case = MethodCase(name, dtype=torch.float32)
    exact = case.terms(*case.views())
    student, teacher = case.views(grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        terms = case.terms(student, teacher)
    for key, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[key], rtol=0.05, atol=0.05)
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in case.method.parameters())


def check_state(name: str) -> None:
    """A fresh method with the state of a trained one gives the same terms; without a state it does so at once."""
    case, fresh = MethodCase(name, seed=1), MethodCase(name, seed=2)
    assert (fresh.outcome() == case.outcome()) == (not case.method.state_dict())
    fresh.method.load_state_dict(case.method.state_dict())
    assert fresh.outcome() == case.outcome()


def check_setting(name: str, field: str) -> None:
    """Changing one setting changes the outcome."""
    companions, value = PERTURBED[name][field]
    case, changed = MethodCase(name, **companions), MethodCase(name, **companions, **{field: value})
    assert getattr(case.config, field) != value
    assert case.outcome() != changed.outcome()
