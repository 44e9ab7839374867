"""The frozen probe: its regression, and the command."""

from pathlib import Path

import pytest
import torch

from segdistill.config import UserError
from segdistill.estimation.probe import Sums, fit, probe, shares_of
from segdistill.recipe import load
from segdistill.runlog import Quiet
from segdistill.shipped import recipe_path

SMALL = [
    "evaluate.domains=[game, dusk, night]", "evaluate.validation=[dusk]", "evaluate.unseen=[night]", "evaluate.images=4"
]  # fmt: skip

UNSEEN = ["evaluate.validation=[]", "evaluate.unseen=[night]"]


def test_the_regression_equals_least_squares():
    rng = torch.Generator().manual_seed(0)
    tokens, weights = torch.randn(200, 5, generator=rng) * 3 + 1, torch.randn(6, 3, generator=rng)
    shares = (tokens @ weights[:-1] + weights[-1]).abs()
    sums = Sums(5, 3)
    for part in range(0, 200, 40):
        sums.add(tokens[part : part + 40], shares[part : part + 40])
    design = torch.cat([tokens, torch.ones(200, 1)], dim=1).double()
    expected = torch.linalg.lstsq(design, shares.double()).solution
    torch.testing.assert_close(sums.solve(1e-9), expected, rtol=1e-5, atol=1e-6)
    error = float((design @ expected - shares.double()).square().sum())
    assert sums.error(expected) == pytest.approx(error, rel=1e-9)


def test_the_penalty_is_chosen_on_the_held_out_cells():
    rng = torch.Generator().manual_seed(1)
    learned, held = Sums(30, 1), Sums(30, 1)  # 34 cells for 31 weights of pure noise: only a strong penalty generalises
    learned.add(torch.randn(34, 30, generator=rng), torch.rand(34, 1, generator=rng) + 0.1)
    held.add(torch.randn(500, 30, generator=rng), torch.rand(500, 1, generator=rng) + 0.1)
    assert fit(learned, held).equal(learned.plus(held).solve(0.1))


def test_cells_count_labelled_pixels_alone():
    label = torch.tensor([[[0, 0, 1, 255], [0, 2, 255, 255]]])
    shares = shares_of(label, 3, (1, 2))
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0.0, 0.25], [0.0, 0.25, 0.0]]))
    sums = Sums(2, 3)
    sums.add(torch.ones(2, 2), shares_of(torch.full((1, 2, 4), 255), 3, (1, 2)))
    assert sums.yy == 0
    assert not sums.xx.any()


def test_the_command_ranks_blocks_without_unseen_domains(call):
    status, out, _ = call("probe", "world_gkd", *SMALL, "--images", "10")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["block", "game", "dusk", "mean", "of", "dusk"]
    assert [line.split()[0] for line in lines[1:8]] == ["0", "1", "2", "3", "4", "5", "final"]
    best = max(lines[1:8], key=lambda line: float(line.split()[-1]))
    name = best.split()[0].replace("final", "final norm")
    assert lines[8].startswith(f"world_teacher: {name} is best on dusk ({best.split()[-1]} mIoU")


def test_a_trained_encoder_beats_a_random_one():
    recipes = [load(recipe_path(Path("world_gkd")), [*SMALL, "evaluate.images=8", *more])
               for more in ([], ["teacher.encoder.weights=random"])]  # fmt: skip
    trained, random = (probe(recipe, images=20, watcher=Quiet()) for recipe in recipes)
    assert trained.best.mean > 1.3 * random.best.mean
    assert trained.images == 20


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "world_gkd",
            ["evaluate.domains=[night]", "evaluate.validation=[]", "evaluate.unseen=[night]"],
            "evaluate.validation",
        ),
        ("world_detection_gkd", [], "task is 'detection'"),
    ],
)
def test_what_cannot_be_probed(name, changes, words):
    with pytest.raises(UserError, match=words):
        probe(load(recipe_path(Path(name)), changes), watcher=Quiet())


def test_without_validation_domains_the_source_decides():
    changes = [
        "evaluate.domains=[game, night]",
        "evaluate.validation=[]",
        "evaluate.unseen=[night]",
        "evaluate.images=4",
    ]
    found = probe(load(recipe_path(Path("world_gkd")), changes), images=10, watcher=Quiet())
    assert found.chosen_on == ("game",)
    assert found.best.mean == max(each.domains["game"] for each in found.blocks)


def test_a_missing_network_is_named():
    recipe = load(recipe_path(Path("world_gkd")), SMALL).model_copy(update={"teacher": None})
    with pytest.raises(UserError, match="no teacher"):
        probe(recipe, watcher=Quiet())
