"""Checkpoints as training tools leave them: the same network comes out, or one line says why not."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mutations import damaged
from official import dinov2_state, install, load, noise
from segdistill.config import UserError
from segdistill.weights import digest_of, safetensors_bytes, save_encoder, weights_path
from segdistill.weights.reading import read_file

STATE = dinov2_state()
OTHER = {key: value + 1 for key, value in STATE.items()}
HEADS = {"dino_head.mlp.0.weight": noise(4, 4), "ibot_head.mlp.0.weight": noise(4, 4)}
QUICK = settings(
    derandomize=True, max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    install(monkeypatch)


def below(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def chunked(state=STATE):
    """Blocks as DINOv2's FSDP numbers them: a chunk, then the block's number in the whole network."""
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", key): value for key, value in state.items()}


def loaded(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    return load("tiny_dinov2", tmp_path / "file.pth")


def assert_is(encoder, state=STATE):
    ours = encoder.backbone.state_dict()
    for key in ("blocks.1.attn.qkv.weight", "pos_embed", "patch_embed.proj.weight", "norm.bias", "blocks.0.ls1.gamma"):
        assert torch.equal(ours[key], state[key]), key
    assert encoder.loaded.share == 1.0


@QUICK
@given(
    prefixes=st.lists(
        st.sampled_from(("_orig_mod.", "module.", "model.", "encoder.", "base_model.", "_fsdp_wrapped_module.")),
        max_size=4,
    ),
    container=st.sampled_from((None, "model", "state_dict", "teacher", "student")),
    head=st.booleans(),
)
def test_prefixes_in_any_order_and_nesting_lead_to_the_same_network(tmp_path, prefixes, container, head):
    state = below("".join(prefixes))
    head = head and any(prefix in ("model.", "encoder.", "base_model.") for prefix in prefixes)
    content = state | ({"head.weight": noise(3, 3)} if head else {})
    encoder = loaded(tmp_path, content if container is None else {container: content, "epoch": 1})
    assert_is(encoder)
    assert encoder.loaded.dropped.get("head.weight") == ("other networks" if head else None)


@pytest.mark.parametrize(
    ("content", "layout", "dropped"),
    [
        ({"teacher": below("backbone.") | HEADS}, "backbone.*", 2),
        ({"teacher": below("backbone.", chunked()) | HEADS}, "backbone.*", 2),
        (
            {
                "model": below("teacher.backbone.") | below("student.backbone.", OTHER) | below("teacher.", HEADS),
                "optimizer": {},
            },
            "teacher.backbone.*",
            len(STATE) + 3,
        ),
        (
            {"student": below("module.backbone.", OTHER), "teacher": below("backbone.") | {"head.0.weight": noise(4)}},
            "backbone.*",
            2,
        ),
        ({"state_dict": below("visual.trunk.") | {"text.weight": noise(3)}}, "visual.trunk.*", 1),
    ],
)  # fmt: skip
def test_of_several_networks_the_one_that_is_published_is_taken(tmp_path, content, layout, dropped):
    encoder = loaded(tmp_path, content)
    assert_is(encoder)
    assert encoder.loaded.layout == layout
    assert len(encoder.loaded.dropped) == dropped


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        ({"state_dict": OTHER, "state_dict_ema": STATE, "epoch": 2}, "state_dict_ema, not state_dict"),
        ({"model": STATE, "model_ema": OTHER}, "model, not model_ema"),
        ({"student": OTHER, "teacher": STATE}, "teacher, not student"),
        ({"state_dict": {"teacher": STATE}}, "teacher"),
    ],
)
def test_the_report_says_which_state_was_taken(tmp_path, content, taken):
    encoder = loaded(tmp_path, content)
    assert_is(encoder)
    assert encoder.loaded.taken == taken
    assert taken in encoder.loaded.summary()


def lora(zero=False, prefix="", end=".weight"):
    a, b = noise(4, 24, name="a"), torch.zeros(72, 4) if zero else noise(72, 4, name="b")
    name = f"{prefix}blocks.0.attn.qkv"
    state = below(prefix)
    state[f"{name}.base_layer.weight"] = state.pop(f"{name}.weight")
    state[f"{name}.base_layer.bias"] = state.pop(f"{name}.bias")
    return state | {f"{name}.lora_A.default{end}": a, f"{name}.lora_B.default{end}": b}, a, b


def test_lora_is_added_with_its_scale(tmp_path):
    state, a, b = lora(prefix="base_model.model.")
    expected = STATE["blocks.0.attn.qkv.weight"].numpy() + 8 / 4 * (b.numpy() @ a.numpy())
    for content in ({"state_dict": state, "args": {"lora_alpha": 8}}, {"model": state, "lora_alpha": 8}):
        ours = loaded(tmp_path, content).backbone.state_dict()["blocks.0.attn.qkv.weight"]
        torch.testing.assert_close(ours, torch.from_numpy(expected))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 4, "use_rslora": True}))
    ours = loaded(tmp_path, state).backbone.state_dict()["blocks.0.attn.qkv.weight"].numpy()
    root = STATE["blocks.0.attn.qkv.weight"].numpy() + 4 / 4**0.5 * (b.numpy() @ a.numpy())
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(root))


def test_lora_that_adds_nothing_needs_no_scale(tmp_path):
    assert_is(loaded(tmp_path, lora(zero=True)[0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lora()[0], "LoRA matrices.*scale.*is not given.*merge_and_unload"),
        ({"lora_alpha": 8, "use_dora": True, "model": lora()[0]}, "LoRA.*is not given"),
        ({k: v for k, v in lora()[0].items() if "lora_" in k}, "LoRA matrices.*is missing"),
        ({k: v for k, v in lora()[0].items() if "lora_B" not in k}, "LoRA matrices that cannot be added"),
        (below("student.") | below("teacher."), r"several networks \(student\.\*, teacher\.\*\)"),
        ([STATE], "holds a list"),
        ({"model": {"teacher": 3}}, "no known weights"),
        (below("_orig_mod.") | {"cls_token": noise(1)}, "two tensors of one name"),
        ({key: value.reshape(-1) for key, value in STATE.items()}, "does not fit"),
        ({"patch_embed.proj.weight": noise(1), "blocks.x.y": noise(2)}, "does not fit"),
        ({f"{number}": noise(2) for number in range(9)}, "does not fit"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        loaded(tmp_path, content)
    assert "\n" not in str(error.value)


def sharded(folder):
    folder.mkdir()
    places = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(STATE)}
    for file in set(places.values()):
        save_file({key: STATE[key] for key in places if places[key] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_shards_with_an_index_are_one_file(tmp_path):
    index = sharded(tmp_path / "model")
    assert_is(load("tiny_dinov2", index))
    assert_is(load("tiny_dinov2", tmp_path / "model"))
    assert weights_path(str(tmp_path / "model"), "x") == index
    before, shard = digest_of(index), tmp_path / "model" / "model-00002-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert digest_of(index) != before
    shard.unlink()
    with pytest.raises(UserError, match=r"names model-00002-of-00002.safetensors, which is not beside it"):
        load("tiny_dinov2", index)
    index.write_text(json.dumps({"weight_map": {"x": "../../x.safetensors"}}))
    with pytest.raises(UserError, match=r"damaged or not an index|cannot be a file name"):
        load("tiny_dinov2", index)


def test_an_encoders_file_is_the_same_byte_for_byte(tmp_path):
    torch.save(STATE, tmp_path / "file.pth")
    encoder = load("tiny_dinov2", tmp_path / "file.pth")
    for number in range(8):  # by itself the header's order varies from one call to the next
        save_encoder(encoder, tmp_path / f"{number}.safetensors")
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)}) == 1
    state, header = read_file(tmp_path / "0.safetensors")
    assert header == {"encoder": "tiny_dinov2", "grid": "4x4"}
    assert all(torch.equal(state[key], value) for key, value in encoder.state_dict().items())
    assert len(safetensors_bytes({"a": torch.ones(3)})) % 4 == 0


@QUICK
@given(data=st.data(), name=st.sampled_from(("file.pth", "file.safetensors", "model.safetensors.index.json")))
def test_a_damaged_file_loads_or_is_one_line(tmp_path_factory, data, name):
    """Without a manifest nobody can tell a flipped weight; whatever breaks the format is one line."""
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / name
    small = {key: value for key, value in STATE.items() if "blocks" not in key}
    if name.endswith(".pth"):
        torch.save(small, path)
    elif name.endswith(".json"):
        path = sharded(folder / "shards")
    else:
        save_file(small, path)
    path.write_bytes(data.draw(damaged(path.read_bytes()[:1500])) + path.read_bytes()[1500:])
    said = ""
    try:
        load("tiny_dinov2", path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
