"""The training loop. It knows nothing about distillation: an objective goes in, named loss terms come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from segdistill.config import UserError
from segdistill.interrupts import Stopped, postponed
from segdistill.ops import derive_seed
from segdistill.processes import micro_batch
from segdistill.train import checkpoint
from segdistill.train.blocks import compile_blocks, hide_shards
from segdistill.train.finite import Finite
from segdistill.train.norms import share_statistics
from segdistill.train.optim import Groups, Schedule
from segdistill.types import LossTerms

if TYPE_CHECKING:  # importing lightning takes seconds
    from lightning.fabric import Fabric

T = TypeVar("T")


class Objective(nn.Module):
    """What a stage optimises: ``forward(batch, step, steps)`` returns the weighted terms of the loss.

    ``optimized`` names the modules that are trained, ``state`` those saved in checkpoints; other modules, such as a
    frozen teacher, are neither trained nor saved.
    """

    def optimized(self) -> dict[str, nn.Module]:
        """Name -> module whose parameters the optimiser updates."""
        raise NotImplementedError

    def state(self) -> dict[str, nn.Module]:
        """Name -> module saved in checkpoints: the optimised modules and, for example, their moving averages."""
        return self.optimized()

    def forward(self, batch: dict[str, Tensor], step: int, steps: int) -> LossTerms:
        """The weighted terms of the loss of one batch."""
        raise NotImplementedError

    def diagnostics(self) -> dict[str, float]:
        """Values of the last forward pass (of the last micro-batch) to log besides the loss.

        The log holds their mean over the processes.
        """
        return {}


class Log(Protocol):
    """Receives a stage's metrics."""

    def metrics(self, entry: dict[str, Any]) -> None:
        """Add the record of a logged step."""

    def rewind(self, stage: str, step: int) -> None:
        """Drop the stage's records after ``step``; the loop will write them again."""

    def progress(self, stage: str, step: int, steps: int, loss: float | None) -> None:
        """Called at every step."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs; ``seed`` identifies (run, stage)."""

    stage: str
    steps: int
    seed: tuple[int | str, ...]
    fingerprint: str  # of everything the stage's result depends on; other checkpoints are refused
    clip: float | None = None
    accumulate: int = 1  # micro-batches per step
    compiles: bool = False  # the blocks of encoders
    log_every: int = 20
    checkpoint_every: int = 200


