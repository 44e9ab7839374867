import pytest
import torch

from fake_encoder import seeded
from segdistill.config import UserError
from segdistill.heads import HEADS
from segdistill.heads.base import HeadConfig

SMALL = {
    "semfpn": {"width": 16, "dropout": 0.0},
    "mask2former": {
        "queries": 6, "width": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_feedforward": 16, "decoder_feedforward": 16, "points": 64,
    },
    "masked_dpt": {
        "queries": 6, "width": 64, "heads": 2, "decoder_layers": 3, "decoder_feedforward": 16, "points": 64,
        "neck_channels": (8, 8, 8, 8),
    },
    "eomt": {"queries": 6, "decoder_layers": 3, "heads": 1, "points": 64, "masked": 1.0},
    "deeplabv3plus": {"width": 16, "low_width": 8, "dropout": 0.0},
    "daformer": {"width": 16, "dropout": 0.0},
}  # fmt: skip
CHANGED = {
    "semfpn": {"width": 8, "strides": (8, 16, 32, 64), "dropout": 0.5},
    "mask2former": {
        "queries": 7, "width": 128, "heads": 4, "encoder_layers": 2, "decoder_layers": 1, "encoder_feedforward": 8,
        "decoder_feedforward": 8, "dropout": 0.5, "points": 32, "oversample": 2.0, "importance": 0.25,
        "class_weight": 1.0, "mask_weight": 1.0, "dice_weight": 1.0, "no_object_weight": 0.5,
    },
    "masked_dpt": {
        "queries": 7, "width": 128, "heads": 4, "decoder_layers": 1, "decoder_feedforward": 8, "dropout": 0.5,
        "points": 32, "oversample": 2.0, "importance": 0.25, "class_weight": 1.0, "mask_weight": 1.0,
        "dice_weight": 1.0, "no_object_weight": 0.5, "neck_channels": (8, 8, 8, 16), "batch_norm": False,
    },
    "eomt": {
        "queries": 7, "decoder_layers": 1, "heads": 7, "mlp_ratio": 2.0, "layer_scale": 0.1, "masked": 0.0,
        "points": 32, "oversample": 2.0, "importance": 0.25, "class_weight": 1.0, "mask_weight": 1.0,
        "dice_weight": 1.0, "no_object_weight": 0.5,
    },
    "deeplabv3plus": {"width": 8, "low_width": 4, "dilations": (1, 2, 3), "auxiliary": 0.2, "dropout": 0.5},
    "daformer": {"width": 8, "dilations": (1, 2, 3), "dropout": 0.5},
}  # fmt: skip
CLASSIFIERS = {name: head for name, head in HEADS.items() if "semantic" in head.tasks}  # detection: test_faster_rcnn.py
FIELDS = [(name, field) for name, head in CLASSIFIERS.items() for field in head.Config.model_fields
          if field not in HeadConfig.model_fields  # tests/weights/test_heads.py
          and field != "two_scale"]  # tests/models/test_hrda.py  # fmt: skip
OWN = {"masked_dpt": (16, 16)}  # the grid of its logits for 32 x 32 pixels; else stride 4
DEEPEST = {"eomt"}  # heads that read the last tap alone
CONVOLUTIONS = {"deeplabv3plus", "daformer"}  # narrow here and with batch norm: a higher learning rate
LOSS = {"eomt": (3,), "deeplabv3plus": (0, 2, 3)}  # the taps whose maps reach the loss; else all
SCORES = LOSS | {"deeplabv3plus": (0, 3)}  # and the scores
K, STRIDE, CHANNELS = 3, 8, (4, 5, 6, 7)

every = pytest.mark.parametrize("name", CLASSIFIERS)


def build(name, *, channels=CHANNELS, pixels=None, seed=0, **settings):
    """``pixels`` per cell of each tap; by default 8 of all."""
    pixels = pixels or (STRIDE,) * len(channels)
    cls = HEADS[name]
    return seeded(lambda: cls(cls.Config(**{**SMALL[name], **settings}), channels, pixels, K), seed)


