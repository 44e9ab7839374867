"""Batches are a function of (seed, stage, step): not of processes, workers or where the run begins."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import signal

import numpy as np
import pytest
import torch

import tiny_sets
from segdistill.config import UserError
from segdistill.data.dataset import DataSelection, Dataset, Sample
from segdistill.data.files import FilesSource
from segdistill.data.loader import StepBatches, _delivered, loaded
from segdistill.data.rendered import WorldSource
from segdistill.data.transforms import DistillAugment, DistillTransform, TaskAugment, TaskTransform

SEED = (0, "stage")


class Numbers(Dataset):
    """Image i is filled with the number i."""

    names, colors = ("a", "b"), np.zeros((2, 3), np.uint8)

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Sample(np.full((4, 4, 3), index, np.uint8), None, "d", str(index))


def noisy(sample):
    """What a random transform does: the image's number and two draws of torch's generator."""
    return {"index": torch.tensor(int(sample.image[0, 0, 0])), "noise": torch.rand(2)}


def make(count=10, batch=4, **settings):
    return StepBatches(Numbers(count), noisy, batch=batch, seed=settings.pop("seed", SEED), **settings)


def assert_equal(one, two):
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_two_processes_take_turns_in_the_batch_of_one():
    whole = list(loaded(make(), range(6)))
    halves = [list(loaded(make(rank=rank, world_size=2), range(6))) for rank in range(2)]
    joined = [{key: torch.stack([a[key], b[key]], 1).flatten(0, 1) for key in a} for a, b in zip(*halves, strict=True)]
    assert_equal(whole, joined)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing():
    assert_equal(loaded(make(), range(5)), loaded(make(), range(5), workers=2))


@pytest.fixture
def spawned():
    """Processes start as on macOS and Windows: they share nothing, all that they need is sent to them."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_workers_may_be_fresh_processes(spawned, tmp_path):
    """Both kinds of sources; their two workers start side by side."""
    tiny_sets.write("cityscapes", tmp_path, layout=1, count=3)
    world = WorldSource(size=(16, 32)).open(DataSelection(domains=("game", "fog"), images=3, weights=(2, 1)))
    files = FilesSource(root=tmp_path).open(DataSelection(domains=("cityscapes",)))
    steps = [StepBatches(data, tiny_sets.noisy, batch=2, seed=SEED) for data in (world, files)]
    made = [iter(loaded(each, range(2, 5), workers=1)) for each in steps]
    for each, sent in zip(steps, made, strict=True):
        assert_equal(sent, loaded(each, range(2, 5)))


@pytest.mark.parametrize(
    "transform", [DistillTransform(DistillAugment(), (16, 16)), TaskTransform(TaskAugment(), (16, 16))]
)
def test_what_a_worker_is_sent_is_small_and_means_the_same(transform):
    world = WorldSource(size=(32, 64)).open(DataSelection(domains=("game",), images=4))
    steps = StepBatches(world, transform, batch=2, seed=SEED)
    assert len(pickle.dumps(world)) < 4000 < 4 * 32 * 64 * 3  # the images stay where they are
    sent = pickle.loads(pickle.dumps(steps))
    assert_equal([steps[0], steps[3]], [sent[0], sent[3]])


def test_a_run_that_begins_at_a_step_gets_the_tail():
    assert_equal(itertools.islice(loaded(make(), range(7)), 3, None), loaded(make(), range(3, 7)))


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make()[3]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert_equal([one], [make()[3]])


def test_every_epoch_is_another_permutation():
    order = [index for step in range(15) for index in make(count=10, batch=4).indices(step)]
    epochs = [order[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_repeated_augmentation_shows_an_image_three_times_in_a_row_and_a_third_of_them_per_epoch():
    steps = make(count=12, batch=6, repeats=3)
    epoch = steps.indices(0) + steps.indices(1)
    assert [len(set(epoch[start : start + 3])) for start in range(0, 12, 3)] == [1, 1, 1, 1]
    assert len(set(epoch)) == 4
    assert len({tuple(noise) for noise in steps[0]["noise"].tolist()}) == 6  # each time augmented anew
    assert steps.indices(2) + steps.indices(3) != epoch


def test_samples_differ_between_steps_slots_stages_and_seeds():
    draws = [make(seed=seed)[step]["noise"] for seed in (SEED, (1, "stage"), (0, "other")) for step in (0, 1)]
    assert len({tuple(row) for draw in draws for row in draw.tolist()}) == 6 * 4


def test_small_data_and_large_batches_work():
    assert sorted(make(count=2, batch=5).indices(0) + make(count=2, batch=5).indices(1)) == [0] * 5 + [1] * 5


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_found_in_a_worker_is_the_same_line(workers):
    def refuse(sample):
        raise UserError(f"image {sample.name} is damaged")

    steps = StepBatches(Numbers(3), refuse, batch=3, seed=SEED)
    with pytest.raises(UserError, match=r"^image \d is damaged$"):
        next(loaded(steps, [0], workers))


def test_a_batch_that_the_processes_cannot_share_and_no_images_are_errors():
    with pytest.raises(UserError, match="batch 5 cannot be divided among 2 processes"):
        make(batch=5, world_size=2)
    with pytest.raises(UserError, match="no images"):
        make(count=0)


def test_a_lost_worker_raises_nothing_wherever_the_main_thread_is():
    """torch's handler of SIGCHLD is not left in place."""
    before = signal.getsignal(signal.SIGCHLD)
    source = WorldSource(size=(32, 64))
    dataset = source.open(DataSelection(domains=("game",), images=4))
    steps = StepBatches(dataset, TaskTransform(TaskAugment(), (32, 64)), batch=2, seed=(0,))
    for _ in loaded(steps, range(2), workers=1):
        assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("error", [ConnectionResetError("Connection reset by peer"), EOFError()])
def test_a_worker_that_is_killed_while_it_hands_over_a_batch_is_named(error):
    def broken():
        yield {"image": torch.zeros(1)}
        raise error

    found = _delivered(broken())
    assert next(found)["image"].item() == 0
    with pytest.raises(RuntimeError, match="DataLoader worker was killed while sending a batch"):
        next(found)


def test_an_error_of_the_data_set_keeps_its_own_words():
    def broken():
        raise EOFError("Caught EOFError in DataLoader worker process 0.")
        yield

    with pytest.raises(EOFError, match="Caught EOFError"):
        next(_delivered(broken()))
