"""An exported graph gives the segmenter's labels, or nothing is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import pos_embed_sincos
from timm.models.vision_transformer_sam import get_rel_pos
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoderEncoderOnly

import segdistill
from export_cases import MASK2FORMER, PAGE, SEMFPN, build, export_case, page_commands, page_programs, pixels, run_page
from segdistill.config import UserError
from segdistill.data.dataset import Dataset, Sample
from segdistill.export import check, export, ship, summary_rows
from segdistill.export.check import Domain, MapTally, Row, View, compare, disagreeing, torch_runner
from segdistill.export.graph import (
    Graph,
    cell_grid,
    cubic_positions,
    exportable,
    gathered_grid_sample,
    reference_points,
    relative_positions,
)
from segdistill.export.objects import paired
from segdistill.files import sha256
from segdistill.models.segmenter import Window
from segdistill.objects import Detections, encode
from segdistill.runlog import Quiet
from segdistill.sharing.pack import load_packed, pack
from segdistill.weights import RunTimePositions, resample_positions
from tiny_runs import Child, tiny
from tiny_runs import command as command_line


@pytest.fixture(scope="module")
def exported(tmp_path_factory, finished):
    """A folder in which the commands of docs/export.md were given, and what they printed."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "runs").mkdir()
    (folder / "runs/mine").symlink_to(finished)
    child = Child(folder / "printed.txt", run_page, folder)
    assert child.wait(1200) == 0, child.text()
    return folder, child.text()


@pytest.fixture(scope="module")
def packed(exported):
    return exported[0] / "small.safetensors"


@pytest.mark.parametrize("seed", range(4))
def test_sampling_by_gathers_is_grid_sample(seed):
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 5, 3 + seed, 7, generator=rng, dtype=torch.float64)
    grid = 3 * torch.rand(2, 4, 6, 2, generator=rng, dtype=torch.float64) - 1.5  # a third of it outside
    expected = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(gathered_grid_sample(values.float(), grid.float()), expected.float())


@pytest.mark.parametrize("new", [(8, 8), (9, 5), (16, 24), (5, 11)])
def test_positions_are_those_of_the_run_time_way(new):
    table = torch.randn(1, 1 + 64, 6, generator=torch.Generator().manual_seed(0))
    expected = resample_positions(table, (8, 8), new, prefix=1, how="hub")
    torch.testing.assert_close(cubic_positions(table, (8, 8), new, prefix=1), expected, atol=1e-5, rtol=1e-5)
    if new == (8, 8):
        assert torch.allclose(expected, table)
    assert RunTimePositions.__doc__  # what a network does at every pass; the segmenters below go through it


@pytest.mark.parametrize("head", [SEMFPN, MASK2FORMER], ids=["semfpn", "mask2former"])
@pytest.mark.parametrize("encoder", ["world_student", "timm:test_convnext"])
@pytest.mark.parametrize("size", [None, (64, 96)])
def test_the_graph_is_the_segmenter_before_it_is_exported(encoder, head, size):
    segmenter, images = build({"name": encoder}, head), pixels((2, 70, 90))
    classes, confidence = torch_runner(segmenter, View(size))(images)
    graph = Graph(segmenter, size)
    with torch.inference_mode(), exportable(graph.encoder):
        own, sure = graph(torch.from_numpy(images))
    assert (own.numpy() == classes).mean() > 0.9999
    np.testing.assert_allclose(sure.numpy(), confidence, atol=1e-4)


def test_windows_are_inside_the_graph():
    segmenter, images = build({"name": "world_student"}, SEMFPN), pixels((2, 64, 96))
    window = Window(size=(64, 64), stride=(32, 32))
    classes, _ = torch_runner(segmenter, View((64, 96), window))(images)
    graph = Graph(segmenter, (64, 96), window)
    with torch.inference_mode(), exportable(graph.encoder):
        assert (graph(torch.from_numpy(images))[0].numpy() == classes).mean() > 0.9999
    assert (torch_runner(segmenter, View((64, 96)))(images)[0] != classes).any(), "windows matter here"


EXPORTED = [("vit", None), ("convnext", None), ("vit_mask2former", None),
            ("resnet_deeplabv3plus", None), ("mit_daformer", None), ("vit_rein", None),
            ("deit", None), ("dinov3", None), ("sam", (64, 96)), ("swin", (64, 96))]  # fmt: skip


@pytest.mark.parametrize(("name", "size"), EXPORTED)
def test_every_kind_of_network_in_onnxruntime_at_any_batch_and_size(name, size, tmp_path):
    child = Child(tmp_path / "log.txt", export_case, name, size, tmp_path / "facts.json")
    assert child.wait(1200) == 0, child.text()
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert min(facts["equal"].values()) >= 0.999, facts["equal"]
    assert facts["difference"] < 1e-3
    assert "GridSample" not in facts["operators"]
    assert facts["axes"] == [
        ["batch", "height", "width", 3],
        ["batch", "height", "width"],
        ["batch", "height", "width"],
    ]


