"""What stands for the CLS token where a network has none: GKD, Proteus and G2SD."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from checks import DEPTH, MethodCase
from segdistill.config import Part, UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.methods import METHODS
from segdistill.methods.g2sd import mean_of_visible
from segdistill.ops import generator
from segdistill.stages.distill import Distillation, DistillObjective
from segdistill.types import FeatureSpec

WITH_TOKEN = [name for name, method in METHODS.items() if "token" in method.Config.model_fields]
SMALL = {"g2sd": {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}}
WITHOUT_CLS = ("timm:test_convnext", "timm:test_resnet", "timm:test_efficientnet", "timm:test_vit2")


def test_gkd_proteus_and_g2sd_have_the_setting():
    assert sorted(WITH_TOKEN) == ["g2sd", "gkd", "proteus"]


@pytest.mark.parametrize("name", WITH_TOKEN)
@pytest.mark.parametrize(
    ("student", "teacher", "who"), [(None, 4, "student"), (4, None, "teacher"), (None, None, "and")]
)
def test_the_error_lists_what_can_be_done(name, student, teacher, who):
    method = METHODS[name]
    specs = [FeatureSpec((4,), width, DEPTH) for width in (student, teacher)]
    with pytest.raises(UserError, match=f"{who}.*none.*'pooled'.*'none'.*networks that have one") as error:
        method(method.Config(), *specs)
    assert "\n" not in str(error.value)
    for token in ("pooled", "none"):
        method(method.Config(token=token), *specs)


@pytest.mark.parametrize("name", ["gkd", "proteus"])
def test_pooled_is_the_cls_form_with_the_means_in_its_place(name):
    case, usual = MethodCase(f"{name}-pooled", widths=(5, 7)), MethodCase(name, widths=(5, 7))
    usual.method.load_state_dict(case.method.state_dict())
    student, teacher = case.views()
    means = [torch.tensor(views.plain.tokens[0].numpy().mean(axis=1)) for views in (student, teacher)]
    with_cls = [replace(v, plain=replace(v.plain, cls=m)) for v, m in zip((student, teacher), means, strict=True)]
    expected = usual.method(*with_cls)
    for key, term in case.method(student, teacher).items():
        assert term.item() == pytest.approx(expected[key].item(), rel=1e-12), key


@pytest.mark.parametrize("name", ["gkd", "proteus"])
def test_none_is_the_cls_form_without_its_share(name):
    case, usual = MethodCase(f"{name}-none"), MethodCase(name)
    usual.method.load_state_dict(case.method.state_dict(), strict=False)
    terms, whole = case.method(*case.views()), usual.method(*usual.views())
    count = case.grid[0] * case.grid[1]
    assert terms.keys() == {"feature", "patch"}
    assert terms["patch"].item() == pytest.approx(whole["patch"].item(), rel=1e-12)
    patches = whole["feature"] * (count + 1) - whole["token"]  # the mean over 1 + N tokens counts CLS once
    assert terms["feature"].item() == pytest.approx(patches.item() / count, rel=1e-12)


def test_g2sd_pools_what_the_student_sees():
    tokens = torch.randn(3, 6, 5, generator=generator("pool"), dtype=torch.float64)
    hidden = torch.tensor([[1, 0, 0, 1, 0, 1], [0] * 6, [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    expected = np.stack([row[~mask].mean(axis=0) for row, mask in zip(tokens.numpy(), hidden.numpy(), strict=True)])
    np.testing.assert_allclose(mean_of_visible(tokens, hidden).numpy(), expected, rtol=1e-12)
    case = MethodCase("g2sd-pooled")
    student, teacher = case.views()
    view, mask = student.masked, student.mask.tokens.unsqueeze(-1)
    changed = replace(student, masked=replace(view, tokens=(torch.where(mask, view.tokens[0] + 9, view.tokens[0]),)))
    assert case.method(student, teacher)["generic"] == case.method(changed, teacher)["generic"]


@pytest.mark.parametrize("network", WITHOUT_CLS)
@pytest.mark.parametrize("token", ["pooled", "none"])
@pytest.mark.parametrize("name", WITH_TOKEN)
def test_students_of_timm_without_a_cls_token_are_distilled(network, token, name):
    size = (96, 96) if "convnext" in network else (64, 96)
    fixed = network == "timm:test_vit2"
    student = build_encoder(EncoderConfig(name=network, image_size=size if fixed else None), seed=0)
    teacher = build_encoder(EncoderConfig(name="world_student"), seed=1).requires_grad_(False)
    assert student.spec().cls_channels is None
    settings = METHODS[name].Config(token=token, **SMALL.get(name, {}))
    objective = DistillObjective(student, Distillation(student, teacher, Part(type=name, settings=settings), (0,)))
    objective.train()
    images = (torch.rand(4, 3, *size, generator=generator("images")) * 255).to(torch.uint8)
    terms = objective({"image": images}, 0, 2)
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    silent = [key for key, value in student.backbone.named_parameters() if value.grad is None or not value.grad.any()]
    assert len(silent) < len(list(student.backbone.parameters())) / 2, silent  # timm zeroes some last norms at first
    assert student.mask_token.grad is not None and student.mask_token.grad.any()
