import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as hf

from fake_encoder import seeded
from segdistill.heads import Mask2Former, mask2former_parts
from segdistill.heads.queries import present_masks

TINY = {
    "width": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward": 16,
    "decoder_feedforward": 16, "points": 64,
}  # fmt: skip


def make(classes=4, **settings):
    return seeded(lambda: Mask2Former(Mask2Former.Config(**{**TINY, **settings}), (6,), (8,), classes))


def maps(batch=2):
    return (seeded(lambda: torch.randn(batch, 6, 4, 4), 3),)


def test_labels_become_one_mask_per_class_present():
    labels = torch.tensor([[[0, 2], [255, 2]], [[255, 255], [255, 255]]])
    classes, masks = present_masks(labels)
    assert [c.tolist() for c in classes] == [[0, 2], []]
    assert masks[0].tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]]]
    assert masks[1].shape == (0, 2, 2)


def test_scores_are_class_times_mask_summed_over_queries():
    head = make(queries=20).eval()
    classes, masks = head.decode(maps())
    probability = classes[-1].softmax(-1)[..., :-1]
    pixels = F.interpolate(masks[-1], size=(30, 31), mode="bilinear").sigmoid()
    expected = (probability[:, :, :, None, None] * pixels[:, :, None]).sum(1)
    torch.testing.assert_close(head.scores(maps(), (30, 31)), expected)


def test_there_is_an_output_before_the_first_layer_and_after_each():
    classes, masks = make(queries=5, decoder_layers=3).decode(maps())
    assert [c.shape for c in classes] == [(2, 5, 5)] * 4
    assert [m.shape for m in masks] == [(2, 5, 8, 8)] * 4


def test_the_class_term_by_hand():
    """One query and one class in each image: the matching has no choice, every output gives a plain cross-entropy."""
    head, labels = make(queries=1), torch.tensor([2, 3])[:, None, None].expand(2, 32, 32)
    classes, _ = head.decode(maps())
    expected = sum(F.cross_entropy(c[:, 0], torch.tensor([2, 3])) for c in classes)
    torch.testing.assert_close(head.loss(maps(), labels)["class"], 2.0 * expected)


def test_terms_are_weighted_and_summed_over_all_outputs(monkeypatch):
    head = make(class_weight=2.0, mask_weight=3.0, dice_weight=4.0)
    values = {"loss_cross_entropy": 1, "loss_mask": 10, "loss_dice": 100}
    fixed = {f"{key}{suffix}": torch.tensor(float(v)) for key, v in values.items() for suffix in ("", "_0", "_1")}
    monkeypatch.setattr(head.criterion, "forward", lambda *_, **__: fixed)
    terms = head.loss(maps(), torch.zeros(2, 32, 32, dtype=torch.int64))
    assert {key: term.item() for key, term in terms.items()} == {"class": 6, "mask": 90, "dice": 1200}


def test_points_come_from_the_global_generator():
    head, labels = make(), torch.arange(4)[None, :, None].repeat(2, 8, 32)
    losses = [seeded(lambda: head.loss(maps(), labels)["mask"].item(), seed) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_pixel_decoder_and_the_losses_stay_in_float32_under_autocast():
    head, seen = make(), {}
    head.pixel_decoder.register_forward_hook(lambda _, __, out: seen.update(pixels=out.mask_features.dtype))
    head.criterion.register_forward_pre_hook(
        lambda _, __, kwargs: seen.update(loss=kwargs["masks_queries_logits"].dtype), with_kwargs=True
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert head.decode(maps())[1][-1].dtype == torch.bfloat16
        head.loss(maps(), torch.zeros(2, 32, 32, dtype=torch.int64))
    assert seen == {"pixels": torch.float32, "loss": torch.float32}


def test_the_number_of_masks_is_shared_with_other_processes(monkeypatch):
    monkeypatch.setattr(mask2former_parts, "shared_count", lambda count: count + 0.5)
    criterion, cpu = make().criterion, torch.device("cpu")
    assert criterion.get_num_masks([torch.zeros(2), torch.zeros(1)], cpu).item() == 3.5
    monkeypatch.undo()
    assert criterion.get_num_masks([torch.zeros(0)], cpu).item() == 1


def test_twice_the_masks_elsewhere_halve_the_mask_terms_and_twice_the_queries_the_class_term(monkeypatch):
    head, labels = make(), torch.zeros(2, 32, 32, dtype=torch.int64)
    alone = seeded(lambda: head.loss(maps(), labels))
    for name, factors in {
        "shared_count": {"mask": 0.5, "dice": 0.5, "class": 1.0},
        "mean_over_processes": {"mask": 1.0, "dice": 1.0, "class": 0.5},
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(mask2former_parts, name, lambda count: 2 * count)
            shared = seeded(lambda: head.loss(maps(), labels))
        for key, factor in factors.items():
            torch.testing.assert_close(shared[key], factor * alone[key])


def test_without_masks_and_a_weight_of_queries_the_class_term_is_zero():
    terms = make(no_object_weight=0.0).loss(maps(), torch.full((2, 32, 32), 255))
    assert terms["class"].item() == 0


def test_no_object_scales_the_weight_of_unmatched_queries_for_one_loss_alone():
    """As a head with that weight, and the next loss has the head's own weight again."""
    classes, masks = present_masks(torch.zeros(2, 32, 32, dtype=torch.int64))
    whole, less = make(no_object_weight=0.1), make(no_object_weight=0.025)
    decoded = whole.decode(maps())
    before = seeded(lambda: whole.set_loss(decoded, classes, masks))
    scaled = seeded(lambda: whole.set_loss(decoded, classes, masks, no_object=0.25))
    expected = seeded(lambda: less.set_loss(decoded, classes, masks))
    after = seeded(lambda: whole.set_loss(decoded, classes, masks))
    assert scaled["class"] != before["class"]
    scaled["class"].backward()
    for name in before:
        torch.testing.assert_close(scaled[name], expected[name])
        torch.testing.assert_close(after[name], before[name])


def test_sampling_offsets_start_as_transformers_starts_them():
    ours = make(heads=4).pixel_decoder.encoder.layers[0].self_attn

    class Empty(hf.Mask2FormerPreTrainedModel):
        pass

    theirs = hf.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(64, 4, 3, 4)
    Empty(Mask2FormerConfig())._init_weights(theirs)
    torch.testing.assert_close(ours.sampling_offsets.bias, theirs.sampling_offsets.bias)
    for key in ("sampling_offsets.weight", "attention_weights.weight", "attention_weights.bias", "output_proj.bias"):
        assert ours.get_parameter(key).abs().max() == 0


def test_the_width_must_suit_the_heads():
    with pytest.raises(ValidationError, match="width 64 must be a multiple of heads 3"):
        make(heads=3)


def test_a_class_that_no_query_claims_has_finite_logits():
    head = make(classes=4).eval()
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.copy_(torch.tensor([-200.0, 0.0, 0.0, 0.0, 0.0]))
    logits = head.logits_of(head.decode(maps()))
    assert head.scores(maps(), (8, 8))[:, 0].max() == 0
    assert logits[:, 0].tolist() == logits.new_full((2, 8, 8), 1e-6).log().tolist()
