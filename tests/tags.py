"""A second task, image tags: which classes an image contains. What a new task writes; the tables get two lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from segdistill.config import Config
from segdistill.criteria import presence
from segdistill.heads.base import Head, HeadConfig
from segdistill.metrics.base import Metric, Samples, draws, interval, plain
from segdistill.models import Model
from segdistill.tasks.base import Task


class TagHead(Head):
    """The last map's mean -> one logit per class."""

    tasks = ("tags",)

    class Config(HeadConfig):
        """Nothing to set."""

    def __init__(self, config, channels, strides, num_classes):
        super().__init__()
        self.num_classes, self.strides = num_classes, strides
        self.linear = nn.Linear(channels[-1], num_classes)

    def decode(self, maps):
        return self.linear(maps[-1].mean(dim=(2, 3)))


class Tagger(Model):
    """Image -> the probability of every class."""

    def loss_of(self, decoded, batch):
        return {"tags": F.binary_cross_entropy_with_logits(decoded[: len(batch["tags"])], batch["tags"])}

    def predict(self, images):
        return self.decode(self.features(images)).sigmoid()


@dataclass(frozen=True)
class TagSamples(Samples):
    """Which tags are right, (N, K)."""

    right: np.ndarray

    @property
    def size(self):
        return len(self.right)

    def resampled(self, name):
        means = self.right.mean(axis=1)
        return draws(name, self.size) @ means / self.size if self.size > 1 else np.full(1000, np.nan)

    def arrays(self):
        return {"right": self.right}

    @classmethod
    def of_arrays(cls, arrays: Mapping):
        return cls(arrays["right"])


class TagMetric(Metric):
    """Share of tags that are right."""

    def update(self, model, batch, view):
        right = (model.predict(view.prepare(batch["image"])) > 0.5) == (batch["tags"] > 0.5)
        self.seen |= dict(zip(self.numbers(batch), right.cpu().numpy(), strict=True))

    def samples(self):
        return TagSamples(np.array(list(self.seen.values()), dtype=np.float64))

    def result(self, name):
        found = self.samples()
        bounds = interval(found.resampled(name))
        by_class = [plain(float(value)) for value in found.right.mean(axis=0)]
        return {
            "hit": plain(float(found.right.mean())),
            "hit_interval": bounds,
            "by_tag": by_class,
            "images": found.size,
        }


class Tags(Task):
    """Image tags."""

    primary = "hit"
    metrics: ClassVar = {"hit": {"label": "tags right", "unit": "%", "by_class": "by_tag", "by_class_label": "right"}}
    network, kept = Tagger, TagSamples

    class Augment(Config):
        """``flip``: probability of a mirrored image."""

        flip: float = 0.5

    def transform(self, augment, size):
        def changed(sample):
            batch = self.targets(sample)
            image = batch["image"].flip(-1) if torch.rand(()) < augment.flip else batch["image"]
            return batch | {"image": image[:, : size[0], : size[1]]}

        return changed

    def targets(self, sample):
        label = torch.tensor(sample.label)[None].long()
        return {"image": torch.tensor(sample.image).permute(2, 0, 1), "tags": presence(label, 13, 0.001)[0][0]}

    def metric(self, num_classes, device="cpu"):
        return TagMetric()
