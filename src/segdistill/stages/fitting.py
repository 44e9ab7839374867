"""Methods and encoders as shapes alone: what a method needs, and whether it fits two networks."""

from __future__ import annotations

from functools import cache
from typing import Any

from segdistill.config import Part, UserError
from segdistill.encoders import Encoder, EncoderConfig, outline
from segdistill.encoders.anytimm import blueprint
from segdistill.methods import METHODS
from segdistill.types import Needs


@cache
def sketch(config: EncoderConfig) -> Encoder:
    """The encoder on the meta device, one per process: only its widths and strides may be read."""
    return outline(config)


def needs_of(part: Part) -> Needs:
    """The inputs that the method of ``part`` needs with its settings."""
    method: Any = METHODS[part.type]
    return method.needs_for(part.settings)


def build_method(part: Part, student: Encoder, teacher: Encoder) -> Any:
    """The method of ``part`` for two encoders; a :class:`UserError` if it does not fit them."""
    method, needs = METHODS[part.type], needs_of(part)
    return method(part.settings, student.spec(needs.taps), teacher.spec(needs.of_teacher))


def check_method(part: Part, student: EncoderConfig, teacher: EncoderConfig) -> None:
    """Raise a :class:`UserError` if the method of ``part`` does not fit the encoders."""
    with blueprint():
        build_method(part, sketch(student), sketch(teacher))


def presence_width(encoder: Encoder) -> int:
    """Channels of the CLS token, which the presence term reads; a :class:`UserError` if there is none."""
    width = encoder.spec((-1,)).cls_channels
    if width is None:
        raise UserError("presence_weight needs an encoder with a CLS token; set it to 0")
    return width
