"""A packed model is the run's, bit for bit, says where it comes from, and can be checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils._pytree import tree_flatten

from mutations import damaged
from segdistill import listing, shipped
from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.export import ship
from segdistill.files import sha256, write_json
from segdistill.recipe import load
from segdistill.runs.folder import model_from_files, model_of
from segdistill.runs.rescore import trained
from segdistill.runs.score import load_model
from segdistill.sharing import verify
from segdistill.sharing.card import card
from segdistill.sharing.pack import (
    card_path,
    load_packed,
    open_run,
    pack,
    packed_path,
    portable,
    read_packed,
    with_root,
)
from segdistill.sharing.packed import tensors_digest, write_packed
from tiny_runs import tiny

FILES = ["data={source: files, size: [32, 64]}", "evaluate=null"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory, finished):
    return pack(finished, tmp_path_factory.mktemp("packed") / "tiny.safetensors")[0]


def images(size=(32, 64)):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


def original(finished, role="student"):
    run = open_run(finished)
    scored = model_of(run, role, finished)
    return load_model(scored, scored.classes)


@pytest.fixture(params=["semantic", "instance"])
def run_of_task(request):
    """A finished run of each task."""
    return request.getfixturevalue("finished" if request.param == "semantic" else "finished_objects")


def raw(model):
    """The head's output for some images."""
    with torch.inference_mode():
        return torch.cat([each.flatten() for each in tree_flatten(model.decoded(images())[0])[0]])


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_packed_model_is_the_runs_bit_for_bit(role, run_of_task, tmp_path):
    path, header = pack(run_of_task, tmp_path / "m.safetensors", role=role)
    model, read = load_packed(path)
    assert read == header
    assert not model.training
    assert torch.equal(raw(model), raw(original(run_of_task, role)))
    assert header["model"]["encoder"]["name"] == f"world_{role}"
    assert header["task"] == load(run_of_task / "recipe.yaml").task


def test_half_precision_halves_the_file_and_is_cast_up(finished, packed, tmp_path):
    path, header = pack(finished, tmp_path / "half.safetensors", half=True)
    assert header["precision"] == "float16"
    assert path.stat().st_size < 0.6 * packed.stat().st_size
    half, full = load_packed(path)[0].state_dict(), load_packed(packed)[0].state_dict()
    for key, value in full.items():
        assert torch.equal(half[key], value.half().float()), key


def test_the_same_run_gives_the_same_bytes_without_times_or_places(finished, packed, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "elsewhere")
    manifest = json.loads((moved / "stages/02-task/manifest.json").read_text())
    manifest |= {"seconds": 1e6, "finished": "2031-01-01T00:00:00+00:00"}
    manifest.pop("digest", None)
    write_json(moved / "stages/02-task/manifest.json", manifest)
    again = pack(moved, tmp_path / "folder")[0]
    assert again == tmp_path / "folder/model.safetensors"
    assert again.read_bytes() == packed.read_bytes()
    assert str(finished).encode() not in packed.read_bytes()


