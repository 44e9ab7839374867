import pytest
import torch
import torch.nn.functional as F

from segdistill.heads.pyramid import feature_pyramid, level_sizes, per_level


def test_patches_of_16_give_the_papers_factors():
    maps = tuple(torch.randn(1, 2, 6, 8) for _ in range(4))
    for level, tap, factor in zip(feature_pyramid(maps, (16,) * 4), maps, (4, 2, 1, 0.5), strict=True):
        torch.testing.assert_close(level, F.interpolate(tap, scale_factor=factor, mode="bilinear"))


@pytest.mark.parametrize(
    ("grid", "stride", "sizes"),
    [
        ((8, 16), 8, [(16, 32), (8, 16), (4, 8), (2, 4)]),
        ((32, 32), 14, [(112, 112), (56, 56), (28, 28), (14, 14)]),
        ((1, 2), 8, [(2, 4), (1, 2), (1, 1), (1, 1)]),
    ],
)
def test_levels_follow_the_patch(grid, stride, sizes):
    assert level_sizes((torch.zeros(1, 1, *grid),), (stride,), (4, 8, 16, 32)) == sizes


def test_maps_that_are_levels_already_stay_as_they_are():
    maps = tuple(torch.randn(1, 2, 16 // f, 24 // f) for f in (1, 2, 4, 8))
    for level, map_ in zip(feature_pyramid(maps, (4, 8, 16, 32)), maps, strict=True):
        assert level is map_


def test_maps_that_cover_different_images_are_our_mistake():
    with pytest.raises(AssertionError, match="cover images of"):
        level_sizes((torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)), (8, 16), (4, 8))


def test_taps_go_to_levels_in_order():
    assert per_level((1, 2, 3), 3) == (1, 2, 3)
    assert per_level((7,), 3) == (7, 7, 7)
