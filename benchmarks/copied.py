"""How much of the teacher can be read from a student's features, domain by domain? No training of networks.

    uv run python benchmarks/copied.py gkd=shipped:world_student_gkd mse=RUN/stages/01-task_agnostic/encoder.safetensors

A ridge regression from the student's last tokens to the teacher's is fitted on images of the source's training split;
the number is the share of the teacher's variance that it leaves unexplained on each domain's test split (0 a copy, 1
the mean).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from segdistill import world
from segdistill.encoders import Encoder, EncoderConfig, build_encoder

SIZE = (64, 128)
DOMAINS = ("game", "proxy", "clear", "night", "fog", "snow", "rain", "dusk", "haze", "drizzle")


def images(domain: str, split: str, count: int) -> Tensor:
    """(count, 3, 64, 128) in [0, 1]."""
    shown = [torch.tensor(world.render(domain, split, index, size=SIZE).image) for index in range(count)]
    return torch.stack(shown).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def tokens(encoder: Encoder, batch: Tensor) -> Tensor:
    """(images x cells, width) in float64."""
    return torch.cat([encoder(part).tokens[-1] for part in batch.split(20)]).flatten(0, 1).double()


def ridge(inputs: Tensor, targets: Tensor, strength: float = 1e-3) -> Tensor:
    """(width + 1, width of the targets): the last row is the offset."""
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    gram = inputs.T @ inputs
    return torch.linalg.solve(gram + strength * gram.diagonal().mean() * torch.eye(len(gram)), inputs.T @ targets)


def unexplained(inputs: Tensor, targets: Tensor, weight: Tensor) -> float:
    """Squared error over the targets' variance."""
    error = (targets - inputs @ weight[:-1] - weight[-1]).square().sum()
    return float(error / (targets - targets.mean(0)).square().sum())


def main() -> None:
    """Print one row of a Markdown table for each encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", metavar="NAME=WEIGHTS")
    parser.add_argument("--train", type=int, default=200, help="source images for the regression")
    parser.add_argument("--test", type=int, default=60, help="images of each domain")
    options = parser.parse_args()
    teacher = build_encoder(EncoderConfig(name="world_teacher", weights="shipped"), seed=0).eval()
    fit = images("game", "train", options.train)
    wanted = tokens(teacher, fit)
    sets = {domain: images(domain, "pretrain" if domain == "proxy" else "test", options.test) for domain in DOMAINS}
    truths = {domain: tokens(teacher, batch) for domain, batch in sets.items()}
    print("| encoder | " + " | ".join(DOMAINS) + " |\n|---|" + "---:|" * len(DOMAINS))
    for name, weights in (text.split("=", 1) for text in options.encoders):
        student = build_encoder(EncoderConfig(name="world_student", weights=weights), seed=0).eval()
        weight = ridge(tokens(student, fit), wanted)
        rest = [unexplained(tokens(student, sets[domain]), truths[domain], weight) for domain in DOMAINS]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in rest) + " |", flush=True)


if __name__ == "__main__":
    main()
