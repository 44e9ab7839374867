"""The interface of a task's network for training and evaluation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from segdistill.config import UserError
from segdistill.heads import Head
from segdistill.objects import Detections
from segdistill.ops import maps
from segdistill.types import Batch, Features, LossTerms


class Model(nn.Module):
    """An encoder and the head that reads its ``taps``. Images are RGB in [0, 1], (B, 3, H, W).

    A task's network adds :meth:`loss_of` and ``predict``. :meth:`loss` chains :meth:`features`, :meth:`decode` and
    :meth:`loss_of`; training calls the three separately when a distillation term or another head needs the features.
    """

    def __init__(self, encoder: nn.Module, head: Head, taps: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder: Any = encoder  # any module with the methods of an encoder
        self.head = head
        self.taps = tuple(taps)
        self.encoder_is_frozen = self.encoder_is_evaluated = False

    def freeze_encoder(self, *, adapter: bool = False) -> None:
        """Freeze the encoder: no gradients, and evaluation mode from now on (spec A.10).

        With ``adapter`` its ``rein`` is trained, and features have gradients.
        """
        self.encoder_is_frozen, self.encoder_is_evaluated = not adapter, True
        self.encoder.requires_grad_(False)
        self.encoder.eval()
        if adapter:
            self.encoder.rein.requires_grad_(True)

    def train(self, mode: bool = True) -> Model:
        """Like ``nn.Module.train``, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_is_evaluated:
            self.encoder.eval()
        return self

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """The features that the head reads; without gradient if the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            return self.encoder(images, self.taps)

    def decoded(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Any, tuple[int, int]]:
        """The decoded features of images of any size, and the size (h, w) that the network saw.

        If a side is not a multiple of the encoder's patch or final stride, the image is padded at the bottom or right
        by repeating the border.
        """
        height, width = images.shape[-2:]
        high, wide = self.padded(height, width)
        if (high, wide) != (height, width):
            images = F.pad(images, (0, wide - width, 0, high - height), mode="replicate")
        return self.decode(self.features(images)), (high, wide)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest accepted (H, W) not below ``height`` x ``width``; a :class:`UserError` if there is none."""
        return self.encoder.padded(height, width)

    def whole_features(self, encoder: Any, images: Float[Tensor, "b 3 h w"]) -> Features:
        """What :meth:`features` would be with another encoder of the same kind."""
        return encoder(images, self.taps)

    def decode(self, features: Features) -> Any:
        """One pass of the head over the features of its taps; the result has the head's own type."""
        return self.head.decode(maps(features))

    def loss_of(self, decoded: Any, batch: Batch) -> LossTerms:
        """The task's loss terms; ``batch`` has targets for the first decoded images, the rest are unlabelled."""
        raise NotImplementedError

    def presence_loss(self, logits: Float[Tensor, "b k"], batch: Batch) -> Tensor:
        """Loss of image-level ``logits`` against the classes present in each image."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> LossTerms:
        """The task's loss terms on a batch of images (B, 3, H, W) uint8 and targets."""
        return self.loss_of(self.decode(self.features(batch["image"].float() / 255.0)), batch)

    def forward(self, batch: Batch) -> LossTerms:
        """:meth:`loss`, as the entry point for distributed wrappers."""
        return self.loss(batch)


class Finder(Model):
    """A network that finds objects: with masks (instance segmentation) or with boxes (detection)."""

    def predict(self, images: Num[Tensor, "b 3 h w"], size: tuple[int, int] | None = None) -> list[Detections]:
        """The objects in each of the images, float in [0, 1], at the images' size or at ``size`` (h, w)."""
        raise NotImplementedError


def need_floats(images: Num[Tensor, "b 3 h w"]) -> None:
    """Raise a :class:`UserError` unless images are floating-point numbers."""
    if not images.is_floating_point():
        raise UserError(f"images must be float in [0, 1], got {images.dtype}: divide 8-bit pixels by 255")
