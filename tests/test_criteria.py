import pytest
import torch
import torch.nn.functional as F

from segdistill.criteria import pixel_cross_entropy, presence, presence_loss


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, :3] = 255
    keep = labels != 255
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[keep], labels[keep])
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), expected)


def test_cross_entropy_of_ignored_pixels_is_zero_with_a_graph():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_cross_entropy_of_half_precision_is_float32():
    logits, labels = torch.randn(1, 3, 4, 4).bfloat16(), torch.randint(0, 3, (1, 4, 4))
    loss = pixel_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels))


def some_labels():
    labels = torch.full((3, 10, 10), 255)
    labels[0, :5], labels[0, 5, 0] = 0, 2  # 50 pixels of class 0, one of class 2
    labels[1, :, :4], labels[1, :, 4:] = 1, 2
    return labels


@pytest.mark.parametrize(
    ("share", "target"),
    [(0.0, [[1, 0, 1], [0, 1, 1], [0, 0, 0]]), (0.02, [[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
     (0.5, [[1, 0, 0], [0, 0, 1], [0, 0, 0]])],
)  # fmt: skip
def test_presence_is_a_share_of_the_labelled_pixels(share, target):
    present, known = presence(some_labels(), 3, share)
    assert present.tolist() == target
    assert known.tolist() == [1, 1, 0]


def test_presence_loss_is_the_mean_over_images_with_labels():
    logits = torch.randn(3, 3, requires_grad=True)
    target = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    loss = presence_loss(logits, some_labels(), min_share=0.0)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits[:2], target))
    loss.backward()
    assert logits.grad[2].abs().max() == 0
    assert (logits.grad[:2] != 0).all()


def test_presence_loss_without_labels_is_zero_with_a_graph():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = presence_loss(logits, torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