@dataclass
class Totals:
    """Sums since the last logged step: the log holds means, and the loop does not synchronise at every step."""

    count: int = 0
    terms: dict[str, Tensor] = field(default_factory=dict)

    def add(self, terms: LossTerms) -> None:
        """Add one step's detached terms."""
        self.count += 1
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, torch.zeros_like(value)) + value.detach()

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Mean of each term over steps and processes; resets the sums."""
        averaged = _mean(fabric, {name: term.item() for name, term in self.terms.items()})
        means = {name: value / self.count for name, value in averaged.items()}
        self.count, self.terms = 0, {}
        return means


def train(
    fabric: Fabric,
    objective: Objective,
    groups: Groups,
    batches: Callable[[Sequence[int]], Iterator[dict[str, Tensor]]],
    *,
    schedule: Schedule,
    optimizer: Callable[[Groups], torch.optim.Optimizer],
    settings: LoopSettings,
    folder: Path,
    log: Log,
) -> float:
    """Train up to ``settings.steps`` from the newest checkpoint in ``folder``; returns the seconds over all attempts.

    A step's samples come from ``batches``, its random numbers from (seed, step), its learning rate from ``schedule``.
    A run that is killed and restarted therefore gives the same weights as an uninterrupted one, and up to rounding also
    with another number of processes (see :mod:`segdistill.processes`). Ctrl-C and SIGTERM stop it after the current
    step; a single process then saves a checkpoint.
    """
    share_statistics(objective)
    hide_shards(objective)
    if settings.compiles:
        compile_blocks(objective)
    wrapped, updates = fabric.setup(objective, optimizer(groups))
    start, spent, totals = _restore(fabric, objective, updates, folder, settings)
    log.rewind(settings.stage, start)
    objective.train()
    finite, images, last_log_s = Finite(), 0, time.perf_counter()
    began = last_log_s - spent

    def save(done: int) -> None:
        _stop_if_not_finite(finite, settings, folder)
        extra = {"seconds": time.perf_counter() - began, "fingerprint": settings.fingerprint, "totals": vars(totals)}
        _save(fabric, objective, updates, folder, done, extra)

    pairs = zip(range(start, settings.steps), batches(range(start, settings.steps)), strict=True)
    for step, batch in _uncut(pairs, save if fabric.world_size == 1 else None):  # several may be at different steps
        batch = fabric.to_device(batch)
        images += next(iter(batch.values())).shape[0] * fabric.world_size
        lr = schedule(step, settings.steps)
        for group in updates.param_groups:
            group["lr"] = lr * group["lr_scale"]
        terms = _gradients(fabric, wrapped, batch, step, settings)
        finite.see(step, torch.stack(list(terms.values())).sum(), terms)
        if settings.clip:
            fabric.clip_gradients(wrapped, updates, max_norm=settings.clip, error_if_nonfinite=False)
        updates.step()
        updates.zero_grad(set_to_none=True)
        totals.add(terms)
        done = step + 1
        log.progress(settings.stage, done, settings.steps, None)
        saves = done % settings.checkpoint_every == 0 and done < settings.steps
        if done % settings.log_every == 0 or done == settings.steps or saves:
            _stop_if_not_finite(finite, settings, folder)
            means, now = totals.means(fabric), time.perf_counter()
            mean = sum(means.values())
            entry = {"stage": settings.stage, "step": done, "steps": settings.steps, "loss": mean}
            entry |= {"terms": means, "lr": lr, "images_per_s": images / (now - last_log_s)}
            log.metrics(entry | {"diagnostics": _mean(fabric, objective.diagnostics())})
            log.progress(settings.stage, done, settings.steps, mean)
            last_log_s, images = now, 0
        if saves:
            save(done)
    return time.perf_counter() - began


def _gradients(fabric: Fabric, wrapped: Any, batch: dict[str, Tensor], step: int, settings: LoopSettings) -> LossTerms:
    """Add the gradients of the mean loss of the micro-batches; returns its detached terms.

    Every pass draws its random numbers from the seed of (seed, step), as one pass over the whole batch would (see
    :mod:`segdistill.processes`). Processes exchange gradients after the last one.
    """
    count: int = settings.accumulate
    sums: LossTerms = {}
    if uneven := [len(value) for value in batch.values() if len(value) % count]:
        raise UserError(
            f"stage {settings.stage}: {uneven[0]} images per process cannot be divided into {count} micro-batches; "
            "choose another batch, accumulate or number of processes"
        )
    for number in range(count):
        part = batch if count == 1 else {name: value[number::count] for name, value in batch.items()}
        torch.manual_seed(derive_seed(*settings.seed, "model", step, 0))  # the same in every process
        with micro_batch(number, count), fabric.no_backward_sync(wrapped, enabled=number < count - 1):
            terms = wrapped(part, step, settings.steps)
            loss = torch.stack(list(terms.values())).sum() / count
            fabric.backward(loss)
        for name, value in terms.items():
            own = value.detach() / count
            sums[name] = sums[name] + own if name in sums else own
    return sums


def _uncut(pairs: Iterable[tuple[int, T]], save: Callable[[int], None] | None) -> Iterator[tuple[int, T]]:
    """Yield the pairs of step and batch. A signal is held back until the step ends and is raised after ``save``."""
    done = 0
    try:
        for step, batch in pairs:
            with postponed():
                yield step, batch
                done = step + 1
    except Stopped:
        if done and save is not None:
            save(done)
        raise


def _stop_if_not_finite(finite: Finite, settings: LoopSettings, folder: Path) -> None:
    """Raise a :class:`UserError` with advice; changed settings make a new stage, which needs another folder."""
    if (broken := finite.broken()) is None:
        return
    step, terms = broken
    shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    raise UserError(
        f"stage {settings.stage}, step {step}: the loss is not finite ({shown}); lower the learning rate, set clip, "
        f"or use precision=32-true, with another --out; --reuse {folder.parents[2]} keeps its finished stages"
    )


def _mean(fabric: Fabric, values: dict[str, float]) -> dict[str, float]:
    """The mean over the processes."""
    if fabric.world_size == 1 or not values:
        return values
    own = torch.tensor(list(values.values()), device=fabric.device)
    mean: Any = fabric.all_reduce(own, reduce_op="mean")
    return dict(zip(values, mean.tolist(), strict=True))


def _state(objective: Objective, optimizer: Any) -> dict[str, Any]:
    return {
        "modules": {name: module.state_dict() for name, module in objective.state().items()},
        "optimizer": optimizer.state_dict(),
    }


def _save(fabric: Fabric, objective: Objective, optimizer: Any, folder: Path, step: int, extra: dict[str, Any]) -> None:
    if fabric.is_global_zero:
        checkpoint.save(folder, step, _state(objective, optimizer) | extra)
    fabric.barrier()


def _restore(
    fabric: Fabric, objective: Objective, optimizer: Any, folder: Path, settings: LoopSettings
) -> tuple[int, float, Totals]:
    """The step to continue from, the seconds already spent, and the sums since the last logged step."""
    fabric.barrier()
    state = checkpoint.load(folder, settings.steps, clean=fabric.is_global_zero)
    if state is None:
        return 0, 0.0, Totals()
    if state.get("fingerprint") != settings.fingerprint:
        raise UserError(
            f"the checkpoint in {folder} was made with other settings or weights; delete it to restart the stage, "
            "or choose another --out"
        )
    for name, module in objective.state().items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    fabric.barrier()
    totals = Totals(**state.get("totals", {}))
    totals.terms = {name: value.to(fabric.device) for name, value in totals.terms.items()}
    return int(state["step"]), float(state["seconds"]), totals
