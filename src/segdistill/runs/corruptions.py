"""Scores models under corruption: P on clean images, mPC, rPC, and every corruption at every severity.

Scores are kept in ``scores/<role>-corruptions.json``, written after each corruption: an interrupted evaluation resumes,
and one with further corruptions or severities only adds what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill.averages import complete_mean
from segdistill.data.corrupted import CorruptConfig, Corrupted
from segdistill.data.corruptions import COMMON, FAMILIES, VERSION
from segdistill.data.dataset import Dataset
from segdistill.files import facts_digest, read_signed, write_bytes, write_signed
from segdistill.metrics.base import Metric
from segdistill.models import Model, View
from segdistill.runs.evaluation import Progress, evaluate

CLEAN = "clean"
IMAGES = "corruptions-images.txt"
"""Below ``scores``: the corrupted images, one ``domain/name`` per line."""


@dataclass(frozen=True)
class Subjects:
    """What is corrupted and how it is scored, by domain; ``load`` makes a data set's batches."""

    datasets: Mapping[str, Dataset]
    views: Mapping[str, View]
    load: Callable[[Dataset], Iterable[Mapping[str, Any]]]
    metric: Callable[[], Metric]
    primary: str
    precision: Callable[[], AbstractContextManager]
    progress: Progress


class Store:
    """The stored scores of one model: ``{domain: {"clean" or "fog/3": {score: value}}}``.

    ``facts`` are what they depend on; files of other facts are ignored. ``writes`` in one process only.
    """

    def __init__(self, path: Path, facts: Sequence[Any], reuse: Sequence[Path], *, writes: bool) -> None:
        self.path, self.writes = path, writes
        self.key = facts_digest([VERSION, *facts])
        files = [path, *(folder / "scores" / path.name for folder in reuse)]
        kept = (read_signed(file) for file in files if file.is_file())
        known = (found for found in kept if found is not None and found.get("key") == self.key)
        self.scores: dict[str, dict[str, dict[str, float | None]]] = next(known, {}).get("domains", {})

    def missing(self, domain: str, labels: Iterable[str]) -> list[str]:
        """Those of ``labels`` without scores."""
        return [label for label in labels if label not in self.scores.get(domain, {})]

    def add(self, domain: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep the scalar scores of ``found``, by label, and write the file."""
        own = self.scores.setdefault(domain, {})
        for label, result in found.items():
            own[label] = {key: _finite(value) for key, value in result.items() if _is_number(value)}
        if self.writes:
            write_signed(self.path, {"key": self.key, "domains": self.scores})


def measure(model: Callable[[], Model], config: CorruptConfig, subjects: Subjects, store: Store) -> dict[str, Any]:
    """Score what ``store`` lacks, with the network that ``model()`` loads, and summarise it for the results."""
    network: Model | None = None
    for domain, dataset in subjects.datasets.items():
        rows = config.rows(domain, len(dataset))
        for name in (None, *config.corruptions()):
            severities = (0,) if name is None else config.severities
            wanted = {_label(name, severity): severity for severity in severities}
            missing = store.missing(domain, wanted)
            if not missing:
                continue
            network = network or model()
            sets = {label: Corrupted(dataset, rows, name, wanted[label], seed=config.seed) for label in missing}
            metrics = evaluate(
                network,
                {label: subjects.load(each) for label, each in sets.items()},
                subjects.metric,
                views=dict.fromkeys(sets, subjects.views[domain]),
                precision=subjects.precision,
                progress=lambda label, done, total, domain=domain: subjects.progress(f"{domain}, {label}", done, total),
            )
            store.add(domain, {label: metric.result(domain) for label, metric in metrics.items()})
    write_images(store.path.with_name(IMAGES), config, subjects.datasets, writes=store.writes)
    return summary(
        config, store.scores, {name: len(each) for name, each in subjects.datasets.items()}, subjects.primary
    )


def summary(
    config: CorruptConfig,
    stored: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    counts: Mapping[str, int],
    primary: str,
) -> dict[str, Any]:
    """Means over the domains: P (``clean``), ``mpc``, ``rpc``, and ``scores`` by corruption, one per severity.

    ``by_domain`` has the same without means, where there are several domains.
    """
    names = config.corruptions()

    def of(domain: str) -> dict[str, Any]:
        own = stored[domain]
        scores = {name: [own[_label(name, each)].get(primary) for each in config.severities] for name in names}
        return _means(own[CLEAN].get(primary), scores)

    each = {domain: of(domain) for domain in counts}
    columns = {
        name: [
            complete_mean([one["scores"][name][place] for one in each.values()])
            for place in range(len(config.severities))
        ]
        for name in names
    }
    return {
        "domains": list(counts),
        "images": sum(len(config.rows(domain, count)) for domain, count in counts.items()),
        "seed": config.seed,
        "severities": list(config.severities),
        "families": {
            family: chosen for family, own in FAMILIES.items() if (chosen := [name for name in names if name in own])
        },
        **_means(complete_mean([one[CLEAN] for one in each.values()]), columns),
        "by_domain": each if len(each) > 1 else {},
    }


def write_images(path: Path, config: CorruptConfig, datasets: Mapping[str, Dataset], *, writes: bool) -> None:
    """Write which images were corrupted."""
    if writes:
        chosen = (Corrupted(dataset, config.rows(name, len(dataset))) for name, dataset in datasets.items())
        text = "".join(f"{line}\n" for each in chosen for line in each.listing())
        write_bytes(path, text.encode())


def _means(clean: float | None, scores: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    mpc = complete_mean(complete_mean(values) for name, values in scores.items() if name in COMMON)
    rpc = mpc / clean if mpc is not None and clean else None
    return {CLEAN: clean, "mpc": mpc, "rpc": rpc, "scores": dict(scores)}


def _label(corruption: str | None, severity: int) -> str:
    return CLEAN if corruption is None else f"{corruption}/{severity}"


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(value: float | int | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
