"""Cars, trucks, buses and trams: a side and an end face along the street, or a side profile across it."""

from __future__ import annotations

from dataclasses import dataclass

from segdistill.world.canvas import Canvas, Card
from segdistill.world.dice import Dice, Number

CAR, TRUCK, BUS, TRAIN = 13, 14, 15, 16


@dataclass(frozen=True)
class Placement:
    """A vehicle's place: its centre ``x`` and nearest ``z`` in metres, its pose, and its scale.

    ``pose``: "away" (rear seen), "toward" (front seen) or "across" (the side profile faces the camera).
    """

    x: Number
    z: Number
    pose: str = "away"
    scale: Number = 1.0


def _cards(
    canvas: Canvas, dice: Dice, at: Placement, cls: int, size: tuple[Number, Number, Number]
) -> tuple[Card, Card | None]:
    """The side card and the end card of a vehicle of ``size`` (length, width, height); shadows included."""
    length, width, height = (s * at.scale for s in size)
    inst, tint = canvas.instance(), dice.tint()
    if at.pose == "across":
        canvas.contact(at.x - length / 2, at.x + length / 2, at.z - 0.2, at.z + width * 0.7)
        canvas.cast(at.x - length / 2, at.z + width / 2, at.x + length / 2, at.z + width / 2, height)
        m = dice.sign()
        return Card(canvas, at.x - m * length / 2, at.z, cls, inst, tint, mirror=m), None
    left, right = at.x - width / 2, at.x + width / 2
    canvas.contact(left - 0.12, right + 0.12, at.z - 0.15, at.z + length)
    canvas.cast(left, at.z, right, at.z, height * 0.85)
    canvas.cast(left, at.z, left, at.z + length, height * 0.85)
    canvas.cast(right, at.z, right, at.z + length, height * 0.85)
    near_side = left if at.x > 0 else right
    z, mirror = (at.z, 1.0) if at.pose == "away" else (at.z + length, -1.0)
    side = Card(canvas, near_side, z, cls, inst, tint, direction=(0.0, 1.0), mirror=mirror)
    return side, Card(canvas, at.x, at.z, cls, inst, tint)


def _wheels(card: Card, at: tuple[Number, ...], radius: Number) -> None:
    for x in at:
        card.disc((x, radius), radius, radius, "tyre", n=12)
        card.disc((x, radius), radius * 0.5, radius * 0.5, "metal", n=8)


def _end_lights(card: Card, half: Number, y: Number, toward: bool, size: Number) -> None:
    lamp = "lamp white" if toward else "lamp red"
    for s in (-1, 1):
        card.rect(s * half - size * (s > 0) * 2, y, s * half + size * (s < 0) * 2, y + size, lamp)


def car(canvas: Canvas, dice: Dice, at: Placement) -> None:
    """A saloon, hatchback, estate or van."""
    kind = dice.pick(("saloon", "hatch", "hatch", "estate", "van"))
    s = at.scale
    length = {"saloon": 4.5, "hatch": 3.9, "estate": 4.6, "van": 4.7}[kind] * s
    height = {"saloon": 1.42, "hatch": 1.48, "estate": 1.55, "van": 1.95}[kind] * s
    side, end = _cards(canvas, dice, at, CAR, (length / s, 1.8, height / s))
    waist, low = 0.58 * height, 0.2 * s
    back = {"saloon": 0.2, "hatch": 0.04, "estate": 0.02, "van": 0.01}[kind] * length
    rise, nose = 0.1 * length, (0.74 if kind != "van" else 0.86) * length
    side.poly(
        (
            (0, low),
            (0.01 * length, waist),
            (back, waist),
            (back + rise * 0.6, height),
            (nose - 1.7 * rise, height),
            (nose, waist),
            (0.97 * length, waist * 0.86),
            (length, low * 1.6),
            (0.99 * length, low),
        ),
        "car",
    )
    glass = height - 0.1 * s
    mid = (back + nose) / 2
    side.poly(
        ((back + rise * 0.5, waist), (back + rise * 0.8, glass), (mid - 0.04 * s, glass), (mid - 0.04 * s, waist)),
        "glass",
    )
    side.poly(
        ((mid + 0.04 * s, waist), (mid + 0.04 * s, glass), (nose - 1.7 * rise, glass), (nose - 0.5 * rise, waist)),
        "glass",
    )
    side.rect(back + rise, height - 0.05 * s, nose - 1.7 * rise, height + 0.03 * s, "top")
    _wheels(side, (0.19 * length, 0.81 * length), 0.32 * s)
    if end is None:
        side.rect(0, waist * 0.75, 0.12 * s, waist * 0.95, "lamp red")
        side.rect(length * 0.96, waist * 0.65, length * 0.99, waist * 0.8, "lamp white")
        return
    w, toward = 0.9 * s, at.pose == "toward"
    end.rect(-w + 0.05 * s, 0, -w + 0.27 * s, 0.4 * s, "tyre")
    end.rect(w - 0.27 * s, 0, w - 0.05 * s, 0.4 * s, "tyre")
    end.poly(
        ((-w * 0.97, low), (-w, waist * 0.7), (-w * 0.93, waist), (w * 0.93, waist), (w, waist * 0.7), (w * 0.97, low)),
        "car",
    )
    end.poly(((-w * 0.92, waist), (-w * 0.7, height), (w * 0.7, height), (w * 0.92, waist)), "car")
    end.poly(((-w * 0.8, waist + 0.03), (-w * 0.63, glass), (w * 0.63, glass), (w * 0.8, waist + 0.03)), "glass")
    end.rect(-w * 0.66, height - 0.05 * s, w * 0.66, height + 0.04 * s, "top")
    _end_lights(end, w * 0.97, waist * 0.68, toward, 0.17 * s)
    end.rect(-0.26 * s, waist * 0.45, 0.26 * s, waist * 0.62, "plate")
    end.rect(-w * 0.95, low, w * 0.95, low + 0.12 * s, "metal")


