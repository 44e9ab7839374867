"""Generalisation baselines in a task stage: gradients, exact resume, settings, and one line for each mistake."""

from __future__ import annotations

import copy
import json
import shutil
from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import load_file

from segdistill.config import Part, UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.generalize import GENERALIZERS
from segdistill.heads import SemFPN
from segdistill.models import Segmenter
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.stages.generalized import GeneralizedObjective, build_generalizers
from tiny_runs import Child, only, run_and_die, tiny_file

NAMES = (*"abcdefghijk", "car", "person")
STYLES = {"data": {"domains": ["proxy"], "images": 4}}
PARTS = {
    "advstyle": [{"type": "advstyle"}],
    "shade": [{"type": "shade", "prototypes": 3, "every": 3}],
    "tldr": [{"type": "tldr"}],
    "feature_distance": [{"type": "feature_distance"}],
    "daformer": [{"type": "shade", "prototypes": 3, "every": 3, "retrospection": 0.0}, {"type": "feature_distance"}],
}
OTHERS = {"tldr": {"styles": STYLES}, "daformer": {"rare_class": {"min_pixels": 4}}}


def recipe_file(folder, kind, **changes):
    """A task stage of six steps with the baselines ``kind``."""
    stage = {"type": "task", "name": "task", "data": {"domains": ["game"], "images": 4}, "batch": 2, "steps": 6,
             "generalize": PARTS.get(kind, [])} | OTHERS.get(kind, {}) | changes  # fmt: skip
    return tiny_file(folder, only(stages=[stage], teacher=None, evaluate=None))


def weights(folder):
    return {f"{path.stem} {key}": value for path in sorted((folder / "stages" / "00-task").glob("*.safetensors"))
            for key, value in load_file(path).items()}  # fmt: skip


