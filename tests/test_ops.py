"""Small functions: seeds, token maps, masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from checks import golden
from segdistill.ops import (
    derive_seed,
    evaluation_mode,
    generator,
    map_to_tokens,
    mean_over_hidden,
    random_mask,
    resize_tokens,
    tokens_to_map,
)


def test_seeds_depend_on_every_part_and_their_order():
    seeds = {
        derive_seed(*parts) for parts in [(0, "a", 1), (0, "a", 2), (1, "a", 0), (0, "b", 1), ("a", 0, 1), (0, "a")]
    }
    assert len(seeds) == 6
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_pinned():
    """Runs of an older version can be repeated only while this number stands."""
    assert derive_seed(0, "distill", 7) == 4_931_532_933_560_936_190


def test_tokens_are_read_row_by_row():
    tokens = torch.arange(12.0).reshape(1, 6, 2)
    maps = tokens_to_map(tokens, (2, 3))
    assert maps[0, 0].tolist() == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
    assert torch.equal(map_to_tokens(maps), tokens)


def test_resizing_tokens_keeps_constants_and_interpolates_between_cells():
    assert torch.equal(resize_tokens(torch.ones(1, 6, 3), (2, 3), (4, 5)), torch.ones(1, 20, 3))
    ramp = torch.tensor([0.0, 1.0]).reshape(1, 2, 1)
    assert resize_tokens(ramp, (1, 2), (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resize_tokens(ramp, (1, 2), (1, 2)) is ramp


def test_mask_counts_are_the_authors():
    mask = random_mask(5, 256, probability=0.5, ratio=0.5, rng=generator(0))
    counts = torch.zeros(5, dtype=torch.long)
    counts[mask.samples] = mask.tokens.sum(1)
    assert counts.tolist() == golden("gkd")["masked_tokens"]


@pytest.mark.parametrize("first", [True, False])
def test_mask_depends_on_its_generator_alone(first):
    settings = {"probability": 0.5, "ratio": 0.25, "first": first}
    a, b, c = (random_mask(8, 64, rng=generator(seed), **settings) for seed in (0, 0, 1))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.samples, b.samples)
    assert not torch.equal(a.tokens, c.tokens)
    assert a.tokens.sum(1).tolist() == [16] * 4
    assert len(set(a.samples.tolist())) == 4


def test_hidden_tokens_are_uniform():
    mask = random_mask(4000, 8, probability=1.0, ratio=0.5, rng=generator("uniform"))
    assert mask.tokens.float().mean(0).tolist() == pytest.approx([0.5] * 8, abs=0.03)


def test_randomly_chosen_samples_are_spread():
    chosen = torch.cat(
        [random_mask(6, 4, probability=0.5, ratio=0.5, first=False, rng=generator(i)).samples for i in range(400)]
    )
    assert chosen.bincount(minlength=6).tolist() == pytest.approx([200] * 6, abs=40)


def test_the_mean_over_hidden_tokens_weighs_each_of_them_once():
    hidden = torch.tensor([[True, False, True, False], [False, False, True, False]])
    error = torch.tensor([[1.0, 50.0, 2.0, 50.0], [50.0, 50.0, 6.0, 50.0]])
    assert mean_over_hidden(error, hidden, (2, 2), (2, 2)).item() == 3.0
    assert mean_over_hidden(error, torch.zeros_like(hidden), (2, 2), (2, 2)).item() == 0.0


def test_a_token_of_a_finer_grid_is_hidden_with_its_cell():
    hidden = torch.tensor([[True, False]])  # a grid of 1 x 2
    error = torch.tensor([[1.0, 3.0, 50.0, 50.0, 5.0, 7.0, 50.0, 50.0]])  # of 2 x 4
    assert mean_over_hidden(error, hidden, (1, 2), (2, 4)).item() == 4.0


def test_every_module_has_its_own_mode_again():
    network = nn.Sequential(nn.BatchNorm2d(2).eval(), nn.Dropout())
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, False, True]