def truck(canvas: Canvas, dice: Dice, at: Placement) -> None:
    """A lorry: a plain cargo box on a visible chassis behind (or in front of) a separate cab."""
    s = at.scale
    length, height = dice.uniform(6.5, 9.5) * s, dice.uniform(3.0, 3.7) * s
    side, end = _cards(canvas, dice, at, TRUCK, (length / s, 2.4, height / s))
    cab, cab_height, floor = length - 2.1 * s, height * 0.8, 0.95 * s
    side.rect(0, 0.55 * s, length - 0.2 * s, floor, "metal")
    side.rect(0, floor, cab - 0.25 * s, height, "truck")
    side.rect(0, floor, cab - 0.25 * s, floor + 0.12 * s, "metal")
    side.poly(
        (
            (cab, 0.5 * s),
            (cab, cab_height),
            (length - 0.5 * s, cab_height),
            (length, 0.55 * cab_height),
            (length, 0.5 * s),
        ),
        "cab",
    )
    side.poly(
        (
            (cab + 0.6 * s, 0.6 * cab_height),
            (cab + 0.6 * s, 0.92 * cab_height),
            (length - 0.6 * s, 0.92 * cab_height),
            (length - 0.2 * s, 0.6 * cab_height),
        ),
        "glass",
    )
    side.rect(0, height - 0.02 * s, cab - 0.25 * s, height + 0.07 * s, "top")
    _wheels(side, (0.14 * length, 0.27 * length, length - 1.1 * s), 0.5 * s)
    if end is None:
        return
    w = 1.2 * s
    end.rect(-w, 0, -w + 0.45 * s, 0.8 * s, "tyre")
    end.rect(w - 0.45 * s, 0, w, 0.8 * s, "tyre")
    end.rect(-w, 0.5 * s, w, floor, "metal")
    end.rect(-w, floor, w, height, "truck")
    end.rect(-w, height - 0.02 * s, w, height + 0.07 * s, "top")
    if at.pose == "away":
        end.rect(-0.04 * s, floor, 0.04 * s, height, "metal")
        end.rect(-w, floor, w, floor + 0.1 * s, "metal")
        _end_lights(end, w, 0.6 * s, False, 0.2 * s)
        return
    end.rect(-w * 0.96, 0.5 * s, w * 0.96, cab_height, "cab")
    end.poly(
        (
            (-w * 0.9, 0.58 * cab_height),
            (-w * 0.84, 0.93 * cab_height),
            (w * 0.84, 0.93 * cab_height),
            (w * 0.9, 0.58 * cab_height),
        ),
        "glass",
    )
    end.rect(-w * 0.5, 0.3 * cab_height, w * 0.5, 0.48 * cab_height, "metal")
    _end_lights(end, w * 0.94, 0.7 * s, True, 0.22 * s)


