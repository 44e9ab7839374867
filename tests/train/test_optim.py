"""Learning rates against the values of the authors' schedules (spec F), and which parameters decay."""

from __future__ import annotations

import pytest
from torch import nn

from segdistill.train.optim import CosineConfig, PolyConfig, parameter_groups

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


@pytest.mark.parametrize("config", [CosineConfig(warmup=0.1, lr_reference_batch=None), PolyConfig(warmup=0.1)])
def test_warm_up_grows_in_equal_steps_to_the_base_rate(config):
    rates = [config.schedule(8)(step, 100) for step in range(12)]
    assert rates[:10] == pytest.approx([config.lr * (step + 1) / 10 for step in range(10)])
    assert rates[10] <= config.lr


PERTURBED = {
    CosineConfig: {
        "lr": 1e-3, "lr_reference_batch": 256, "min_lr": 1e-4, "warmup": 0.9, "epochs": 7, "lag": 0,
        "weight_decay": 0.1, "betas": (0.8, 0.99), "clip": 1.0,
    },
    PolyConfig: {
        "lr": 1e-3, "encoder_lr_scale": 1.0, "power": 2.0, "warmup": 0.9, "weight_decay": 0.1, "betas": (0.8, 0.99),
        "clip": 1.0,
    },
}  # fmt: skip
ELSEWHERE = {"weight_decay", "betas", "clip", "encoder_lr_scale"}  # the stages' tests perturb what the schedule lacks


@pytest.mark.parametrize("cls", PERTURBED)
def test_every_setting_of_a_schedule_changes_it(cls):
    assert set(cls.model_fields) == set(PERTURBED[cls])
    default = [cls().schedule(16)(step, 200) for step in range(200)]
    for name, value in PERTURBED[cls].items():
        changed = [cls(**{name: value}).schedule(16)(step, 200) for step in range(200)]
        assert (changed != default) == (name not in ELSEWHERE), name


def test_vectors_and_biases_do_not_decay_and_embeddings_do():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
            self.cls_token = nn.Parameter(self.linear.weight.detach().clone()[None])
            self.frozen = nn.Parameter(self.linear.weight.detach().clone(), requires_grad=False)

    net, other = Net(), nn.Linear(2, 2, bias=False)
    groups = parameter_groups([(net, 0.1), (other, 1.0)], 0.05)
    found = {id(p): (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
    wanted = {
        "linear.weight": (0.05, 0.1), "cls_token": (0.05, 0.1), "linear.bias": (0.0, 0.1),
        "norm.weight": (0.0, 0.1), "norm.bias": (0.0, 0.1),
    }  # fmt: skip
    parameters = dict(net.named_parameters())
    assert {name: found.pop(id(parameters[name])) for name in wanted} == wanted
    assert found == {id(other.weight): (0.05, 1.0)}