def some_maps(batch=2, grid=(4, 4), channels=CHANNELS):
    return seeded(lambda: tuple(torch.randn(batch, c, *grid) for c in channels), 1)


def read(name, maps, taps=SCORES):
    """Those of the maps that reach the scores (or, with ``LOSS``, the loss)."""
    return [maps[tap] for tap in taps.get(name, range(4))]


def some_labels(batch=2, size=(32, 32)):
    """Quadrants of three classes, different in every image, with a few ignored pixels."""
    labels = torch.zeros(batch, *size, dtype=torch.int64)
    for i in range(batch):
        labels[i, : size[0] // 2] = 1 + i % 2
        labels[i, 0, :3] = 255
    return labels


def loss_of(head, maps, labels, seed=0):
    return seeded(lambda: sum(head.loss(maps, labels).values()), seed)


@every
@pytest.mark.parametrize(
    ("grid", "stride", "size"), [((3, 5), 8, (23, 37)), ((2, 3), 14, (28, 42)), ((1, 1), 16, (9, 16))]
)
def test_scores_have_the_asked_size_and_a_loss_exists(name, grid, stride, size):
    head, maps = build(name, pixels=(stride,) * 4), some_maps(grid=grid)
    assert head.scores(maps, size).shape == (2, K, *size)
    assert head(maps, size).shape == (2, K, *size)
    for term in head.loss(maps, some_labels(size=size)).values():
        assert term.shape == ()
        assert term.isfinite()
        assert term.dtype == torch.float32


@every
def test_maps_of_differing_grids(name):
    head = build(name, pixels=(4, 8, 16, 32))
    maps = tuple(torch.randn(2, c, 16 // f, 24 // f) for c, f in zip(CHANNELS, (1, 2, 4, 8), strict=True))
    assert head.scores(maps, (64, 96)).shape == (2, K, 64, 96)


@every
def test_one_tap_serves_all_levels(name):
    single, four = build(name, channels=(5,)), build(name, channels=(5,) * 4)
    one = some_maps(channels=(5,))
    torch.testing.assert_close(single.scores(one, (32, 32)), four.scores(one * 4, (32, 32)))


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in DEEPEST])
def test_a_wrong_number_of_taps_is_a_users_mistake(name):
    with pytest.raises(UserError, match="4 levels but is given 3 taps: choose 4 taps or 1"):
        build(name, channels=(4, 4, 4))


@every
def test_gradient_reaches_every_parameter_and_every_map(name):
    head = build(name)
    maps = tuple(m.requires_grad_() for m in some_maps())
    optimiser = torch.optim.SGD(head.parameters(), lr=0.01)
    for _ in range(2):  # the offsets of deformable attention start at zero weight: what feeds them waits one step
        optimiser.zero_grad()
        loss_of(head, maps, some_labels()).backward()
        optimiser.step()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
    assert all(m.grad.abs().max() > 0 for m in read(name, maps, LOSS))


@every
def test_scores_are_differentiable(name):
    maps = tuple(m.requires_grad_() for m in some_maps())
    build(name).scores(maps, (32, 32)).square().sum().backward()
    assert all(m.grad.abs().max() > 0 for m in read(name, maps))


@every
def test_a_tiny_set_is_learnt(name):
    channels = (4, 5, 6, 64) if name in DEEPEST else CHANNELS  # such a head has the width of its tap
    head, maps, labels = build(name, channels=channels), some_maps(channels=channels), some_labels()
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.01 if name in CONVOLUTIONS else 0.001)
    first = loss_of(head.eval(), maps, labels).item()
    head.train()
    for step in range(30):
        optimiser.zero_grad()
        loss_of(head, maps, labels, step).backward()
        optimiser.step()
    assert loss_of(head.eval(), maps, labels).item() < 0.5 * first
    guess = head.scores(maps, (32, 32)).argmax(1)
    assert (guess == labels)[labels != 255].float().mean() > 0.95


