"""Learning rates against the values of the authors' schedules (spec F), and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segdistill.config import UserError, parse
from segdistill.heads.mask2former import Mask2Former
from segdistill.train.optim import CosineConfig, PolyConfig, build_optimizer, norms_and_embeddings, parameter_groups

GOLDEN_1A = {0: 5e-4, 1: 5e-4, 2: 4.99879e-4, 50: 2.62696e-4, 99: 1.04835e-5}
GOLDEN_1B = {0: 1.25e-4, 1: 1.25e-4, 2: 1.2499685e-4, 150: 6.8102128e-5, 299: 1.00126e-5}


@pytest.mark.parametrize(("epochs", "batch", "golden"), [(100, 512, GOLDEN_1A), (300, 128, GOLDEN_1B)])
@pytest.mark.parametrize("per_epoch", [1, 7])
def test_cosine_equals_the_authors_values_in_every_step_of_an_epoch(epochs, batch, golden, per_epoch):
    lr = CosineConfig(epochs=epochs).schedule(batch)
    for epoch, value in golden.items():
        for step in (epoch * per_epoch, (epoch + 1) * per_epoch - 1):
            assert lr(step, epochs * per_epoch) == pytest.approx(value, rel=5e-6)


def test_poly_equals_the_authors_values():
    lr = PolyConfig().schedule(4)
    assert lr(0, 40_000) == 1e-4
    assert lr(1, 40_000) == pytest.approx(9.999774994e-5, rel=1e-9)
    assert lr(20_000, 40_000) == pytest.approx(5.358746735e-5, rel=1e-9)
    assert lr(39_999, 40_000) == 0.0
    assert lr(0, 1) == 1e-4  # a stage of one step learns


def test_no_learning_rate_is_negative_or_not_a_number_whatever_the_length():
    for config in (CosineConfig(), CosineConfig(warmup=0.5), PolyConfig(), PolyConfig(warmup=0.5)):
        for steps in (1, 2, 3, 99, 101):
            assert all(0 <= config.schedule(16)(step, steps) <= 5e-4 for step in range(steps))


def test_drops_replace_the_polynomial():
    lr = PolyConfig(lr=0.01, drops=(0.75, 0.9), warmup=0.02).schedule(4)
    rates = [lr(step, 100) for step in (0, 1, 2, 74, 75, 89, 90, 99)]
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize("config", [CosineConfig(warmup=0.1, lr_reference_batch=None), PolyConfig(warmup=0.1)])
def test_warm_up_grows_in_equal_steps_to_the_base_rate(config):
    rates = [config.schedule(8)(step, 100) for step in range(12)]
    assert rates[:10] == pytest.approx([config.lr * (step + 1) / 10 for step in range(10)])
    assert rates[10] <= config.lr


PERTURBED = {
    CosineConfig: {
        "lr": 1e-3, "lr_reference_batch": 256, "min_lr": 1e-4, "warmup": 0.9, "epochs": 7, "lag": 0,
        "weight_decay": 0.1, "algorithm": {"type": "sgd"}, "clip": 1.0,
    },
    PolyConfig: {
        "lr": 1e-3, "encoder_lr_scale": 1.0, "power": 2.0, "warmup": 0.9, "weight_decay": 0.1, "clip": 1.0,
        "drops": (0.5,), "algorithm": {"type": "sgd"}, "decay_norms": True,
    },
}  # fmt: skip
ELSEWHERE = {
    "weight_decay",
    "algorithm",
    "clip",
    "encoder_lr_scale",
    "decay_norms",
}  # perturbed by the stages' tests


@pytest.mark.parametrize("cls", PERTURBED)
def test_every_setting_of_a_schedule_changes_it(cls):
    assert set(cls.model_fields) == set(PERTURBED[cls])
    default = [cls().schedule(16)(step, 200) for step in range(200)]
    for name, value in PERTURBED[cls].items():
        changed = [cls(**{name: value}).schedule(16)(step, 200) for step in range(200)]
        assert (changed != default) == (name not in ELSEWHERE), name


class Net(nn.Module):
    undecayed = ("query.",)

    def __init__(self):
        super().__init__()
        self.linear, self.block = nn.Linear(3, 3), nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
        self.query, self.query_side = nn.Embedding(2, 3), nn.Linear(3, 3)
        self.cls_token = nn.Parameter(self.linear.weight.detach().clone()[None])
        self.out_norm_gain = nn.Parameter(self.linear.weight.detach().clone())
        self.frozen = nn.Parameter(self.linear.weight.detach().clone(), requires_grad=False)


VECTORS = {"linear.bias", "block.0.bias", "block.1.weight", "block.1.bias", "query_side.bias"}
NORMS = {"block.1.weight", "block.1.bias", "query.weight", "out_norm_gain"}


@pytest.mark.parametrize(
    ("config", "spared"), [(CosineConfig(), VECTORS), (PolyConfig(), NORMS), (PolyConfig(decay_norms=True), set())]
)
def test_what_does_not_decay_is_what_the_authors_spare_in_that_kind_of_stage(config, spared):
    """Distillation: vectors and biases (spec A.7). Task: norms and query embeddings, biases decay (spec A.10)."""
    net, other = Net(), nn.Linear(2, 2, bias=False)
    groups = parameter_groups([(net, 0.1), (other, 1.0)], 0.05, config.spared)
    found = {id(p): (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
    wanted = {name: (0.0 if name in spared else 0.05, 0.1) for name, p in net.named_parameters() if p.requires_grad}
    parameters = dict(net.named_parameters())
    assert {name: found.pop(id(parameters[name])) for name in wanted} == wanted
    assert found == {id(other.weight): (0.05, 1.0)}


def test_mask2formers_queries_and_levels_do_not_decay_but_its_pixel_decoders_levels_do():
    head = Mask2Former(Mask2Former.Config(width=64, encoder_layers=1, decoder_layers=1), (8,) * 4, (16,) * 4, 3)
    spared = norms_and_embeddings(head)
    named = {f"transformer.{name}.weight" for name in ("queries_embedder", "queries_features", "level_embed")}
    assert named <= spared
    assert not {"pixel_decoder.level_embed", "classifier.bias", "classifier.weight"} & spared
    rest = {name.removesuffix(".weight").removesuffix(".bias") for name in spared - named}
    modules = dict(head.named_modules())
    assert all(isinstance(modules[name], nn.LayerNorm | nn.GroupNorm) for name in rest)
    norms = [name for name, module in modules.items() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
    assert rest == set(norms)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_keeps_a_share_of_the_last_update(nesterov):
    """v = momentum v + g + decay w; w = w - lr (v, or with Nesterov g + decay w + momentum v)."""
    weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    part = CosineConfig(algorithm={"type": "sgd", "momentum": 0.8, "nesterov": nesterov}).algorithm
    optimizer = build_optimizer(part, [{"params": [weight], "weight_decay": 0.1, "lr_scale": 1.0}])
    optimizer.param_groups[0]["lr"] = 0.05
    expected, velocity = weight.detach().numpy().copy(), 0.0
    for step in range(4):
        (weight**2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        gradient = 2 * expected + 0.1 * expected
        velocity = gradient if step == 0 else 0.8 * velocity + gradient
        expected = expected - 0.05 * (gradient + 0.8 * velocity if nesterov else velocity)
    assert weight.detach().numpy() == pytest.approx(expected, rel=1e-12)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(UserError, match="nesterov needs a momentum above 0"):
        parse(CosineConfig, {"algorithm": {"type": "sgd", "momentum": 0, "nesterov": True}})