def test_the_header_has_all_that_is_needed_to_use_the_network(packed, finished):
    with safe_open(packed, framework="pt") as file:
        header = json.loads(file.metadata()["segdistill"])
    results = json.loads((finished / "results.json").read_text())
    assert (header["classes"], header["colors"]) == (results["classes"], results["colors"])
    assert header["preprocessing"]["size"] == [32, 64]
    assert header["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert set(header["preprocessing"]["domains"]) == {"game", "fog", "rain"}
    assert header["kept"]["unseen"] == results["retention"]
    assert header["kept"]["interval"] == results["retention_interval"]
    for name, score in results["models"]["student"]["domains"].items():
        assert header["scores"]["student"]["domains"][name]["miou_interval"] == score["miou_interval"]
    assert [stage["name"] for stage in header["history"]["stages"]] == ["teacher", "agnostic", "task"]


def test_the_recipe_in_the_header_is_the_runs_without_places_of_this_machine(tmp_path, finished):
    files = tmp_path / "r.yaml"
    files.write_text(portable(load(finished / "recipe.yaml")))
    assert load(files) == load(finished / "recipe.yaml")
    away = tiny(tmp_path, f"student.encoder.weights={tmp_path}/secret/start.pth")
    assert str(tmp_path) not in portable(away)
    assert "weights: start.pth" in portable(away)


def test_files_that_are_there_are_not_replaced(packed, finished):
    before = packed.read_bytes()
    with pytest.raises(UserError, match=r"tiny.safetensors and .*tiny.md exist; choose another name or give --force"):
        pack(finished, packed)
    packed.write_bytes(b"other")
    pack(finished, packed, force=True)
    assert packed.read_bytes() == before


def test_a_readme_that_is_no_card_is_never_replaced(finished, tmp_path):
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(UserError, match=r"README.md is no model card of ours and is not replaced"):
        pack(finished, tmp_path / "model.safetensors", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_an_unfinished_run_cannot_be_packed(finished, tmp_path):
    with pytest.raises(UserError, match="no recipe at"):
        pack(tmp_path / "none", tmp_path / "m.safetensors")
    broken = shutil.copytree(finished, tmp_path / "run")
    (broken / "stages/02-task/manifest.json").unlink()
    with pytest.raises(UserError, match=r"stage .*02-task is not finished"):
        pack(broken, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="unknown role of this run 'both'"):
        pack(finished, tmp_path / "m.safetensors", role="both")
    odd = shutil.copytree(finished, tmp_path / "odd")
    (odd / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged .*environment.json; give the run's command again"):
        pack(odd, tmp_path / "m.safetensors")
    assert not list(tmp_path.glob("m*"))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_one_line(data, packed, tmp_path):
    whole, path = packed.read_bytes(), tmp_path / "m.safetensors"
    head = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(data.draw(damaged(whole[:head])) + whole[head:])
    if path.read_bytes() != whole:
        with pytest.raises(UserError) as error:
            load_packed(path)
        assert "\n" not in str(error.value)


def test_changed_tensors_settings_and_formats_are_refused(packed, tmp_path):
    data, path = packed.read_bytes(), tmp_path / "m.safetensors"
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="its tensors are not those that were packed"):
        load_packed(path)
    segmenter, header = load_packed(packed)
    write_packed(path, segmenter, header | {"classes": header["classes"][:-1]})
    with pytest.raises(UserError, match=r"does not fit its own settings|knows 13 classes"):
        load_packed(path)
    write_packed(path, segmenter, {key: value for key, value in header.items() if key != "colors"})
    with pytest.raises(UserError, match="its header lacks colors"):
        load_packed(path)
    with pytest.raises(UserError, match=r"no packed model at .*none.safetensors'; make one with 'segdistill pack"):
        packed_path(tmp_path / "none.safetensors")


def test_the_card_is_one_of_hugging_face_with_every_domains_score(packed, finished):
    text = card_path(packed).read_text()
    parsed = ModelCard(text).data
    results = json.loads((finished / "results.json").read_text())
    wanted = {"license": "apache-2.0", "library_name": "segdistill", "pipeline_tag": "image-segmentation"}
    assert wanted.items() <= parsed.to_dict().items()
    scores = {each.dataset_type: each.metric_value for each in parsed.eval_results}
    expected = {name: score["miou"] for name, score in results["models"]["student"]["domains"].items()}
    assert scores == {name: pytest.approx(100 * value, abs=0.006) for name, value in expected.items()}
    for words in ("| fog | unseen |", sha256(packed), "segdistill run tiny.yaml", "steps: 8", "data: game: Apache-2.0"):
        assert words in text
    assert "Too short to mean anything" in text
    assert "of the teacher's it keeps" not in text, "16 steps say nothing"


def test_the_card_of_an_instance_model_has_its_own_score(finished_objects, tmp_path):
    path, header = pack(finished_objects, tmp_path / "m.safetensors")
    text = card_path(path).read_text()
    data = ModelCard(text).data
    assert "instance-segmentation" in data.tags
    results = json.loads((finished_objects / "results.json").read_text())["models"]["student"]["domains"]
    scored = [name for name in ("game", "fog") if results[name]["ap"] is not None]
    assert [(each.dataset_type, each.metric_name) for each in data.eval_results] == [(n, "AP (%)") for n in scored]
    assert "| domain | kind | images | student AP (%) | teacher AP (%) | kept (%) |" in text
    assert "Every pixel" not in text
    assert "mIoU" not in text
    assert header["scores"]["student"]["domains"]["fog"] == {
        key: results["fog"][key] for key in header["scores"]["student"]["domains"]["fog"]}  # fmt: skip
    assert all(check.ok for check in verify.verify(path, finished_objects))


def test_the_card_of_a_real_run_says_what_was_kept_and_what_binds_it(packed):
    header = load_packed(packed)[1]
    start = {"name": "start", "type": "inherit", "steps": 0}  # trains nothing
    stages = [start, *(stage | {"steps": 50} for stage in header["history"]["stages"])]
    history = header["history"] | {"stages": stages}
    link = {"part": "teacher", "name": "dinov3_l", "licence": "DINOv3 License", "restrictions": ["gated"]}
    header |= {"history": history, "licences": [link], "licence": "other"}
    header["kept"] |= {"unseen": 0.876, "interval": [0.85, 0.9]}
    text = card(header, file="m.safetensors", digest="0" * 64)
    assert "of the teacher's it keeps 87.6 [85.0, 90.0] %" in text
    assert "- teacher: dinov3_l: DINOv3 License (**gated**)" in text
    assert ModelCard(text).data.license == "other"


def test_verify_recomputes_every_digest(packed, finished):
    checks = verify.verify(packed, finished)
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
    assert {check.what for check in checks} == {
        "tensors", "file", "model card", "model", "stage", "images", "data", "scores"}  # fmt: skip
    alone = verify.verify(packed)
    assert {check.what for check in alone if check.ok is None} == {"stage", "images", "scores"}
    assert all(check.outcome == "not checked: give --run FOLDER" for check in alone if check.ok is None)


def test_verify_reads_cards_of_any_name_and_bytes(packed, tmp_path):
    path = shutil.copy(packed, tmp_path / "my model.safetensors")
    place, header = card_path(path), read_packed(path)[1]
    place.write_text(card(header, file=path.name, digest=sha256(path)))
    assert {check.what: check.ok for check in verify.verify(path)}["model card"]
    place.write_bytes(place.read_bytes() + b"\xff")
    assert {check.what: check.why for check in verify.verify(path)}["model card"] == "it was edited"


def test_a_tilde_is_the_home_folder(finished, monkeypatch):
    monkeypatch.setenv("HOME", str(finished.parent))
    place = Path("~") / finished.name
    assert open_run(place).folder == trained(place)[0].folder == finished
    assert ship._open(str(place), None, ship.Options())[1]["name"] == "tiny"
    assert with_root(load(finished / "recipe.yaml", FILES), Path("~/a #1")).data.root == finished.parent / "a #1"


@pytest.mark.parametrize("what", ["file", "model card", "tensors", "images", "scores"])
def test_verify_finds_what_was_changed(what, packed, finished, tmp_path, call):
    path = tmp_path / packed.name
    run = shutil.copytree(finished, tmp_path / "run")
    for source in (packed, card_path(packed)):
        shutil.copy(source, tmp_path)
    segmenter, header = load_packed(packed)
    if what == "file":
        write_packed(path, segmenter, header | {"title": "better"})
    elif what == "model card":
        card_path(path).write_text(card_path(path).read_text().replace("# tiny", "# great"))
    elif what == "tensors":
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        victim = next(iter((run / "scores").glob("*.npz"))) if what == "scores" else run / "stages/02-task/images.txt"
        victim.write_bytes(victim.read_bytes() + b"\n")
    status, out, _ = call("verify", path, "--run", run)
    assert status == 1
    assert any(line.startswith(what) and "DIFFERS" in line for line in out.splitlines())


def test_verify_of_a_file_with_a_report_beside_it(tmp_path):
    graph = tmp_path / "m.onnx"
    graph.write_bytes(b"graph")
    with pytest.raises(UserError, match=r"no m.onnx.json beside .*m.onnx"):
        verify.verify(graph)
    write_json(tmp_path / "m.onnx.json", {"files": {"m.onnx": {"sha256": sha256(graph)}}})
    assert [check.ok for check in verify.verify(graph)] == [True]
    graph.write_bytes(b"Graph")
    assert [check.ok for check in verify.verify(graph)] == [False]


def test_verify_of_another_precision_finds_the_one_report(tmp_path):
    names = ("m.onnx", "m.fp16.onnx", "m.int8.onnx")
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    write_json(tmp_path / "m.onnx.json", {"files": {name: {"sha256": sha256(tmp_path / name)} for name in names}})
    for name in names:
        assert {check.name: check.ok for check in verify.verify(tmp_path / name)} == dict.fromkeys(names, True)
    (tmp_path / "m.int8.onnx").write_bytes(b"other")
    assert [check.name for check in verify.verify(tmp_path / "m.fp16.onnx") if check.ok is False] == ["m.int8.onnx"]
    write_json(tmp_path / "m.onnx.json", {"files": {"m.onnx": {"sha256": "0" * 64}}})
    with pytest.raises(UserError, match=r"m.onnx.json does not name m.fp16.onnx, only m.onnx; export it again"):
        verify.verify(tmp_path / "m.fp16.onnx")
    write_json(tmp_path / "m.onnx.json", {"files": ["m.onnx"]})
    with pytest.raises(UserError, match=r"damaged .*m.onnx.json; make m.onnx again"):
        verify.verify(tmp_path / "m.onnx")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_packed_file_is_start_weights_of_encoder_and_head(role, run_of_task, tmp_path):
    path, header = pack(run_of_task, tmp_path / "m.safetensors", role=role, half=True)
    whole = load_packed(path)[0]
    encoder = build_encoder(EncoderConfig(name=f"world_{role}", weights=str(path)), seed=5)
    for key, value in whole.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value), key
    assert set(encoder.loaded.dropped.values()) == {"the head of the packed model"}
    assert encoder.loaded.share == 1
    recipe = load(run_of_task / "recipe.yaml", [f"{role}.encoder.weights={path}", f"{role}.head.weights={path}"])
    scored = model_from_files(recipe, role, tmp_path)
    assert torch.equal(raw(load_model(scored, header["classes"])), raw(whole))
    first = header["classes"][0]
    with pytest.raises(UserError, match=f"was trained on other classes: number 0 is '{first}', in the data 'street'"):
        load_model(scored, ["street", *header["classes"][1:]])


def test_a_packed_file_is_an_asset(finished_objects, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "ASSETS", tmp_path)
    path, header = pack(finished_objects, tmp_path / "both.safetensors", role="teacher", half=True)
    size = str(path.stat().st_size)
    assert listing.weights()[1:] == [["shipped:both", "world_teacher", "masked_dpt", size, "objects"]]
    own = "shipped:both"
    recipe = load(finished_objects / "recipe.yaml", [f"teacher.{part}.weights={own}" for part in ("encoder", "head")])
    model = load_model(model_from_files(recipe, "teacher", tmp_path), header["classes"])
    assert torch.equal(raw(model), raw(load_packed(path)[0]))


def test_damaged_tensors_of_a_packed_file_are_no_start_weights(packed, tmp_path):
    content = packed.read_bytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="its tensors are not those that were packed"):
        build_encoder(EncoderConfig(name="world_student", weights=str(path)), seed=0)