def terms(folder):
    return [json.loads(line)["terms"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- the objective --------------------------------------------------------------------------------------------------


def model_of(name="world_student", width=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder(EncoderConfig(name=name), seed=0)
        taps = encoder.record.taps
        head = SemFPN(SemFPN.Config(width=width, dropout=0.0), encoder.spec(taps).channels, encoder.strides(taps), 13)
    return Segmenter(encoder, head, taps, 13)


def batch_of(seed=0):
    rng = torch.Generator().manual_seed(seed)
    blocks = torch.randint(9, 13, (2, 4, 8), generator=rng).repeat_interleave(8, 1).repeat_interleave(8, 2)
    blocks = torch.stack([blocks[0].roll(1, 1), blocks[1].roll(3, 1)])  # cells with 7 / 8 and 5 / 8 of a class
    images = torch.randint(0, 256, (2, 3, 32, 64), generator=rng, dtype=torch.uint8)
    return {"image": images, "label": blocks, "style": images.flip(0, 3) // 2}


def objective_of(kind, model, sources=None):
    parts = []
    for each in PARTS[kind] if isinstance(kind, str) else kind:
        settings = {key: value for key, value in each.items() if key != "type"}
        parts.append(Part(type=each["type"], settings=GENERALIZERS[each["type"]].Config(**settings)))
    built = build_generalizers(parts, model, NAMES)
    sources = sources or (lambda step, least: iter([batch_of(step + 1), batch_of(step + 2)]))
    return GeneralizedObjective(model, list(zip(parts, built, strict=True)), sources).train()


def step_of(objective, number=0, batch=None, seed=7):
    torch.manual_seed(seed)
    return objective(batch or batch_of(), number, 10)


@pytest.mark.parametrize("name", ["world_student", "timm:test_resnet"])
def test_advstyle_trains_on_both_views_and_its_ascent_leaves_no_trace(name):
    """Gradients and batch statistics are those of one loss on the images and the restyled images."""
    model = model_of(name)
    batch = {key: value for key, value in batch_of().items() if key != "style"}
    other = copy.deepcopy(model)
    objective = objective_of("advstyle", model)
    made = []
    restyle = objective.parts["advstyle"].restyle
    objective.parts["advstyle"].restyle = lambda *inputs: made.append(restyle(*inputs)) or made[-1]
    loss = step_of(objective, batch=batch)["cross_entropy"]
    loss.backward()
    assert model.training and model.encoder.training
    pixels = batch["image"].float() / 255
    assert not torch.allclose(made[0], pixels)
    assert made[0].min() >= 0 and made[0].max() <= 1
    other.train()
    expected = sum(other.loss_of(other.decode(other.features(torch.cat([pixels, made[0]]))),
                                 {"label": batch["label"].repeat(2, 1, 1)}).values())  # fmt: skip
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for (key, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), key
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, msg=key)
    for (key, one), two in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=key)


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("name", ["world_student", "timm:test_resnet"])
def test_every_trained_parameter_gets_a_finite_gradient_and_the_reference_none(kind, name):
    batch = batch_of() if kind == "tldr" else {key: batch_of()[key] for key in ("image", "label")}
    objective = objective_of(kind, model_of(name))
    with torch.autocast("cpu", torch.bfloat16):
        found = step_of(objective, batch=batch)
    assert all(term.shape == () and term.isfinite() for term in found.values())
    torch.stack([term.float() for term in found.values()]).sum().backward()
    for key, parameter in objective.model.named_parameters():
        if "mask_token" not in key and "norm." not in key.rpartition("backbone")[2][:7]:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert (objective.reference is None) == (kind == "advstyle")
    if objective.reference is not None:
        assert not objective.reference.training
        assert all(p.grad is None and not p.requires_grad for p in objective.reference.parameters())


def test_prototypes_are_saved_but_neither_optimised_nor_the_reference_saved():
    objective = objective_of("daformer", model_of())
    step_of(objective, batch={key: batch_of()[key] for key in ("image", "label")})
    assert set(objective.optimized()) == {"head", "encoder"}
    assert set(objective.state()) == {"head", "encoder", "shade"}
    shade = objective.state()["shade"]
    assert list(shade.state_dict()) == ["prototypes"]
    assert not list(shade.parameters())
    assert shade.prototypes.abs().sum() > 0
    assert set(objective_of("advstyle", model_of()).state()) == {"head", "encoder"}


def test_prototypes_are_the_styles_of_source_images_collected_on_schedule():
    asked = []

    def sources(step, least):
        asked.append((step, least))
        return iter([batch_of(step + 1), batch_of(step + 2)])

    objective = objective_of("shade", model_of(), sources)
    batch = {key: batch_of()[key] for key in ("image", "label")}
    found = []
    for number in range(10):
        step_of(objective, number, batch)
        found.append(objective.parts["shade"].prototypes.clone())
    assert asked == [(0, 3), (3, 3), (6, 3), (9, 3)]
    assert [torch.equal(a, b) for a, b in pairwise(found)] == [
        True, True, False, True, True, False, True, True, False]  # fmt: skip
    encoder = objective.model.encoder.eval()
    with torch.no_grad():
        early = encoder.stem(torch.cat([batch_of(10)["image"], batch_of(11)["image"]]).float() / 255)
    styles = objective.parts["shade"].style_of(early)
    for each in found[-1]:
        assert (styles - each).abs().sum(1).min() < 1e-4


class TwoScales(Segmenter):
    """Runs its encoder twice, as HRDA does."""

    def features(self, images):
        first, second = super().features(images), super().features(images.flip(3))
        self.both = first, second
        return first


def test_a_network_that_runs_its_encoder_twice_draws_two_styles():
    plain = model_of()
    objective = objective_of("shade", TwoScales(plain.encoder, plain.head, plain.taps, 13))
    batch = {key: batch_of()[key] for key in ("image", "label")}
    batch["image"] = torch.cat([batch["image"][..., :32], batch["image"][..., :32].flip(3)], dim=3)  # symmetric
    step_of(objective, batch=batch)
    first, second = (each.tokens[0] for each in objective.model.both)
    assert len(first) == len(second) == 4
    torch.testing.assert_close(first[:2], second[:2])
    assert not torch.allclose(first[2:], second[2:])


def test_the_heads_of_both_views_see_both_weights():
    """TLDR's losses are those of the two views, each with its weight."""
    model = model_of()
    objective = objective_of("tldr", model)
    found = step_of(objective)
    pixels = batch_of()["image"].float() / 255
    restyled = objective.parts["tldr"].restyle(pixels, batch_of()["style"].float() / 255, torch.sum)
    model.train()
    for key, images in (("cross_entropy", pixels), ("restyled_cross_entropy", restyled)):
        expected = sum(model.loss_of(model.decode(model.features(images)), batch_of()).values())
        assert found[key].item() == pytest.approx(0.5 * expected.item(), rel=1e-5)


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory, image_cache):
    folder = tmp_path_factory.mktemp("plain")
    run(load(recipe_file(folder, "none")), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("kind", PARTS)
def test_a_killed_stage_resumes_exactly_and_differs_from_plain_training(tmp_path, plain, kind):
    """Killed after step 5, with a checkpoint of step 4, between two collections of prototypes."""
    path = recipe_file(tmp_path, kind)
    run(load(path), tmp_path / "whole")
    child = Child(tmp_path / "output", run_and_die, path, tmp_path / "run", tmp_path / "trace", ("00-task", 5))
    assert child.wait() == -9, child.text()
    saved = torch.load(next((tmp_path / "run/stages/00-task/checkpoint").glob("step-00000004.pt")), weights_only=True)
    assert set(saved["modules"]) == {"head", "encoder", *(["shade"] if kind in ("shade", "daformer") else [])}
    run(load(path), tmp_path / "run")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert terms(tmp_path / "whole") == terms(tmp_path / "run")
    assert any(not torch.equal(value, weights(plain)[key]) for key, value in whole.items())


CHANGES = {
    "advstyle": {"step": 3.0},
    "shade": {"prototypes": 2, "concentration": 5.0, "every": 1, "until": 0.0, "consistency": 1.0,
              "retrospection": 100.0, "things": ("a", "b", "c", "car"), "ratio": 0.99},
    "tldr": {"original": 0.9, "stylised": 0.1, "regularisation": (1.0,), "generalisation": (1.0,), "threshold": 0.0,
             "block": 2},
    "feature_distance": {"weight": 1.0, "things": ("a", "b", "c", "car"), "ratio": 0.51},
}  # fmt: skip
RARE = {"temperature": 100.0, "min_pixels": 40, "crop_share": 2.0, "tries": 1}


def test_every_setting_of_a_baseline_is_perturbed():
    for name, part in GENERALIZERS.items():
        assert set(CHANGES[name]) == set(part.Config.model_fields), name
    from segdistill.data.rare_class import RareClassConfig

    assert set(RARE) == set(RareClassConfig.model_fields)


@pytest.mark.parametrize("kind", CHANGES)
def test_every_setting_of_a_baseline_changes_the_terms(kind):
    """Of four steps of a network whose reference has other weights."""
    found = {}
    for field, value in {"nothing": None, **CHANGES[kind]}.items():
        part = PARTS[kind][0] | ({"every": 2} if kind == "shade" else {}) | ({} if value is None else {field: value})
        objective = objective_of([part], model_of())
        with torch.no_grad():
            for parameter in () if objective.reference is None else objective.reference.parameters():
                parameter.mul_(1.5)
        batch = batch_of() if kind == "tldr" else {key: batch_of()[key] for key in ("image", "label")}
        steps = [step_of(objective, number, batch) for number in range(4)]
        found[field] = json.dumps([{name: term.item() for name, term in terms.items()} for terms in steps])
    assert len(set(found.values())) == len(found), found


def test_every_setting_of_rare_class_sampling_changes_the_weights(tmp_path, plain):
    found = {}
    for field, value in {"nothing": None, **RARE}.items():
        rare = {"min_pixels": 12, "temperature": 0.1, "crop_share": 6.0} | ({} if value is None else {field: value})
        run(load(recipe_file(tmp_path / field, "none", rare_class=rare)), tmp_path / field / "run")
        found[field] = sum(value.double().abs().sum().item() for value in weights(tmp_path / field / "run").values())
    found["plain"] = sum(value.double().abs().sum().item() for value in weights(plain).values())
    assert len(set(found.values())) == len(found), found


def test_classes_are_counted_once_and_a_damaged_count_is_counted_again(tmp_path):
    path = recipe_file(tmp_path, "none", rare_class={"min_pixels": 4})
    run(load(path), tmp_path / "run")
    file = tmp_path / "run/stages/00-task/class_pixels.json"
    counts = json.loads(file.read_text())
    assert len(counts["pixels"]) == 4
    assert counts["totals"]["road"] > 0
    manifest = json.loads((tmp_path / "run/stages/00-task/manifest.json").read_text())
    assert "class_pixels.json" in manifest["files"]
    again = tmp_path / "again/stages/00-task"
    again.mkdir(parents=True)
    shutil.copy(file, again)
    (again / "class_pixels.json").write_text(file.read_text().replace('"road": ', '"road": 9'))
    run(load(path), tmp_path / "again")
    assert (again / "class_pixels.json").read_text() == file.read_text()


def test_style_images_are_listed_and_fingerprinted(tmp_path):
    """And a stage without any of the settings has the fingerprint that it had before they existed."""
    run(load(recipe_file(tmp_path, "tldr")), tmp_path / "run")
    lines = (tmp_path / "run/stages/00-task/style_images.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all(line.startswith("proxy/") for line in lines)
    stage = load(recipe_file(tmp_path, "tldr")).stages[0]
    assert [name for name, _, _ in stage.reads()] == ["", ", styles"]
    plain = load(recipe_file(tmp_path, "none")).stages[0]
    assert not {"generalize", "styles", "rare_class"} & set(plain.model_dump(exclude_defaults=True))


MISTAKES = [
    ({"generalize": [{"type": "advstile"}]}, "unknown generalizer 'advstile': did you mean 'advstyle'?"),
    ({"generalize": [{"type": "advstyle", "gamma": 1}]}, "generalizer.gamma: unknown key; .*allowed: step"),
    ({"generalize": [{"type": "advstyle"}] * 2}, "generalize: advstyle appears twice; name it once"),
    ({"generalize": [{"type": "advstyle"}, {"type": "shade"}]},
     "advstyle and shade each make a second view of every image; keep one of them"),
    ({"generalize": [{"type": "tldr"}]}, "tldr needs style images; add 'styles: "),
    ({"styles": STYLES}, "styles: none of the baselines reads style images; add tldr"),
    ({"generalize": [{"type": "advstyle"}], "freeze_encoder": True}, "train the encoder; unfreeze the student's"),
    ({"generalize": [{"type": "advstyle"}], "presence_weight": 1.0}, "remove method, proxy and presence_weight"),
    ({"rare_class": {}, "data": {"domains": ["game"], "images": 4, "weights": [1.0]}}, "remove data.weights"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), MISTAKES)
def test_each_mistake_is_one_line(tmp_path, changes, line):
    with pytest.raises(UserError, match=line) as caught:
        load(recipe_file(tmp_path, "none", **changes))
    assert "\n" not in str(caught.value)


def test_mistakes_that_the_data_or_the_network_shows_are_one_line(tmp_path):
    for number, (kind, changes, overrides, line) in enumerate([
        ("none", {"rare_class": {"min_pixels": 10**6}}, [], "rare_class: no image has 1000000 pixels of any class"),
        ("none", {"generalize": [{"type": "feature_distance", "things": ["tree"]}]}, [], "has no class 'tree'"),
        ("shade", {}, ["student.encoder.name=timm:test_mambaout"], "no early map that can be altered"),
    ]):  # fmt: skip
        folder = tmp_path / str(number)
        with pytest.raises(UserError, match=line):
            run(load(recipe_file(folder, kind, **changes), overrides), folder / "run")


def test_instances_and_semi_supervised_stages_refuse_them(tmp_path):
    from tiny_runs import TINY_OBJECTS

    values = yaml.safe_load(TINY_OBJECTS)
    values["stages"][1] |= {"generalize": [{"type": "advstyle"}]}
    with pytest.raises(UserError, match="need a class for every pixel; the task 'instance' has objects"):
        load(tiny_file(tmp_path, yaml.safe_dump(values)))
    values["stages"][1] |= {"type": "semi"}
    with pytest.raises(UserError, match="generalize, styles and rare_class are for task stages; remove them"):
        load(tiny_file(tmp_path, yaml.safe_dump(values)))
