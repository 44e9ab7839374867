"""Finished segmenters on data sets: protocols, images of unequal size, side files, what counts as unseen."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fake_world import score
from segdistill.config import UserError
from segdistill.data.dataset import Dataset, Protocol, Sample
from segdistill.data.files import FilesSource
from segdistill.data.rendered import WorldSource
from segdistill.metrics.confusion import ImageCounts
from segdistill.metrics.unlabelled import Note, notes_of
from segdistill.models import Window
from segdistill.pictures import load_label
from segdistill.recipe import load
from segdistill.results import load_run
from segdistill.runs import score as scoring
from segdistill.runs.check import check
from segdistill.runs.evaluation import mean_interval, retention_interval
from segdistill.runs.execute import run
from segdistill.runs.rescore import evaluate_run, retarget
from segdistill.runs.score import Loader, Scored, load_model, read_samples
from segdistill.tasks.semantic import SemanticSamples
from segdistill.tasks.table import TASKS
from tiny_runs import only, tiny, tiny_file
from tiny_sets import write

SEMANTIC = TASKS["semantic"]
SIZES = [(24, 32), (24, 32), (24, 32), (16, 40), (24, 32), (40, 16), (40, 16)]
ONE_STAGE = [{"type": "task", "name": "task", "data": {"domains": ["game"], "images": 2}, "batch": 2, "steps": 1}]


class Unequal(Dataset):
    """Images of these sizes; every label is one of 19 classes."""

    names = tuple(f"class {i}" for i in range(19))
    colors = np.zeros((19, 3), np.uint8)

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*SIZES[index], 3)).astype(np.uint8)
        return Sample(image, rng.integers(0, 13, SIZES[index]).astype(np.uint8), "a", str(index))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_images_of_one_size_that_follow_one_another_form_batches_and_none_comes_twice(processes):
    seen, data = [], Unequal()
    for rank in range(processes):
        for batch in Loader(SEMANTIC, data, 2, rank, processes):
            assert len(batch["image"]) <= 2
            for image, label, index in zip(batch["image"], batch["label"], batch["index"].tolist(), strict=True):
                assert np.array_equal(image.permute(1, 2, 0), data[index].image)
                assert np.array_equal(label, data[index].label)
                seen.append(index)
    assert sorted(seen) == list(range(len(SIZES)))
    assert [len(batch["index"]) for batch in Loader(SEMANTIC, data, 2, 0, 1)] == [2, 1, 1, 1, 2]


def student_of(folder, recipe):
    stage = folder / "stages/02-task"
    model = recipe.student.filled(encoder=stage / "encoder.safetensors", head=stage / "head.safetensors")
    scored = Scored("student", "semantic", "Student", model, 0, folder, "", {}, 0.0, ())
    return load_model(scored, json.loads((stage / "manifest.json").read_text())["classes"])


def test_unequal_images_score_the_same_in_batches_alone_and_over_processes(tmp_path, finished):
    segmenter, data = student_of(finished, tiny(tmp_path)), Unequal()
    window = Window(size=(16, 16), stride=(8, 8), batch=3)
    options = {"protocols": {"a": Protocol(resize=(16, 32))}, "window": window}
    whole = score(segmenter, {"a": Loader(SEMANTIC, data, 3, 0, 1)}, **options)["a"]
    alone = score(segmenter, {"a": Loader(SEMANTIC, data, 1, 0, 1)}, **options)["a"]
    of_whole = whole.samples().counts
    assert of_whole.size == len(SIZES)
    assert whole.confusion.counts.sum() == sum(h * w for h, w in SIZES)
    assert torch.equal(whole.confusion.counts, alone.confusion.counts)
    assert np.array_equal(of_whole.cells, alone.samples().counts.cells)
    share = score(segmenter, {"a": Loader(SEMANTIC, data, 3, 1, 2)}, **options)["a"].samples().counts
    mine = np.isin(of_whole.images, range(1, len(SIZES), 2))
    assert np.array_equal(share.counts, of_whole.counts[mine])


def test_the_papers_sizes_windows_and_splits_come_from_the_records(tmp_path, monkeypatch):
    monkeypatch.delenv("SEGDISTILL_DATA", raising=False)
    write("cityscapes", tmp_path)
    write("acdc", tmp_path)
    source = FilesSource(root=tmp_path)
    for name, size in (("cityscapes", (512, 1024)), ("acdc:night", (540, 960))):
        assert source.evaluation_split(name) == "val"
        selection = tiny(tmp_path).evaluate.model_copy(update={"images": None}).selection(source, name)
        assert source.open(selection).protocol(name) == Protocol(size, (512, 512), (341, 341))
    world = WorldSource()
    assert world.evaluation_split("fog") == "test"
    selection = tiny(tmp_path).evaluate.selection(world, "fog")
    assert world.open(selection).protocol("fog") == Protocol()


def test_the_results_name_their_primary_score_and_whether_anything_was_distilled(finished):
    results = json.loads((finished / "results.json").read_text())
    metric = results["metrics"][results["primary"]]
    assert (metric["label"], metric["unit"]) == ("mIoU", "%")
    for scores in results["models"]["student"]["domains"].values():
        assert 0 <= scores[results["primary"]] <= 1
        assert len(scores[metric["by_class"]]) == len(results["classes"])
        assert results["metrics"].keys() <= scores.keys()
    assert results["distilled"] is True
    assert load_run(finished).metric.label == "mIoU"


def test_a_recipe_without_a_method_is_the_baseline_whatever_its_name(tmp_path):
    plain = tiny(tmp_path, f"stages={json.dumps(ONE_STAGE)}", "name=gkd")
    run(plain, tmp_path / "plain")
    assert load_run(tmp_path / "plain").distilled is False


def test_the_images_counts_stand_beside_the_scores_and_give_the_intervals(tmp_path, finished):
    results = json.loads((finished / "results.json").read_text())
    images = {role: read_samples(finished / "scores" / f"{role}.npz") for role in ("teacher", "student")}
    for role, model in results["models"].items():
        for domain, scores in model["domains"].items():
            counts = images[role][domain].counts
            total = np.bincount(counts.cells, counts.counts, minlength=13 * 13).reshape(13, 13)
            assert total.tolist() == scores["confusion"]
            assert counts.size == scores["images"] == 2
            assert 0 <= scores["calibration_error"] <= 1
            low, high = scores["miou_interval"]
            assert low <= high
        assert model["mean_unseen_interval"] == pytest.approx(mean_interval(images[role], ["fog", "rain"]))
    interval = retention_interval(images["student"], images["teacher"], ["fog", "rain"])
    assert results["retention_interval"] == pytest.approx(interval)
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "scores/student.npz").unlink()
    again = run(tiny(tmp_path), folder)
    assert again["models"] == results["models"]
    for name, samples in read_samples(folder / "scores/student.npz").items():
        again = samples.arrays()
        assert all(np.array_equal(value, again[key]) for key, value in images["student"][name].arrays().items())
    (folder / "scores/student.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"student.npz is missing or damaged; run the command again"):
        read_samples(folder / "scores/student.npz")
    assert run(tiny(tmp_path), folder)["models"] == results["models"]
    assert (folder / "scores/student.npz").stat().st_size > 2


def test_a_run_of_the_world_is_scored_on_files_of_other_sizes(tmp_path, image_cache, monkeypatch):
    monkeypatch.setattr(scoring, "PICTURE", 20)
    write("cityscapes", tmp_path / "data", size=(24, 80))
    write("acdc", tmp_path / "data", subsets=("night",))
    text = only(stages=ONE_STAGE, data={"size": [32, 64]}, teacher=None, evaluate=None)
    recipe = load(tiny_file(tmp_path, text))
    run(recipe, tmp_path / "run")
    changes = ["evaluate.resize=[32,64]", "evaluate.window={size: [32,32], stride: [16,16]}", "evaluate.pictures=1"]
    changed = retarget(recipe, ["cityscapes:train", "acdc:night"], tmp_path / "data", changes)
    results = evaluate_run(recipe, changed, tmp_path / "run", tmp_path / "out")
    domains = results["models"]["student"]["domains"]
    assert results["unseen"] == list(domains) == ["cityscapes", "acdc:night"]
    assert results["source"] == []
    assert changed.evaluate.splits == {"cityscapes": "train"}
    mean = sum(domain["miou"] for domain in domains.values()) / 2
    assert results["models"]["student"]["mean_unseen"] == pytest.approx(mean)
    truth = [sample.label for sample in changed.scored_source.open(changed.evaluate.selection(
        changed.scored_source, "cityscapes"))]  # fmt: skip
    assert truth[0].shape == (24, 80)  # labels keep their size
    pixels = np.bincount(np.concatenate([label[label != 255] for label in truth]), minlength=19)
    assert np.array(domains["cityscapes"]["confusion"]).sum(1).tolist() == pixels.tolist()
    for kind in ("image", "truth", "student"):
        with Image.open(tmp_path / "out/pictures" / kind / "cityscapes-0.png") as picture:
            assert picture.size == (20, 6)


def test_the_images_with_the_lowest_score_are_kept_worst_first(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    recipe = tiny(tmp_path, "evaluate.images=6", "evaluate.pictures=2", "evaluate.domains=[game,fog]",
                  "evaluate.unseen=[fog]")  # fmt: skip
    results = evaluate_run(recipe, recipe, folder, folder)
    for domain in ("game", "fog"):
        dataset = recipe.data.open(recipe.evaluate.selection(recipe.data, domain))
        pairs = results["pictures"]["worst"][domain]
        assert len(pairs) == 2
        for index, lowest in pairs:
            answer = load_label(folder / f"pictures/student/{domain}-{index}.png")
            truth = load_label(folder / f"pictures/truth/{domain}-{index}.png")
            assert np.array_equal(truth, dataset[index].label)
            assert lowest == pytest.approx(plain_miou(answer, truth), abs=1e-9)
        rest = [i for i in range(6) if i not in dict(pairs)]
        counts = read_samples(folder / "scores/student.npz")[domain].counts
        scores = counts.miou()
        assert pairs[0][1] <= pairs[1][1] <= min(scores[rest])
    assert [pair[0] for pair in load_run(folder).pictures.worst["fog"]] == [
        i for i, _ in results["pictures"]["worst"]["fog"]
    ]
    (folder / f"pictures/truth/fog-{load_run(folder).pictures.worst['fog'][0][0]}.png").unlink()
    with pytest.raises(UserError, match=r"the picture pictures/truth/fog-\d\.png is missing"):
        load_run(folder)


def plain_miou(answer, truth):
    """Mean IoU of one image over the classes in truth or answer, the definition."""
    known = truth != 255
    classes = set(truth[known]) | set(answer[known])
    shares = [
        ((truth == c) & (answer == c) & known).sum() / (((truth == c) | (answer == c)) & known).sum() for c in classes
    ]
    return sum(shares) / len(shares)


def test_an_image_without_a_label_is_none_of_the_worst_and_fewer_images_are_no_fault():
    blank, good, bad = np.zeros((2, 2), np.int64), np.diag([3, 3]), np.array([[0, 3], [3, 0]])
    tables = {"a": [blank, good, bad], "b": [blank]}
    images = {
        name: SemanticSamples(ImageCounts.of(2, own), notes_of([Note(1, 1) for _ in own]))
        for name, own in tables.items()
    }
    assert scoring._worst(images, 5) == {"a": [(2, 0.0), (1, 1.0)], "b": []}
    assert scoring._worst(images, 1)["a"] == [(2, 0.0)]


def test_classes_that_the_segmenter_was_not_trained_on_are_refused(tmp_path, finished):
    write("cityscapes", tmp_path)
    changed = retarget(tiny(tmp_path), ["cityscapes"], tmp_path)
    with pytest.raises(
        UserError, match=r"the teacher was trained on the classes .*'cityscapes' has road, .*same classes"
    ):
        evaluate_run(tiny(tmp_path), changed, finished, tmp_path / "out")
    assert not (tmp_path / "out/results.json").exists()


def test_a_trained_on_domain_is_listed_for_reference_and_never_enters_the_mean(tmp_path):
    for name in ("potsdam_rgb", "potsdam_irrg", "vaihingen_irrg"):
        write(name, tmp_path, size=(32, 32))
    stages = [ONE_STAGE[0] | {"data": {"domains": ["potsdam_rgb"]}}]
    data = {"source": "files", "root": str(tmp_path), "size": [32, 32]}
    recipe = load(tiny_file(tmp_path, only(stages=stages, data=data, teacher=None, evaluate=None)))
    names = ["potsdam_rgb", "potsdam_irrg", "vaihingen_irrg"]
    config = retarget(recipe, names).evaluate
    assert (config.domains, config.unseen, config.validation) == (tuple(names), tuple(names[1:]), ())
    with pytest.raises(UserError, match="stage task is trained on 'potsdam_rgb'; remove it from 'unseen'"):
        check(retarget(recipe, names, overrides=["evaluate.unseen=[potsdam_rgb]"]), trained=recipe)


def test_validation_domains_of_the_recipe_stay_so_and_every_item_may_name_its_split(tmp_path):
    recipe = load(tiny_file(tmp_path), ["evaluate.domains=[game,dusk,fog]", "evaluate.unseen=[fog]",
                                        "evaluate.validation=[dusk]", "evaluate.images=3"])  # fmt: skip
    config = retarget(recipe, ["dusk:val", "game", "night"]).evaluate
    assert (config.domains, config.unseen, config.validation) == (("dusk", "game", "night"), ("night",), ("dusk",))
    assert [config.selection(recipe.data, name).split for name in config.domains] == ["val", "test", "test"]
    assert (config.data, config.images) == (None, 3)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["fog", "cityscapes"], "unknown domain 'cityscapes'"),
        (["fog:val", "fog:test"], "one domain appears twice"),
        (["acdc::val"], r"write NAME\[:SUBSET\]\[:SPLIT\]"),
        (["cityscaps"], "cityscaps"),
    ],
)
def test_a_mistake_in_what_to_score_is_one_line(tmp_path, items, message):
    with pytest.raises(UserError, match=message) as error:
        check(retarget(tiny(tmp_path), items, None), trained=tiny(tmp_path))
    assert "\n" not in str(error.value)