@pytest.mark.parametrize(("name", "size"), [("vit_objects", None), ("convnext_objects", None),
                                            ("vit_mask2former_objects", (64, 96))])  # fmt: skip
def test_objects_in_onnxruntime_at_any_batch_and_size(name, size, tmp_path):
    child = Child(tmp_path / "log.txt", export_case, name, size, tmp_path / "facts.json")
    assert child.wait(1200) == 0, child.text()
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert min(facts["equal"].values()) >= 0.999, facts["equal"]
    assert facts["difference"] < 1e-3
    assert facts["scores"] == [None] * 3
    queries = 4 if "mask2former" in name else 6
    assert facts["outputs"] == [["batch", queries, 7], ["batch", queries, facts["outputs"][1][2]]]
    assert [shape[:2] for shape in facts["shapes"]] == [[2, queries], [2, queries]]


@pytest.mark.parametrize(("name", "size"), [("vit_boxes", None), ("convnext_boxes", None), ("vit_boxes", (96, 160))])
def test_boxes_in_onnxruntime_at_any_batch_and_size(name, size, tmp_path):
    """Suppression is part of the graph, and images of a batch do not suppress each other's boxes."""
    child = Child(tmp_path / "log.txt", export_case, name, size, tmp_path / "facts.json")
    assert child.wait(1200) == 0, child.text()
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert min(facts["equal"].values()) >= 0.99, facts["equal"]
    assert facts["difference"] < 1e-3
    assert facts["outputs"] == [["batch", 40, 4], ["batch", 40], ["batch", 40]]
    assert facts["shapes"] == [[2, 40, 4], [2, 40], [2, 40]]
    assert facts["operators"]["NonMaxSuppression"] == 6  # of regions on five levels, of boxes
    assert 20 < facts["found"] <= 80


