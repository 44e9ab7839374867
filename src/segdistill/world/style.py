"""Appearance: a `Look` has the ranges of a domain's appearance parameters, a `Style` one image's values."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from segdistill.world import palettes
from segdistill.world.dice import Dice, Span
from segdistill.world.palettes import Palette


@dataclass(frozen=True)
class Look:
    """Spans (low, high) of every appearance parameter; ``palette`` None: a random palette per image."""

    palette: Palette | None = None
    jitter: Span = (0.01, 0.02)  # shift of all material colours of an image
    spread: Span = (1.0, 1.0)  # factor on the colour spread of single objects
    texture: Span = (0.1, 0.2)  # amplitude of surface texture
    grain: Span = (0.8, 1.2)  # its frequency, relative
    sun: Span = (0.5, 0.7)  # strength of direct light
    azimuth: Span = (-3.1, 3.1)  # of the sun, radians, 0 = ahead
    elevation: Span = (0.5, 1.1)  # of the sun, radians
    ambient: Span = (0.5, 0.6)  # strength of sky light
    warmth: Span = (-0.02, 0.06)  # of the light: < 0 blue, > 0 orange
    clouds: Span = (0.1, 0.4)
    fog: Span = (0.0, 0.0)  # extinction, 1 / metres
    fog_light: Span = (0.75, 0.85)  # brightness of fog
    snow: Span = (0.0, 0.0)  # share of upward surfaces covered
    flakes: Span = (0.0, 0.0)  # falling flakes, relative number
    streaks: Span = (0.0, 0.0)  # rain streaks, relative number
    wet: Span = (0.0, 0.0)  # strength of reflections on the ground
    headlight: Span = (0.0, 0.0)  # strength of the ego vehicle's headlights
    lamps: Span = (0.0, 0.0)  # strength of street lamps and of lit lenses
    lit: Span = (0.0, 0.0)  # share of lit windows
    exposure: Span = (0.95, 1.05)
    gamma: Span = (0.95, 1.05)
    contrast: Span = (0.98, 1.05)
    saturation: Span = (0.95, 1.05)
    cast: Span = (0.0, 0.02)  # strength of a colour cast of random direction
    vignette: Span = (0.0, 0.1)
    blur: Span = (0.0, 0.0)  # radius in 1/1000 image widths
    noise: Span = (0.0, 0.01)  # standard deviation of sensor noise


@dataclass(frozen=True, eq=False)
class Style:
    """One image's appearance. ``values`` holds a number for every span of `Look`, by name."""

    values: dict[str, float]
    colours: np.ndarray  # (M, 3)
    spread: np.ndarray  # (M,)
    cast: np.ndarray  # (3,) factor per channel
    noise_key: int

    def __getitem__(self, name: str) -> float:
        return self.values[name]


SPANS = tuple(f.name for f in fields(Look) if f.name != "palette")


def draw(look: Look, dice: Dice) -> Style:
    """A random style within the look's ranges."""
    values = {name: dice.between(getattr(look, name)) for name in SPANS}
    base = palettes.wild(dice) if look.palette is None else look.palette
    moved = base.colours + dice.rng.uniform(-1.0, 1.0, base.colours.shape) * values["jitter"]
    tilt = np.array([2 * dice.unit() - 1, 2 * dice.unit() - 1, 2 * dice.unit() - 1])
    return Style(
        values=values,
        colours=np.clip(moved, 0.0, 1.0),
        spread=base.spread * values["spread"],
        cast=1.0 + values["cast"] * (tilt - tilt.mean()),
        noise_key=dice.integer(0, 2**31 - 1),
    )


def redrawn(look: Look, dice: Dice) -> Look:
    """``look`` with every span narrowed to a random part of itself and the palette shifted."""
    changes: dict[str, Any] = {name: dice.narrowed(getattr(look, name)) for name in SPANS}
    if look.palette is not None:
        changes["palette"] = palettes.redrawn(look.palette, dice)
    return replace(look, **changes)
