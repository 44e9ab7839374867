"""A student that starts as a slice of its teacher: exact where nothing is cut, close where little is, refused else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.encoders.correct import correct
from segdistill.encoders.inherit import check_pair, inherit, spaced
from segdistill.weights import resample_kernel

SIZE = (64, 64)


def vit(width=96, depth=4, heads=3, *, seed, patch=16, prefix=True, gains=None):
    """A plain ViT of timm, shrunk; its weights are drawn again so that norms, biases and positions matter."""
    from timm.models.vision_transformer import VisionTransformer

    encoder = build_encoder(EncoderConfig(name="deit_ti_plain", image_size=SIZE, patch=patch), seed=seed)
    torch.manual_seed(seed)
    encoder.backbone = VisionTransformer(
        img_size=SIZE, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0,
        global_pool="token" if prefix else "avg", fc_norm=False, dynamic_img_size=True, init_values=gains,
        class_token=prefix,
    )  # fmt: skip
    for parameter in encoder.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.08)
    return encoder.eval()


def sliced(student, teacher, images, blocks=None):
    chosen = check_pair(student, teacher, blocks)
    return inherit(student, teacher, [images[:4], images[4:]], chosen, stem_steps=50)


def normalised(tokens):
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt()


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(6, 3, *SIZE)


@pytest.mark.parametrize("gains", [None, 0.5])
@pytest.mark.parametrize("prefix", [True, False])
def test_nothing_cut_nothing_lost(images, gains, prefix):
    teacher = vit(seed=1, gains=gains, prefix=prefix)
    teacher.backbone.norm.weight.data.fill_(1.0)  # of the teacher's last norm, the student has neither gains
    teacher.backbone.norm.bias.data.zero_()  # nor biases: its tokens are a rotation of z
    student = vit(seed=2, prefix=prefix)
    kept, unexplained = sliced(student, teacher, images)
    assert kept == pytest.approx(1.0)
    assert max(unexplained) < 1e-6
    with torch.no_grad():
        ours, theirs = (each(images, (-1,)).tokens[0].flatten(0, 1) for each in (student, teacher))
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=1e-3, atol=1e-2)
    assert (ours - theirs).abs().max() > 0.1  # it is another basis


def test_a_teacher_of_low_rank_fits_into_a_narrow_student(images):
    """The stream of this teacher has 40 dimensions, of which a student of 48 channels loses none."""
    teacher = vit(seed=1)
    basis = torch.linalg.qr(torch.randn(96, 40))[0]
    project = basis @ basis.T
    with torch.no_grad():
        backbone = teacher.backbone
        for each in (backbone.cls_token, backbone.pos_embed):
            each.copy_(each @ project)
        kernel = backbone.patch_embed.proj
        kernel.weight.copy_(torch.einsum("nd,dchw->nchw", project, kernel.weight))
        kernel.bias.copy_(project @ kernel.bias)
        for block in backbone.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.copy_(project @ layer.weight)
                layer.bias.copy_(project @ layer.bias)
    student = vit(width=48, heads=3, seed=2)
    for block in student.backbone.blocks:  # as many hidden units as the teacher's
        block.mlp.fc1, block.mlp.fc2 = torch.nn.Linear(48, 384), torch.nn.Linear(384, 48)
    kept, unexplained = sliced(student, teacher, images)
    assert kept > 0.999
    assert unexplained[0] < 0.02
    with torch.no_grad():
        ours = student(images, (0,)).tokens[0].flatten(0, 1)
        theirs = teacher(images, (0,)).tokens[0].flatten(0, 1)
    # Heads are half as wide: block outputs agree closely, not exactly.
    ours, theirs = normalised(ours), normalised(theirs)
    gram = torch.corrcoef(torch.stack([(ours @ ours.T).flatten(), (theirs @ theirs.T).flatten()]))[0, 1]
    assert gram > 0.98


def test_a_slice_is_much_closer_to_its_teacher_than_random_weights(images):
    teacher = vit(seed=1)

    def similarity(student):
        with torch.no_grad():
            grams = [normalised(each(images, (-1,)).tokens[0].flatten(0, 1)) for each in (student, teacher)]
        return torch.corrcoef(torch.stack([(each @ each.T).flatten() for each in grams]))[0, 1].item()

    student = vit(width=72, depth=3, heads=3, seed=2)
    before = similarity(student)
    sliced(student, teacher, images)
    assert similarity(student) > before + 0.2


def test_more_heads_and_hidden_units_than_the_teacher_change_nothing_at_first_but_learn(images, monkeypatch):
    monkeypatch.setattr("segdistill.encoders.inherit.correct", lambda *args: ())
    teacher, student = vit(width=48, heads=2, seed=1), vit(width=48, heads=4, seed=2)
    sliced(student, teacher, images)
    attention = student.backbone.blocks[0].attn
    weight = attention.qkv.weight.reshape(3, 4, 12, 48)
    assert weight[0, 2:].abs().min() > 0  # their queries are random,
    assert weight[1, 2:].abs().max() == 0  # their keys and outputs zero
    assert attention.proj.weight.reshape(48, 4, 12)[:, 2:].abs().max() == 0
    student(images, (-1,)).tokens[0].square().sum().backward()
    assert attention.proj.weight.grad.reshape(48, 4, 12)[:, 2:].abs().min() > 0


def test_a_stem_of_convolutions_is_fitted_to_the_teachers_patch_embedding():
    """With the teacher's own convolutions in the student's stem the fit is exact, and nothing is lost."""
    torch.manual_seed(0)
    images = torch.rand(6, 3, 64, 128)
    config = EncoderConfig(name="world_teacher")
    teacher, student = (build_encoder(config, seed=seed).eval() for seed in (1, 2))
    student.backbone.patch_embed.proj[:-1].load_state_dict(teacher.backbone.patch_embed.proj[:-1].state_dict())
    assert sliced(student, teacher, images)[0] == pytest.approx(1.0)
    with torch.no_grad():
        ours, theirs = (each(images, (-1,)).tokens[0].flatten(0, 1) for each in (student, teacher))
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=5e-3, atol=0.3)


def test_a_narrower_stem_is_trained(monkeypatch):
    """Its error falls well below that of least squares alone, and every parameter learns again afterwards."""
    torch.manual_seed(0)
    images = [F.interpolate(torch.rand(4, 3, 16, 32), size=(64, 128), mode="bilinear") for _ in range(3)]
    teacher = build_encoder(EncoderConfig(name="world_teacher"), seed=1).eval()
    blocks = check_pair(teacher, teacher)
    errors = []
    for steps in (0, 150):
        student = build_encoder(EncoderConfig(name="world_student"), seed=2).eval()
        before = [each.clone() for each in student.backbone.patch_embed.parameters()]
        _, unexplained = inherit(student, teacher, images, blocks, steps)
        errors.append(unexplained[0])
        after = list(student.backbone.patch_embed.parameters())
        moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(moved) if steps else sum(moved) == 2  # of the last layer, weights and bias
        assert all(each.requires_grad and each.grad is None for each in student.parameters())
    assert errors[1] < 0.7 * errors[0]
    for rate in (1e6, 1e30):  # training that fails leaves least squares, also if weights are no longer finite
        monkeypatch.setattr("segdistill.encoders.stem.RATE", rate)
        student = build_encoder(EncoderConfig(name="world_student"), seed=2).eval()
        assert inherit(student, teacher, images, blocks, 3)[1][0] == pytest.approx(errors[0], rel=1e-4)


def test_a_stem_of_other_cells_is_fitted_to_the_resampled_kernel(images):
    """The patch of a teacher with one convolution can be changed, that of a stem cannot."""
    student = build_encoder(EncoderConfig(name="world_student", image_size=SIZE), seed=2).eval()
    teacher = vit(width=160, depth=6, heads=5, seed=1)
    sliced(student, teacher, images)
    kernel = resample_kernel(teacher.backbone.patch_embed.proj.weight, (8, 8), "timm")
    target = F.conv2d((images - teacher.mean) / teacher.std, kernel, teacher.backbone.patch_embed.proj.bias, stride=8)
    with torch.no_grad():
        grams = [normalised(each.flatten(2).transpose(1, 2).flatten(0, 1)) for each in (student.stem(images), target)]
    random = build_encoder(EncoderConfig(name="world_student", image_size=SIZE), seed=2).eval()
    with torch.no_grad():
        grams.append(normalised(random.stem(images).flatten(2).transpose(1, 2).flatten(0, 1)))
    found = torch.corrcoef(torch.stack([(each @ each.T).flatten() for each in grams]))
    assert found[0, 1] > found[2, 1] + 0.05
    with pytest.raises(UserError, match="the patch of world_teacher cannot be changed from 8 to the student's 16"):
        check_pair(vit(depth=4, seed=1), build_encoder(EncoderConfig(name="world_teacher"), seed=1))


def test_the_correction_makes_up_for_a_part_of_what_is_cut(monkeypatch):
    """Tokens after each block are closer to the teacher's than the bare slice's, also on images that chose nothing."""
    torch.manual_seed(0)
    teacher, student = vit(seed=1), vit(width=24, depth=2, heads=3, seed=2)
    images, others = torch.rand(24, 3, *SIZE), torch.rand(24, 3, *SIZE)
    passed, bare = [], []

    def watched(*args):
        passed.append(args)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("segdistill.encoders.correct.RIDGE", 1e12)  # measures, and changes nothing
            bare.extend(correct(student, teacher, [others], *args[3:]))
        return correct(*args)

    monkeypatch.setattr("segdistill.encoders.inherit.correct", watched)
    _, corrected = sliced(student, teacher, images)
    monkeypatch.setattr("segdistill.encoders.correct.RIDGE", 1e12)
    unseen = correct(student, teacher, [others], *passed[0][3:])
    for before, after, elsewhere in zip(bare, corrected, unseen, strict=True):
        assert after < before - 0.05
        assert elsewhere < before - 0.05


def test_blocks_are_spaced_evenly():
    assert spaced(12, 6) == (1, 3, 5, 7, 9, 11)
    assert spaced(12, 5) == (1, 3, 6, 8, 11)
    assert spaced(4, 4) == (0, 1, 2, 3)
    assert spaced(12, 1) == (11,)


@pytest.mark.parametrize(
    ("student", "teacher", "blocks", "words"),
    [
        ({"width": 192}, {}, None, "the student deit_ti_plain has 192 channels, its teacher deit_ti_plain 96"),
        ({"depth": 6}, {}, None, "has 6 blocks"),
        ({}, {}, (0, 1, 2), r"got \[0, 1, 2\]; deit_ti_plain needs 4 increasing block numbers from 0 to 3"),
        ({}, {}, (0, 2, 1, 3), "needs 4 increasing"),
        ({}, {}, (0, 1, 2, 9), "needs 4 increasing block numbers from 0 to 3"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(student, teacher, blocks, words):
    with pytest.raises(UserError, match=words):
        check_pair(vit(seed=0, **student), vit(seed=1, **teacher), blocks)


@pytest.mark.parametrize("name", ["resnet18", "eva02_l", "timm:vit_medium_patch16_rope_reg1_gap_256"])
def test_other_networks_are_refused(name):
    with torch.device("meta"):
        from segdistill.encoders.encoder import Encoder

        other = Encoder(EncoderConfig(name=name))
    with pytest.raises(UserError, match="needs two plain ViTs of timm: the teacher"):
        check_pair(vit(seed=0), other)
