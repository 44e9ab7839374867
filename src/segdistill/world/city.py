"""Layout statistics of a city, and the dimensions of one street."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from segdistill.world.dice import Dice, Number, Span


@dataclass(frozen=True)
class City:
    """Layout statistics. Spans are (low, high), drawn per street; the eight thing rates are mean counts per street."""

    lane: Span = (3.0, 3.6)  # metres
    lanes: Span = (2, 3)  # lanes in both directions together
    sidewalk: Span = (2.0, 4.0)  # metres
    verge: Span = (0.0, 0.5)  # metres of grass between kerb and sidewalk; negative values mean none
    setback: Span = (0.0, 3.0)  # metres between sidewalk and buildings
    height: Span = (6.0, 18.0)  # of buildings, metres
    length: Span = (9.0, 24.0)  # of buildings along the street, metres
    density: Span = (0.6, 0.9)  # share of plots with a building
    gable: Number = 0.3  # share of buildings with a pitched roof
    trees: Span = (2, 6)  # street trees
    bushes: Span = (0, 3)
    hills: Number = 0.4  # probability of a distant line of trees
    barrier: Span = (0.3, 0.3)  # probabilities of a wall and of a fence along one side
    poles: Span = (2, 5)
    lights: Span = (0, 2)
    signs: Span = (1, 4)
    things: tuple[Number, ...] = (4.0, 0.5, 5.0, 0.5, 0.4, 0.3, 0.5, 0.6)  # person, rider, car, truck, bus, train, ...
    parked: Number = 0.4  # share of cars that are parked
    crossing: Number = 0.12  # probability of a zebra crossing
    curve: Span = (-0.0015, 0.0015)  # 1 / (2 radius), 1 / metres
    camera: Span = (1.3, 1.6)  # camera height, metres
    focal: Span = (0.7, 0.9)  # in image widths
    horizon: Span = (0.42, 0.5)  # fraction of the image from the top
    centre: Span = (0.42, 0.58)
    roll: Span = (-0.01, 0.01)  # radians
    kinds: tuple[str, ...] = ("broad", "broad", "conifer")  # of trees
    hood: Number = 0.0  # probability that the ego vehicle's bonnet is visible (labelled 255)


def redrawn(city: City, dice: Dice) -> City:
    """``city`` with spans, all but ``barrier``, narrowed to a random 60 % and rates moved by up to a quarter."""
    changes: dict[str, object] = {}
    for f in fields(city):
        value = getattr(city, f.name)
        if f.name == "things":
            changes[f.name] = tuple(v * dice.uniform(0.75, 1.25) for v in value)
        elif isinstance(value, float):
            changes[f.name] = value * dice.uniform(0.75, 1.25)
        elif f.name not in ("kinds", "barrier"):
            changes[f.name] = dice.narrowed(value)
    return replace(city, **changes)  # type: ignore[arg-type]


@dataclass
class Street:
    """The dimensions of one street, used to place objects."""

    city: City
    lane: Number
    half: Number  # half the road's width
    verge: Number
    walk: Number  # sidewalk width
    own: Number  # the camera's lateral position on the road
    curve: Number
    tram: bool

    def x(self, lateral: Number, z: Number) -> float:
        """Camera x of a position ``lateral`` metres right of the road's middle, ``z`` ahead."""
        return lateral - self.own + self.curve * z * z

    @property
    def edge(self) -> float:
        """Distance from the road's middle to the outer edge of the sidewalk."""
        return self.half + self.verge + self.walk
