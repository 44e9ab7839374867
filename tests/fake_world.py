"""A segmenter and batches for tests of evaluation, in a module that a spawned process can import."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist

from fake_encoder import FakeEncoder, seeded
from segdistill.data.dataset import Protocol
from segdistill.heads import SemFPN
from segdistill.models import Segmenter, View
from segdistill.processes import mean_over_processes
from segdistill.runs.evaluation import evaluate
from segdistill.tasks.semantic import SemanticMetric

K = 3


def make():
    config = SemFPN.Config(width=8, dropout=0.5)
    segmenter = seeded(lambda: Segmenter(FakeEncoder(6), SemFPN(config, (6,), (8,), K), (-1,), K))
    with torch.no_grad():
        weight = segmenter.head.classifier.weight  # an untrained one tends to a single class
        weight -= weight.mean(dim=1, keepdim=True)
        weight *= 50
    return segmenter


def score(model, domains, *, protocols=None, window=None, **options):
    """A metric of every domain, seen as its protocol says."""
    views = {name: View.of((protocols or {}).get(name, Protocol()), window) for name in domains}
    return evaluate(model, domains, lambda: SemanticMetric(model.num_classes), views=views, **options)


def batches(seed, count=2, size=(24, 32)):
    rng = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(0, 256, (2, 3, *size), generator=rng, dtype=torch.uint8),
            "label": torch.randint(0, K, (2, *size), generator=rng),
            "index": torch.tensor([2 * i, 2 * i + 1]),
        }
        for i in range(count)
    ]


def share_of_two(rank, folder):
    """Process ``rank`` of two: evaluates every second batch and writes what it got."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = batches(0, count=3)
    got = score(make(), {"a": data[rank::2]})["a"]
    mean = mean_over_processes(torch.tensor(rank * 3.0 + 1)).item()
    (folder / f"{rank}.json").write_text(json.dumps({"mean": mean, **got.result("a")}))
    dist.destroy_process_group()