@every
def test_ignored_pixels_only_is_finite(name):
    head, labels = build(name), torch.full((2, 32, 32), 255)
    loss = loss_of(head, some_maps(), labels)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    labels[0] = some_labels()[0]
    assert loss_of(head, some_maps(), labels).isfinite()


@every
def test_state_round_trip(name):
    one, other, maps = build(name, seed=1).eval(), build(name, seed=2).eval(), some_maps()
    assert not torch.equal(one.scores(maps, (32, 32)), other.scores(maps, (32, 32)))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.scores(maps, (32, 32)), other.scores(maps, (32, 32)))


@every
def test_the_classes_are_those_asked_for(name):
    cls = HEADS[name]
    head = cls(cls.Config(**SMALL[name]), (4,), (8,), 11)
    assert head.num_classes == 11
    assert head.scores(some_maps(channels=(4,)), (8, 8)).shape[1] == 11


@every
def test_batch_order_does_not_matter_to_the_scores(name):
    head, maps, order = build(name).eval(), some_maps(batch=3), torch.tensor([2, 0, 1])
    moved = head.scores(tuple(m[order] for m in maps), (32, 32))
    torch.testing.assert_close(moved, head.scores(maps, (32, 32))[order])


@every
def test_bfloat16_is_near_float32(name):
    head, maps, labels = build(name).eval(), some_maps(), some_labels()
    exact = seeded(lambda: head.loss(maps, labels))
    with torch.autocast("cpu", torch.bfloat16):
        rough = seeded(lambda: head.loss(maps, labels))
    for key, term in rough.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[key], rtol=0.05, atol=0.05)
    sum(rough.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_setting_matters(name, field):
    before, after = SMALL[name], {field: CHANGED[name][field]}
    assert HEADS[name].Config(**before).model_dump()[field] != CHANGED[name][field]
    outcomes = [loss_of(build(name, **settings), some_maps(), some_labels()).item() for settings in ({}, after)]
    assert outcomes[0] != outcomes[1]


@every
def test_one_pass_serves_loss_scores_and_logits(name, monkeypatch):
    head, maps, labels = build(name).eval(), some_maps(), some_labels()
    expected = seeded(lambda: head.loss(maps, labels)), head.scores(maps, (32, 32))
    decoded = head.decode(maps)
    monkeypatch.delattr(type(head), "decode")  # whoever asks for a second pass fails
    again = seeded(lambda: head.loss_of(decoded, labels)), head.scores_of(decoded, (32, 32))
    assert again[0] == expected[0]
    assert torch.equal(again[1], expected[1])
    assert head.logits_of(decoded).shape == (2, K, *OWN.get(name, (8, 8)))


@every
def test_the_softmax_of_the_logits_is_the_normalised_score(name):
    head = build(name).eval()
    decoded = head.decode(some_maps())
    scores, logits = head.scores_of(decoded, OWN.get(name, (8, 8))), head.logits_of(decoded)
    share = scores.softmax(1) if head.scores_are_logits else scores / scores.sum(1, keepdim=True)
    torch.testing.assert_close(logits.softmax(1), share)


@every
def test_decoded_images_beyond_the_labels_have_no_part_in_the_loss(name):
    head, (three, two) = build(name).eval(), (some_maps(batch=3), some_labels(batch=2))
    with_more = seeded(lambda: head.loss_of(head.decode(three), two))
    alone = seeded(lambda: head.loss(tuple(m[:2] for m in three), two))
    for key, term in alone.items():
        torch.testing.assert_close(with_more[key], term)


@every
def test_the_logits_gradient_reaches_every_map(name):
    head, maps = build(name), tuple(m.requires_grad_() for m in some_maps())
    head.logits_of(head.decode(maps)).square().sum().backward()
    assert all(m.grad.isfinite().all() and m.grad.abs().max() > 0 for m in read(name, maps))