def test_an_instance_run_is_exported_and_compared_by_its_detections(finished_objects, tmp_path, monkeypatch):
    command = ["export", str(finished_objects), str(tmp_path / "objects.onnx"), "--fp16", "--int8", "--images", "2"]
    child = Child(tmp_path / "log.txt", command_line, command)
    assert child.wait(1200) == 0, child.text()
    assert "equal: detections of the network, weighted by score" in child.text()
    report = json.loads((tmp_path / "objects.onnx.json").read_text())
    assert list(report["outputs"]) == ["scores", "masks"]
    for row in report["domains"]["fp32"]:
        assert row["equal"] >= 0.99
        assert row["difference"] < 1e-4
        expected = load_packed(pack(finished_objects, tmp_path / f"{row['domain']}.safetensors")[0])[1]
        assert row["torch_ap"] == expected["scores"]["student"]["domains"][row["domain"]]["ap"]
    assert report["files"]["objects.int8.onnx"]["bytes"] < 0.5 * report["files"]["objects.onnx"]["bytes"]
    image = Image.fromarray(pixels((1, 48, 96))[0])
    image.save(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    expected = segdistill.load(finished_objects).predict(image)
    program = next(text for text in page_programs() if "objects.onnx" in text)
    found: dict = {}
    exec(compile(program.replace("street.jpg", "street.png"), PAGE.name, "exec"), found)
    assert len(found["objects"]) == len({runs["counts"] for runs in expected.run_lengths}) > 2
    for score, name, mask in found["objects"]:
        near = np.flatnonzero(np.abs(expected.scores - score) < 0.01).tolist()
        assert max((mask == expected.mask(i)).mean() for i in near if expected.class_names[i] == name) > 0.99


def test_pairs_are_of_one_class_and_mask_and_used_once():
    one, other = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    one[:4], other[4:] = True, True
    expected = Detections.of([0.9, 0.8, 0.7], [1, 1, 0], [encode(one), encode(one), encode(other)], (8, 8))
    found = Detections.of([0.85, 0.7, 0.6], [1, 0, 1], [encode(one), encode(other), encode(other)], (8, 8))
    assert paired(expected, found).tolist() == [pytest.approx(0.05), np.inf, 0.0]
    assert paired(found, Detections.of([], [], [], (8, 8))).tolist() == [np.inf] * 3


def test_export_writes_all_precisions_with_a_report_and_a_table(exported, packed):
    folder, printed = exported
    report = json.loads((folder / "small.onnx.json").read_text())
    header = load_packed(packed)[1]
    assert set(report["files"]) == {f"small{kind}.onnx" for kind in ("", ".fp16", ".int8")}
    for name, facts in report["files"].items():
        assert sha256(folder / name) == facts["sha256"]
        assert name in printed
    assert [row["domain"] for row in report["domains"]["int8"]] == ["game", "fog", "rain"]
    assert [row["kind"] for row in report["domains"]["fp16"]] == ["source", "unseen", "unseen"]
    for row in report["domains"]["fp32"]:
        assert row["equal"] >= 0.999
        expected = header["scores"]["student"]["domains"][row["domain"]]["miou"]  # two images of each, as scored
        assert row["torch_miou"] == pytest.approx(expected, abs=1e-6)
        assert row["miou"] == pytest.approx(expected, abs=1e-3)
    assert report["files"]["small.int8.onnx"]["bytes"] < 0.5 * report["files"]["small.onnx"]["bytes"]
    assert report["source"]["tensors_sha256"] == header["tensors_sha256"]
    assert set(report["latency_ms"]) == {"torch", "fp32", "fp16", "int8"}
    assert report["latency_threads"] == 1
    assert "32 x 64 pixels, 1 threads, median, engines in turn" in printed
    assert "fixed: the evaluation fits images into a size" in printed
    table = [line for line in printed.splitlines() if line.startswith(("fp", "int8", "file", "small."))]
    assert table
    assert max(map(len, table)) <= 100


def test_the_file_says_what_it_is_and_runs_without_this_package(exported, packed):
    import onnxruntime

    folder, _ = exported
    session = onnxruntime.InferenceSession(folder / "small.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["segdistill"])
    segmenter, header = load_packed(packed)
    assert about["classes"] == header["classes"]
    assert [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())] == [
        ("image", "tensor(uint8)"), ("classes", "tensor(uint8)"), ("confidence", "tensor(float)")]  # fmt: skip
    image = pixels((3, 32, 64))
    classes, confidence = session.run(None, {"image": image})
    expected = segmenter.predict(torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255)
    assert (classes == expected.numpy()).mean() >= 0.999
    assert confidence.min() > 0
    assert confidence.max() <= 1


def test_a_program_of_torch_export(exported, packed):
    image = torch.from_numpy(pixels((2, 32, 64)))
    classes, _ = torch.export.load(exported[0] / "small.pt2").module()(image)
    expected = load_packed(packed)[0].predict(image.permute(0, 3, 1, 2).float() / 255)
    assert (classes.long() == expected).float().mean() >= 0.999


def test_the_page_names_every_command_that_ships(exported):
    called = {arguments[0] for arguments in page_commands()}
    assert called == {"pack", "verify", "export"}
    assert "`segdistill push " in PAGE.read_text(), "which needs a network"
    assert exported[1].count(" differ, ") == 2, "both files were verified"
    assert exported[1].count(" 0 differ, ") == 2


def test_the_pages_python_runs(exported, monkeypatch):
    monkeypatch.chdir(exported[0])
    Image.fromarray(pixels((1, 70, 90))[0]).save("street.jpg")
    others = ("objects.onnx", "boxes.onnx")  # run with models of objects
    program = "\n".join(text for text in page_programs() if not any(name in text for name in others))
    found: dict = {}
    exec(compile(program, PAGE.name, "exec"), found)
    assert found["classes"].shape == found["confidence"].shape == (1, 70, 90)
    assert found["header"]["name"] == "tiny"


def test_a_graph_that_disagrees_is_an_error_and_leaves_nothing(packed, tmp_path, monkeypatch):
    def wrong(images):
        return np.full(images.shape[:3], 3, np.uint8), np.ones(images.shape[:3], np.float32)

    monkeypatch.setattr(ship, "trace", lambda *_: None)
    monkeypatch.setattr(ship, "_contents", lambda *_: ({"fp32": b"graph"}, {}))
    monkeypatch.setattr(ship, "_runner", lambda *_: wrong)
    with pytest.raises(
        UserError, match=r"gives other labels than the network: [\d.]+ % are equal on \w+ .at least 99.9"
    ):
        export(packed, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_a_converter_raises_becomes_one_line():
    with pytest.raises(UserError, match=r"no fp16 .RuntimeError: op Foo.; nothing was written"), ship.said("no fp16"):
        raise RuntimeError("op Foo\nand a page of C++")
    with (
        pytest.raises(UserError, match=r"nothing was written; known to export: ViT, .* with semfpn, mask") as error,
        ship.said("torch cannot export this network", ship.EXPORTED),
    ):
        raise ValueError("no such operator")
    assert "\n" not in str(error.value)


def test_relative_positions_are_timms():
    table = torch.randn(2 * 5 - 1, 6, generator=torch.Generator().manual_seed(0))
    for side in (5, 8, 3):
        torch.testing.assert_close(relative_positions(side, side, table), get_rel_pos(side, side, table))


def test_coordinates_for_free_sizes_are_those_of_timm_and_of_transformers():
    theirs = pos_embed_sincos._build_grid
    for settings in ({"grid_type": "centered"}, {"grid_type": "centered", "grid_offset": 0.25}, {"grid_type": "index"},
                     {"grid_type": "centered", "normalize_coords": "max"}):  # fmt: skip
        torch.testing.assert_close(cell_grid([5, 9], timms=theirs, **settings), theirs([5, 9], **settings))
    shapes, ratios = [(2, 3), (4, 6)], torch.ones(2, 2, 2)
    expected = Mask2FormerPixelDecoderEncoderOnly.get_reference_points(shapes, ratios, "cpu")
    torch.testing.assert_close(reference_points(shapes, ratios, "cpu").expand_as(expected), expected)


def test_mistakes_are_named_before_anything_is_computed(packed, tmp_path):
    with pytest.raises(UserError, match=r"cannot write 'm.tflite': name it with .onnx or .pt2"):
        export(packed, tmp_path / "m.tflite")
    with pytest.raises(UserError, match="fp16 and int8 are forms of an ONNX file"):
        export(packed, tmp_path / "m.pt2", int8=True)
    (tmp_path / "m.fp16.onnx").write_text("mine")
    with pytest.raises(UserError, match=r"m.fp16.onnx exists; choose another name or give --force"):
        export(packed, tmp_path / "m.onnx", fp16=True)
    with pytest.raises(UserError, match="no packed model at"):
        export(tmp_path / "none", tmp_path / "other.onnx")
    with pytest.raises(UserError, match="--role is for run folders"):
        export(packed, tmp_path / "other.onnx", role="teacher")


@pytest.mark.parametrize("option", ["images", "calibration"])
def test_nothing_is_compared_or_calibrated_on_no_image(option, tmp_path):
    with pytest.raises(UserError, match=r"images and calibration are numbers of images, at least 1, got .*\b0\b"):
        export(tmp_path / "none", tmp_path / "m.onnx", **{option: 0})


def test_calibration_needs_a_stage_with_labels(tmp_path):
    with pytest.raises(UserError, match="no stage with labels, which export reads; add a task stage"):
        ship._trained_on(tiny(tmp_path).model_copy(update={"stages": ()}))


class TwoImages(Dataset):
    """Labels 0 and 1 in halves; the second image has a stripe without a label."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        label = np.zeros((4, 8), np.uint8)
        label[:, 4:] = 1
        if index:
            label[0] = 255
        return Sample(np.zeros((4, 8, 3), np.uint8), label, "game", str(index))


def test_the_comparison_counts_pixels_scores_and_the_largest_difference():
    half = np.zeros((1, 4, 8), np.uint8)
    half[..., 4:] = 1
    other = half.copy()
    other[0, 3, 7] = 0
    sure = np.full(half.shape, 0.5, np.float32)
    runners = {"same": lambda _: (half, sure), "other": lambda _: (other, sure + 0.25)}
    rows = compare(
        runners, lambda _: (half, sure), [Domain("game", "source", TwoImages(), 2)], lambda: MapTally(2), Quiet().work
    )
    assert rows["same"] == [Row("game", "source", 2, 1.0, 0.0, 1.0, 1.0)]
    (row,) = rows["other"]
    assert row.equal == 31 / 32
    assert row.difference == pytest.approx(0.25)
    assert row.score == pytest.approx((28 / 30 + 26 / 28) / 2)  # 60 labelled pixels, 2 of class 1 called 0
    assert disagreeing(rows["same"], check.EQUAL) == []
    assert disagreeing(rows["other"], check.EQUAL) == [row]
    assert check.EQUAL == 0.999


def test_engines_take_turns_and_a_slow_moment_does_not_count(monkeypatch):
    clock, calls = [0.0], []
    costs = {"torch": 2.0, "fp32": 0.5}

    def runner(name):
        def run(_):
            calls.append(name)
            slow = 100 if len(calls) in (1, 2, 9, 10) else 1  # while it warms up, and for a moment in between
            clock[0] += slow * costs[name] / 1000

        return run

    monkeypatch.setattr(check.time, "perf_counter", lambda: clock[0])
    found = check.latencies({name: runner(name) for name in costs}, np.zeros((1, 4, 4, 3), np.uint8))
    assert found == costs
    assert calls == ["torch", "fp32"] * (check.TIMED + 2)


def test_the_tables_fit_a_terminal():
    row = Row("a_domain_of_a_long_name", "validation", 5000, 1.0, 1e-6, 0.5, 0.51).as_dict("miou")
    report = {"task": "semantic", "domains": {"int8": [row]}, "latency_ms": {"torch": 12000.0, "int8": 6000.0},
              "files": {"model.int8.onnx": {"precision": "int8", "bytes": 2**28}}}  # fmt: skip
    for table in summary_rows(report):
        widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
        assert sum(widths) + 2 * len(widths) <= 100