def test_a_packed_file_of_another_network_is_refused_in_one_line(finished, tmp_path):
    path, _ = pack(finished, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"does not fit world_teacher: .* choose the encoder that the file") as error:
        build_encoder(EncoderConfig(name="world_teacher", weights=str(path)), seed=0)
    assert "\n" not in str(error.value)


def test_a_file_of_the_hub_loads_by_its_name(packed, monkeypatch):
    fetch = create_autospec(huggingface_hub.hf_hub_download, return_value=str(packed))
    monkeypatch.setattr("segdistill.weights.hub.hf_hub_download", fetch)
    segmenter, header = load_packed("hf:me/small@v1")
    fetch.assert_called_once_with("me/small", "model.safetensors", revision="v1", local_files_only=False)
    assert header["name"] == "tiny"
    assert torch.equal(segmenter.scores(images()), load_packed(packed)[0].scores(images()))


@pytest.mark.parametrize(
    ("command", "allowed", "more"),
    [
        ("pack", "a finished run folder", ["m.safetensors"]),
        ("verify", "a packed or exported file, or hf:<owner>/<name>", []),
        ("push", "a packed file", ["me/x"]),
        ("export", "a run folder, a packed file, or hf:<owner>/<name>", ["m.onnx"]),
    ],
)
def test_a_wrong_path_is_named_at_once(command, allowed, more, call, tmp_path):
    status, _, complaint = call(command, tmp_path / "x", *more)
    assert (status, complaint) == (2, f"segdistill: no model at {tmp_path / 'x'}; give {allowed}\n")


def test_the_digest_depends_on_names_types_shapes_and_values():
    one = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    same = {"b": torch.ones(()), "a": torch.zeros(2, 3)}
    assert tensors_digest(one) == tensors_digest(same)
    for other in ({"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).half()}, {"a": torch.zeros(2, 3) + 1e-9}):
        assert tensors_digest(one | other) != tensors_digest(one)
    assert read_packed.__doc__