def bus(canvas: Canvas, dice: Dice, at: Placement) -> None:
    """A bus: a box with a long window band, doors, and wheels under a skirt."""
    s = at.scale
    length, height = dice.uniform(9.0, 12.0) * s, dice.uniform(2.9, 3.2) * s
    side, end = _cards(canvas, dice, at, BUS, (length / s, 2.5, height / s))
    side.rect(0, 0.3 * s, length, height, "bus")
    band = (0.44 * height, 0.84 * height)
    side.rect(0.2 * s, band[0], length - 0.2 * s, band[1], "glass", second="bus", grid=(1.55 * s, 1.0, 0.1, 1.0))
    side.rect(0, 0.3 * s, length, 0.5 * s, "stripe")
    for door in (0.42, 0.86):
        side.rect(door * length, 0.4 * s, door * length + 1.1 * s, band[1], "glass")
    side.rect(0, height - 0.04 * s, length, height + 0.07 * s, "top")
    _wheels(side, (0.2 * length, 0.78 * length), 0.46 * s)
    if end is None:
        return
    w, toward = 1.25 * s, at.pose == "toward"
    end.rect(-w, 0, -w + 0.4 * s, 0.6 * s, "tyre")
    end.rect(w - 0.4 * s, 0, w, 0.6 * s, "tyre")
    end.rect(-w, 0.3 * s, w, height, "bus")
    low = 0.38 if toward else 0.52
    end.rect(-w * 0.9, low * height, w * 0.9, 0.8 * height, "glass")
    end.rect(-w * 0.7, 0.84 * height, w * 0.7, 0.96 * height, "lens off")
    end.rect(-w * 0.5, 0.87 * height, w * 0.4, 0.93 * height, "lens amber")
    end.rect(-w, height - 0.04 * s, w, height + 0.07 * s, "top")
    end.rect(-w, 0.3 * s, w, 0.48 * s, "stripe")
    _end_lights(end, w * 0.96, 0.24 * height, toward, 0.22 * s)


def train(canvas: Canvas, dice: Dice, at: Placement) -> None:
    """A tram: long, tapered front, skirt down to the rails, no wheels, a pantograph on the roof."""
    s = at.scale
    length, height = dice.uniform(16.0, 26.0) * s, dice.uniform(3.3, 3.6) * s
    side, end = _cards(canvas, dice, at, TRAIN, (length / s, 2.5, height / s))
    taper = (1.2 if end is None else 0.25) * s  # seen from the end, the end face is tapered
    side.poly(
        (
            (0, 0.12 * s),
            (0, 0.5 * height),
            (0.3 * taper, height),
            (length - taper, height),
            (length, 0.5 * height),
            (length, 0.12 * s),
        ),
        "train",
    )
    side.rect(
        0.6 * s, 0.45 * height, length - taper, 0.8 * height, "glass", second="train", grid=(2.2 * s, 1.0, 0.14, 1.0)
    )
    side.rect(0, 0.12 * s, length, 0.36 * s, "metal")
    side.rect(0, 0.36 * height, length, 0.42 * height, "stripe")
    for joint in (0.34, 0.67):
        side.rect(joint * length - 0.25 * s, 0.2 * s, joint * length + 0.25 * s, height, "metal")
    side.rect(0.3 * taper, height - 0.04 * s, length - taper, height + 0.08 * s, "top")
    _pantograph(side, 0.45 * length, height, s)
    if end is None:
        return
    w = 1.25 * s
    end.poly(
        (
            (-w * 0.9, 0.1 * s),
            (-w, 0.5 * height),
            (-w * 0.82, height),
            (w * 0.82, height),
            (w, 0.5 * height),
            (w * 0.9, 0.1 * s),
        ),
        "train",
    )
    end.poly(
        ((-w * 0.88, 0.42 * height), (-w * 0.74, 0.82 * height), (w * 0.74, 0.82 * height), (w * 0.88, 0.42 * height)),
        "glass",
    )
    end.rect(-w * 0.5, 0.86 * height, w * 0.5, 0.95 * height, "lens off")
    end.rect(-w * 0.94, 0.36 * height, w * 0.94, 0.41 * height, "stripe")
    end.rect(-w * 0.86, 0.1 * s, w * 0.86, 0.34 * s, "metal")
    end.rect(-w * 0.78, height - 0.04 * s, w * 0.78, height + 0.08 * s, "top")
    _end_lights(end, w * 0.85, 0.22 * height, at.pose == "toward", 0.2 * s)
    _pantograph(end, 0.0, height, s)


def _pantograph(card: Card, x: Number, y: Number, s: Number) -> None:
    t = 0.05 * s
    card.poly(
        ((x - 0.5 * s, y), (x - 0.5 * s + t, y), (x + 0.35 * s, y + 0.9 * s), (x + 0.35 * s - t, y + 0.9 * s)), "metal"
    )
    card.rect(x - 0.7 * s, y + 0.86 * s, x + 0.8 * s, y + 0.94 * s, "metal")
