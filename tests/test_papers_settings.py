"""The hyper-parameters of the recipes on real data, number by number, against the authors' (spec A.4 to A.10)."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from segdistill.config import part_of
from segdistill.data import photometric
from segdistill.grid.demo import recipes_folder
from segdistill.heads import HEADS, Head
from segdistill.heads.mask2former import Mask2Former
from segdistill.recipe import load
from segdistill.stages.distill import DistillConfig
from segdistill.stages.task import TaskConfig

OTHERS = {"instance", "detection", "deeplabv3plus", "daformer", "hrda", "rein"}
"""Recipes with schedules of their own: other tasks, and the networks of Table 6."""

REAL = [
    path
    for path in sorted(recipes_folder().glob("*.yaml"))
    if not path.stem.startswith(("world", "real_")) and not OTHERS & set(path.stem.split("_"))
]
"""Of GKD."""
IMAGES = {"gtav": 24_966, "cityscapes": 2975, "potsdam": 3456}  # of the source; EndoVis's are not established
ITERATIONS = {"gtav": 58_200, "cityscapes": 6600, "potsdam": 7800}  # of the domain-agnostic stage: 300 epochs


def values(path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def stages(path, kind: type):
    return [kind(**stage) for stage in values(path)["stages"] if kind.model_fields["type"].default == stage["type"]]


ADAMW = {"type": "adamw", "betas": [0.9, 0.999]}


def test_there_are_real_recipes():
    assert len(REAL) >= 11


BASELINES = {  # batch, rate of encoder and head, power, weight decay, optimiser, warm-up (spec gkd, C.2 and C.4; Rein)
    "gtav_deeplabv3plus": (8, 0.01, 0.01, 0.9, 5e-4, "sgd", 0.0),
    "gtav_daformer_plain": (2, 6e-5, 6e-4, 1.0, 0.01, "adamw", 0.0375),
    "gtav_hrda_plain": (2, 6e-5, 6e-4, 1.0, 0.01, "adamw", 0.0375),
    "gtav_rein": (4, 1e-4, 1e-4, 0.9, 0.05, "adamw", 0.0),
}


@pytest.mark.parametrize("name", BASELINES)
def test_the_networks_of_table_6_have_their_authors_schedule(name):
    (stage,) = stages(recipes_folder() / f"{name}.yaml", TaskConfig)
    own = stage.optimizer
    batch, slow, rate, power, decay, algorithm, warmup = BASELINES[name]
    assert (stage.steps, stage.batch, own.algorithm.type) == (40_000, batch, algorithm)
    assert (own.lr * own.encoder_lr_scale, own.lr) == pytest.approx((slow, rate))
    assert (own.power, own.weight_decay, own.warmup, own.clip) == (power, decay, warmup, None)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_task_stages_have_the_authors_schedule_and_augmentation(path):
    for stage in stages(path, TaskConfig):
        assert (stage.steps, stage.batch) == (40_000, 4)
        assert stage.optimizer.model_dump() == {
            "lr": 1e-4, "encoder_lr_scale": 0.1, "power": 0.9, "drops": (), "weight_decay": 0.05, "algorithm": ADAMW,
            "warmup": 0.0, "clip": None, "decay_norms": False,
        }  # fmt: skip
        assert stage.augment.model_dump() == {
            "scale": (0.5, 2.0), "max_share": 0.75, "tries": 10, "flip": 0.5, "photometric": True
        }  # fmt: skip
        assert stage.presence_weight == 0
        assert stage.proxy is None
        if "gkd" in path.stem and stage.model == "student":
            assert stage.freeze_encoder
            assert stage.method is None
    assert load(path).data.size == (512, 512)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_distillation_stages_have_the_authors_schedule_and_augmentation(path):
    for stage in stages(path, DistillConfig):
        agnostic = stage.name == "task_agnostic"
        assert stage.optimizer.model_dump() == {
            "lr": 5e-4, "lr_reference_batch": 512, "min_lr": 1e-5, "weight_decay": 0.05, "algorithm": ADAMW,
            "warmup": 0.0, "epochs": 100 if agnostic else 300, "lag": 1, "clip": None,
        }  # fmt: skip
        assert stage.augment.model_dump() == {
            "crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "keep_aspect": False, "flip": 0.5,
            "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25,
        }  # fmt: skip
        assert stage.repeats == 3
        assert stage.method.settings.model_dump() == {
            "token": "cls", "token_weight": 1.0, "feature_weight": 1.0, "patch_weight": 1.0, "mask_probability": 0.5,
            "mask_ratio": 0.5, "mask_first": True, "masked_only": False, "scale": None, "own_position_bias": 0.0,
            "own_position_anneal": 0.6,
        }  # fmt: skip
        if agnostic:
            assert (stage.steps, stage.batch) == (250_200, 512)  # 100 epochs of 2,502 iterations
            assert (stage.size, stage.patch, stage.teacher_resample) == ((224, 224), 14, "hub")
        else:
            assert (stage.batch, stage.size, stage.patch) == (128, None, None)
            source = path.stem.split("_")[0]
            if source in ITERATIONS:
                assert stage.steps == ITERATIONS[source]


@pytest.mark.parametrize("source", IMAGES)
def test_iterations_of_the_domain_agnostic_stage_are_300_epochs_of_repeated_augmentation(source):
    """Each of 4 processes takes floor(len / 256) * 256 / 4 samples an epoch and drops the last batch of 32."""
    per_process = IMAGES[source] // 256 * 256 // 4
    assert ITERATIONS[source] == 300 * (per_process // 32)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_heads_have_the_authors_settings(path):
    adapter = TypeAdapter(part_of("head", HEADS))
    for role in ("teacher", "student"):
        settings = adapter.validate_python(values(path)[role]["head"]).settings
        assert isinstance(settings, Mask2Former.Config)
        assert {key: value for key, value in settings.model_dump().items() if value is not None} == {
            "queries": 100, "width": 256, "encoder_layers": 6, "decoder_layers": 9, "heads": 8,
            "encoder_feedforward": 1024, "decoder_feedforward": 2048, "dropout": 0.0, "points": 12_544,
            "oversample": 3.0, "importance": 0.75, "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0,
            "no_object_weight": 0.1,
        }  # fmt: skip


def parameters(head: Head) -> int:
    return sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize(("encoder", "width", "paper"), [(21.98, 384, 33.2), (86.44, 768, 99.7)])
@pytest.mark.parametrize("table", ["table7_gtav", "table7_cityscapes"])
def test_table_7s_semfpn_is_as_large_as_the_papers(table, encoder, width, paper):
    rows = values(recipes_folder() / "tables" / f"{table}.yaml")["rows"]
    setting = next(s for row in rows for s in row.get("settings", []) if "semfpn" in s)
    settings = TypeAdapter(part_of("head", HEADS)).validate_python(yaml.safe_load(setting.split("=", 1)[1]))
    head: Any = HEADS[settings.type]
    total = encoder + parameters(head(settings.settings, (width,) * 4, (16,) * 4, 19)) / 1e6
    assert total == pytest.approx(paper, rel=0.015)  # millions


def test_mask2formers_size_is_the_papers():
    """41.9 M with ViT-S and 106.8 M with ViT-B, heads included (spec A.12)."""
    for encoder, width, paper in ((21.98, 384, 41.9), (86.44, 768, 106.8)):
        head = Mask2Former(Mask2Former.Config(), (width,) * 4, (16,) * 4, 19)
        assert encoder + parameters(head) / 1e6 == pytest.approx(paper, rel=0.005)


def test_the_distortions_ranges_are_mmsegmentations():
    assert (photometric.BRIGHTNESS, photometric.FACTORS, photometric.HUE) == (32.0, (0.5, 1.5), 18)


TABLES = sorted((recipes_folder() / "tables").glob("*.yaml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_papers_row_without_distillation_freezes_the_encoder(path):
    """The authors' configurations of DeiT and DINO freeze it; a row that trains it is ours."""
    for row in values(path)["rows"]:
        if row.get("paper") in ("DeiT", "DeiT-S", "DINO") and path.stem != "plateau_world":
            assert "stages.task.freeze_encoder=true" in row["settings"], row
