"""What the two stages optimise: which terms, which images, which parameters."""

from __future__ import annotations

import pytest
import torch

from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.methods import GKD, MSE
from segdistill.methods.kl import pixel_kl
from segdistill.ops import generator, resize
from segdistill.stages.base import ModelConfig
from segdistill.stages.distill import Distillation, DistillConfig, DistillObjective
from segdistill.stages.task import TaskConfig, TaskObjective, build_model
from segdistill.tasks.table import TASKS

SEMFPN = {"type": "semfpn", "width": 8, "dropout": 0.0}
SEED = (0, "stage")


@pytest.fixture(scope="module")
def teacher():
    return build_encoder(EncoderConfig(name="world_teacher"), seed=1).requires_grad_(False)


@pytest.fixture
def student():
    return build_encoder(EncoderConfig(name="world_student"), seed=0)


def part(kind, **settings):
    values = {"name": "x", "steps": 1, "data": {"domains": ["game"], "images": 1}, "method": {"type": kind, **settings}}
    return TaskConfig.model_validate(values).method


@pytest.fixture(scope="module")
def teacher_segmenter(teacher):
    """The teacher with a head whose strides are the student's."""
    return model_of("world_teacher", teacher)


def model_of(name, encoder, **head):
    model = ModelConfig.model_validate({"encoder": {"name": name}, "head": SEMFPN | head})
    return build_model(TASKS["semantic"], model, encoder, "abcde", seed=9, stage="teacher").eval().requires_grad_(False)


def with_logits(student, segmenter, kind="logit_kd", **settings):
    return Distillation(student, segmenter.encoder, part(kind, **settings), SEED, segmenter.head)


def task(student, *, frozen=False, distillation=None, presence_weight=0.0):
    model = ModelConfig.model_validate({"encoder": {"name": "world_student"}, "head": SEMFPN})
    segmenter = build_model(TASKS["semantic"], model, student, "abcde", seed=3, stage="task")
    return TaskObjective(
        segmenter, frozen=frozen, distillation=distillation, presence_weight=presence_weight, seed=4
    ).train()


def batch(seed=0, proxy=None):
    rng = generator("batch", seed)
    made = {
        "image": torch.randint(0, 256, (2, 3, 32, 64), generator=rng, dtype=torch.uint8),
        "label": torch.randint(0, 5, (2, 32, 64), generator=rng),
    }
    if proxy is not None:
        made["proxy"] = torch.randint(0, 256, (2, 3, 32, 64), generator=generator("proxy", proxy), dtype=torch.uint8)
    return made


def backward(terms):
    torch.stack(list(terms.values())).sum().backward()


def with_gradient(module):
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_a_frozen_encoder_gets_no_gradient_stays_in_evaluation_mode_and_is_not_saved(student):
    before = {key: value.clone() for key, value in student.state_dict().items()}
    objective = task(student, frozen=True, presence_weight=0.1)
    assert objective.training
    assert not any(module.training for module in student.modules())
    assert set(objective.optimized()) == {"head", "presence"}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1)
    backward(objective(batch(), 0, 2))
    optimizer.step()
    assert all(p.grad is None for p in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert with_gradient(objective.model.head)
    assert with_gradient(objective.presence) == {"weight", "bias"}


def test_a_trained_encoder_gets_gradients_from_the_labels(student):
    objective = task(student)
    assert set(objective.optimized()) == {"head", "encoder"}
    assert all(module.training for module in student.modules())
    backward(objective(batch(), 0, 2))
    assert "backbone.patch_embed.proj.0.weight" in with_gradient(student)


@pytest.mark.parametrize("kind", ["mse", "gkd", "proteus", "g2sd"])
def test_single_stage_terms_are_the_task_terms_and_the_method_terms(student, teacher, kind):
    distillation = Distillation(student, teacher, part(kind), SEED)
    both = task(student, distillation=distillation, presence_weight=0.1)(batch(), 1, 2)
    alone = task(student, presence_weight=0.1)(batch(), 1, 2)
    method = DistillObjective(student, distillation)({"image": batch()["image"]}, 1, 2)
    assert both.keys() == alone.keys() | method.keys()
    assert not alone.keys() & method.keys()
    for name, value in (alone | method).items():
        torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["mse", "gkd"])
def test_proxy_images_enter_the_distillation_terms_alone(student, teacher, kind):
    objective = task(student, distillation=Distillation(student, teacher, part(kind), SEED), presence_weight=0.1)
    none, one, two = (objective(batch(proxy=proxy), 1, 2) for proxy in (None, 1, 2))
    for name in ("cross_entropy", "presence"):
        torch.testing.assert_close(one[name], none[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    for name in none.keys() - {"cross_entropy", "presence"}:
        assert abs(one[name].item() - two[name].item()) > 1e-5, name
    if kind == "mse":  # all four images weigh the same
        proxy = {"image": batch(proxy=1)["proxy"]}
        expected = (none["feature"] + DistillObjective(student, objective.distillation)(proxy, 1, 2)["feature"]) / 2
        torch.testing.assert_close(one["feature"], expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_stays_in_evaluation_mode_gets_no_gradient_and_is_not_saved(student, teacher):
    distillation = Distillation(student, teacher, part("gkd"), SEED)
    for objective in (DistillObjective(student, distillation), task(student, distillation=distillation)):
        objective.train()
        assert distillation.method.training
        assert not any(module.training for module in teacher.modules())
        backward(objective(batch(), 0, 2))
        assert all(p.grad is None for p in teacher.parameters())
        saved = {id(p) for module in objective.optimized().values() for p in module.parameters()}
        assert not saved & {id(p) for p in teacher.parameters()}
        assert {id(p) for p in (*student.parameters(), *distillation.method.parameters())} <= saved


@pytest.mark.parametrize("proxy", [None, 1])
def test_logits_are_both_heads_words_on_all_images_before_upsampling(student, teacher_segmenter, proxy):
    objective = task(student, distillation=with_logits(student, teacher_segmenter), presence_weight=0.1)
    both, alone = objective(batch(proxy=proxy), 1, 2), task(student, presence_weight=0.1)(batch(), 1, 2)
    assert both.keys() == alone.keys() | {"pixel"}
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-5, msg=name)
    images = torch.cat([batch()["image"], *([] if proxy is None else [batch(proxy=proxy)["proxy"]])]).float() / 255
    ours, theirs = (net.decode(net.features(images)) for net in (objective.model, teacher_segmenter))
    assert ours.shape == theirs.shape == (len(images), 5, 8, 16)  # stride 4 of 32 x 64
    torch.testing.assert_close(both["pixel"], pixel_kl(ours, theirs), rtol=1e-4, atol=1e-6)


def test_logits_of_other_strides_are_resampled_to_the_teachers(student, teacher):
    coarse = model_of("world_teacher", teacher, strides=[8, 16, 32, 64])
    objective = task(student, distillation=with_logits(student, coarse))
    images = batch()["image"].float() / 255
    target = coarse.decode(coarse.features(images))
    ours = objective.model.decode(objective.model.features(images))
    assert (ours.shape[-2:], target.shape[-2:]) == ((8, 16), (4, 8))
    expected = pixel_kl(resize(ours, (4, 8)), target)
    torch.testing.assert_close(objective(batch(), 0, 2)["pixel"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "settings"), [("logit_kd", {}), ("cwd", {"maps": "logits"}), ("mse", {})])
def test_every_network_runs_once_per_step(student, teacher_segmenter, kind, settings):
    """One pass of both encoders and of the heads that are asked, proxy images and two kinds of taps included."""
    if kind == "mse":
        distillation = Distillation(student, teacher_segmenter.encoder, part(kind), SEED)
    else:
        distillation = with_logits(student, teacher_segmenter, kind, **settings)
    objective, passes = task(student, distillation=distillation), []
    own, its = objective.model.head, teacher_segmenter.head
    networks = {"student": student, "teacher": teacher_segmenter.encoder, "own": own.classifier, "its": its.classifier}
    hooks = [
        module.register_forward_hook(lambda _, args, __, name=name: passes.append((name, len(args[0]))))
        for name, module in networks.items()
    ]
    objective(batch(proxy=1), 0, 2)
    for hook in hooks:
        hook.remove()
    heads = [("own", 2)] if kind == "mse" else [("own", 4), ("its", 4)]
    assert sorted(passes) == sorted([("student", 4), ("teacher", 4), *heads])


def test_logits_teach_the_students_head_and_encoder_and_nothing_else(student, teacher_segmenter):
    distillation = with_logits(student, teacher_segmenter)
    objective = task(student, distillation=distillation)
    assert objective.model.head.training
    assert not any(module.training for module in teacher_segmenter.modules())
    objective(batch(), 0, 2)["pixel"].backward()
    assert "classifier.weight" in with_gradient(objective.model.head)
    assert "backbone.patch_embed.proj.0.weight" in with_gradient(student)
    assert all(p.grad is None for p in teacher_segmenter.parameters())
    saved = {id(p) for module in objective.optimized().values() for p in module.parameters()}
    assert not saved & {id(p) for p in teacher_segmenter.parameters()}
    assert saved == {id(p) for p in (*student.parameters(), *objective.model.head.parameters())}


@pytest.mark.parametrize(("kind", "settings"), [("logit_kd", {}), ("cwd", {"maps": "logits"})])
def test_a_stage_without_head_refuses_a_method_that_reads_logits(kind, settings):
    values = {"name": "x", "steps": 1, "data": {"domains": ["game"], "images": 1}}
    (line,) = DistillConfig.model_validate(values | {"method": {"type": kind, **settings}}).faults()
    assert line.startswith(f"{kind} compares class scores, but a distill stage has no head")
    assert not DistillConfig.model_validate(values | {"method": {"type": "cwd"}}).faults()


def test_the_presence_head_starts_from_its_seed_and_its_weight_counts(student):
    torch.manual_seed(5)
    one = task(student, presence_weight=0.1)
    torch.manual_seed(6)
    two = task(student, presence_weight=0.3)
    assert torch.equal(one.presence.weight, two.presence.weight)
    first, second = one(batch(), 0, 2), two(batch(), 0, 2)
    assert second["presence"].item() == pytest.approx(3 * first["presence"].item(), rel=1e-4)
    backward(second)
    assert with_gradient(two.presence) == {"weight", "bias"}
    assert "presence" not in task(student)(batch(), 0, 2)


def test_masks_follow_seed_and_step(student, teacher):
    images = torch.zeros(4, 3, 32, 64)
    masks = {
        key: Distillation(student, teacher, part("gkd"), seed).mask(images, step).tokens
        for key, seed, step in (("a", SEED, 0), ("again", SEED, 0), ("step", SEED, 1), ("seed", (1, "stage"), 0))
    }
    assert torch.equal(masks["a"], masks["again"])
    assert not torch.equal(masks["a"], masks["step"])
    assert not torch.equal(masks["a"], masks["seed"])
    assert Distillation(student, teacher, part("mse"), SEED).mask(images, 0) is None


def test_a_method_learns_how_far_the_stage_is(student, teacher):
    distillation = Distillation(student, teacher, part("gkd"), SEED)
    DistillObjective(student, distillation)(batch(), 3, 4)
    assert isinstance(distillation.method, GKD)
    assert distillation.method.progress == 0.75


def test_the_student_does_not_run_on_views_that_a_method_does_not_need(student, teacher):
    batches = []
    with student.register_forward_pre_hook(lambda _, args: batches.append(len(args[0]))):
        for kind in ("mse", "gkd", "g2sd"):
            DistillObjective(student, Distillation(student, teacher, part(kind), SEED))(batch(), 0, 1)
    assert batches == [2, 2 + 1, 2]


def test_a_method_gets_the_taps_that_its_settings_ask_for(student, teacher):
    distillation = Distillation(student, teacher, part("mse", taps=(2, -1), weight=1.0), SEED)
    assert isinstance(distillation.method, MSE)
    terms = DistillObjective(student, distillation)(batch(), 0, 1)
    images = batch()["image"].float() / 255
    ours, theirs = student(images, (2, -1)).tokens, teacher(images, (2, -1)).tokens
    errors = [(a(s) - t).square().mean() for a, s, t in zip(distillation.method.adapters, ours, theirs, strict=True)]
    torch.testing.assert_close(terms["feature"], sum(errors) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"type": "mse"}, "freeze_encoder": True}, "cannot train a frozen encoder"),
        ({"method": {"type": "mse"}, "model": "teacher"}, "cannot train a frozen encoder"),
        ({"proxy": {"data": {"domains": ["proxy"], "images": 1}}}, "add a method or remove proxy"),
    ],
)
def test_terms_that_cannot_work_together_are_errors(changes, message):
    values = {"name": "x", "steps": 1, "data": {"domains": ["game"], "images": 1}} | changes
    assert any(message in line for line in TaskConfig.model_validate(values).faults())
