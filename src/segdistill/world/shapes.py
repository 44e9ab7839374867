"""People, two-wheelers, plants and street furniture. Shape determines the class; the style sets the colours."""

from __future__ import annotations

import math

from segdistill.world.canvas import Canvas, Card
from segdistill.world.dice import Dice, Number

POLE, LIGHT, SIGN, VEGETATION, PERSON, RIDER, MOTORCYCLE, BICYCLE = 5, 6, 7, 8, 11, 12, 17, 18


def person(canvas: Canvas, dice: Dice, x: Number, z: Number, scale: Number = 1.0) -> None:
    """A standing or walking person."""
    card = Card(canvas, x, z, PERSON, canvas.instance(), dice.tint(), mirror=dice.sign())
    h = dice.uniform(1.5, 1.9) * scale * (0.7 if dice.flip(0.12) else 1.0)
    w, stride = 0.145 * h, dice.uniform(0.01, 0.13) * h
    hip, neck = 0.48 * h, 0.84 * h
    canvas.contact(x - w, x + w, z - 0.15, z + 0.25)
    canvas.cast(x - w, z, x + w, z, h)
    lower = "person" if dice.flip(0.2) else "trousers"
    card.poly(((-w, hip), (-stride - 0.06 * h, 0), (-stride + 0.03 * h, 0), (0.02 * h, hip)), lower)
    card.poly(((-0.02 * h, hip), (stride - 0.03 * h, 0), (stride + 0.06 * h, 0), (w, hip)), lower)
    swing = dice.uniform(0.0, 0.12) * h
    card.poly(((-w, neck), (-w * 1.45 - swing, hip), (-w * 1.0 - swing, hip), (-w * 0.6, neck)), "person")
    card.poly(((w, neck), (w * 1.45 + swing, hip), (w * 1.0 + swing, hip), (w * 0.6, neck)), "person")
    card.poly(
        ((-w, hip), (w, hip), (w * 1.12, neck * 0.97), (w * 0.5, neck), (-w * 0.5, neck), (-w * 1.12, neck * 0.97)),
        "person",
    )
    if dice.flip(0.25):
        card.rect(w * 0.7, 0.5 * h, w * 1.7, 0.72 * h, "plate")
    card.disc((0, 0.915 * h), 0.062 * h, 0.08 * h, "skin")
    card.poly(((-0.065 * h, 0.93 * h), (-0.05 * h, 0.99 * h), (0.05 * h, 0.99 * h), (0.065 * h, 0.93 * h)), "hair")


def rider(canvas: Canvas, dice: Dice, x: Number, z: Number, *, motor: bool, side: bool) -> None:
    """A rider together with the bicycle or motorcycle."""
    mirror = dice.sign()
    (motorcycle if motor else bicycle)(canvas, dice, x, z, side=side, mirror=mirror)
    card = Card(canvas, x, z - 0.01, RIDER, canvas.instance(), dice.tint(), mirror=mirror)
    head = "sign red" if dice.flip(0.3) else "hair"
    if side:
        seat = (-0.22, 0.86) if not motor else (-0.25, 0.78)
        card.poly((seat, (0.12, 0.62), (0.02, 0.3), (0.14, 0.3), (0.26, 0.68), (0.02, 0.95)), "trousers")
        card.poly(((-0.34, 0.84), (-0.05, 0.84), (0.3, 1.36), (0.16, 1.5), (-0.04, 1.44)), "rider")
        card.poly(((0.14, 1.4), (0.46, 1.04), (0.53, 1.1), (0.26, 1.44)), "rider")
        card.disc((0.24, 1.62), 0.11, 0.14, "skin")
        card.poly(((0.1, 1.63), (0.14, 1.76), (0.3, 1.78), (0.38, 1.66)), head)
        return
    card.poly(((-0.2, 0.9), (-0.26, 0.35), (-0.12, 0.3), (-0.04, 0.9)), "trousers")
    card.poly(((0.2, 0.9), (0.26, 0.35), (0.12, 0.3), (0.04, 0.9)), "trousers")
    card.poly(((-0.22, 0.84), (0.22, 0.84), (0.27, 1.4), (0.1, 1.5), (-0.1, 1.5), (-0.27, 1.4)), "rider")
    card.poly(((-0.27, 1.4), (-0.4, 1.05), (-0.3, 1.02), (-0.2, 1.3)), "rider")
    card.poly(((0.27, 1.4), (0.4, 1.05), (0.3, 1.02), (0.2, 1.3)), "rider")
    card.disc((0, 1.62), 0.11, 0.14, "skin")
    card.poly(((-0.13, 1.62), (-0.1, 1.77), (0.1, 1.77), (0.13, 1.62)), head)


def bicycle(canvas: Canvas, dice: Dice, x: Number, z: Number, *, side: bool, mirror: Number) -> None:
    """A bicycle seen from the side or end-on."""
    card = Card(canvas, x, z, BICYCLE, canvas.instance(), dice.tint(), mirror=mirror)
    if not side:
        canvas.contact(x - 0.15, x + 0.15, z, z + 1.4)
        card.rect(-0.05, 0, 0.05, 0.7, "tyre")
        card.poly(((-0.07, 0.6), (-0.05, 1.0), (0.05, 1.0), (0.07, 0.6)), "bicycle")
        card.rect(-0.3, 0.96, 0.3, 1.05, "bicycle")
        return
    canvas.contact(x - 0.8, x + 0.8, z - 0.1, z + 0.2)
    canvas.cast(x - 0.8, z, x + 0.8, z, 0.8)
    for wheel in (-0.52, 0.52):
        card.disc((wheel, 0.34), 0.34, 0.34, "tyre", n=14)
        card.disc((wheel, 0.34), 0.27, 0.27, "spoke", n=12)
    t = 0.045
    for (ax, ay), (bx, by) in (
        ((-0.52, 0.34), (-0.18, 0.82)),
        ((-0.52, 0.34), (-0.02, 0.32)),
        ((-0.02, 0.32), (-0.2, 0.9)),
        ((-0.02, 0.32), (0.38, 0.86)),
        ((-0.18, 0.8), (0.38, 0.86)),
        ((0.52, 0.34), (0.36, 1.0)),
    ):
        card.poly(((ax - t, ay), (ax + t, ay + t), (bx + t, by), (bx - t, by - t)), "bicycle")
    card.rect(-0.34, 0.88, -0.08, 0.96, "tyre")
    card.poly(((0.22, 1.0), (0.22, 1.07), (0.48, 1.07), (0.48, 1.0)), "bicycle")


def motorcycle(canvas: Canvas, dice: Dice, x: Number, z: Number, *, side: bool, mirror: Number) -> None:
    """A motorcycle or scooter seen from the side or end-on."""
    card = Card(canvas, x, z, MOTORCYCLE, canvas.instance(), dice.tint(), mirror=mirror)
    if not side:
        canvas.contact(x - 0.35, x + 0.35, z, z + 1.6)
        card.rect(-0.11, 0, 0.11, 0.62, "tyre")
        card.poly(((-0.28, 0.45), (-0.24, 0.86), (0.24, 0.86), (0.28, 0.45)), "motorcycle")
        card.rect(-0.42, 0.9, 0.42, 1.0, "metal")
        card.rect(-0.1, 0.66, 0.1, 0.8, "lamp red" if mirror > 0 else "lamp white")
        return
    canvas.contact(x - 1.0, x + 1.0, z - 0.15, z + 0.3)
    canvas.cast(x - 1.0, z, x + 1.0, z, 0.9)
    for wheel in (-0.68, 0.68):
        card.disc((wheel, 0.31), 0.31, 0.31, "tyre", n=14)
        card.disc((wheel, 0.31), 0.15, 0.15, "metal", n=8)
    card.poly(((-0.35, 0.25), (0.3, 0.25), (0.42, 0.5), (-0.4, 0.52)), "metal")
    card.poly(
        ((-0.95, 0.66), (-0.5, 0.5), (0.35, 0.48), (0.5, 0.78), (0.3, 0.92), (-0.1, 0.72), (-0.85, 0.8)), "motorcycle"
    )
    card.poly(((-0.85, 0.78), (-0.1, 0.72), (-0.12, 0.82), (-0.8, 0.88)), "tyre")
    card.poly(((0.68, 0.31), (0.78, 0.34), (0.46, 1.02), (0.36, 0.98)), "metal")
    card.rect(0.28, 0.98, 0.52, 1.08, "tyre")
    card.disc((0.56, 0.82), 0.09, 0.1, "lamp white", n=8)


def pole(canvas: Canvas, dice: Dice, x: Number, z: Number, height: Number, width: Number) -> Card:
    """A bare pole; returns its card so that something can hang on it."""
    card = Card(canvas, x, z, POLE, 0, dice.tint())
    canvas.contact(x - width, x + width, z - 0.1, z + 0.15)
    canvas.cast(x - width / 2, z, x + width / 2, z, height)
    card.rect(-width / 2, 0, width / 2, height, "pole")
    return card


def lamp(canvas: Canvas, dice: Dice, x: Number, z: Number) -> None:
    """A street lamp whose arm reaches over the road."""
    height = dice.uniform(5.5, 8.0)
    card = pole(canvas, dice, x, z, height, 0.18)
    reach = -math.copysign(dice.uniform(1.0, 2.0), x)
    card.poly(((0, height - 0.14), (reach, height + 0.1), (reach, height + 0.24), (0, height)), "pole")
    card.poly(
        (
            (reach * 0.75, height + 0.02),
            (reach * 1.25, height + 0.02),
            (reach * 1.2, height + 0.2),
            (reach * 0.8, height + 0.2),
        ),
        "street lamp",
    )
    canvas.lamps.append((x + reach, height, z))


def traffic_light(canvas: Canvas, dice: Dice, x: Number, z: Number, scale: Number) -> None:
    """A traffic light on a pole, sometimes with a second head on an arm over the road."""
    base = dice.uniform(2.3, 3.2) * scale
    card = pole(canvas, dice, x, z, base + 1.0 * scale, 0.15 * scale)
    heads = [(0.0, base)]
    if dice.flip(0.4):
        reach, top = -math.copysign(dice.uniform(2.0, 3.6), x), base + dice.uniform(1.6, 2.6)
        card.rect(-0.08, base, 0.08, top, "pole")
        card.rect(0.0, top - 0.14, reach, top, "pole")
        heads.append((reach, top - 1.0))
    state = dice.pick(("lens red", "lens amber", "lens green", "lens green", "lens red"))
    for at, y in heads:
        card.rect(at - 0.24 * scale, y, at + 0.24 * scale, y + 1.05 * scale, "traffic light", cls=LIGHT)
        for i, lens in enumerate(("lens green", "lens amber", "lens red")):
            lit = lens if lens == state else "lens off"
            card.disc((at, y + (0.2 + 0.33 * i) * scale), 0.14 * scale, 0.14 * scale, lit, n=8, cls=LIGHT)


def sign(canvas: Canvas, dice: Dice, x: Number, z: Number, scale: Number) -> None:
    """A traffic sign: disc, triangle, octagon, diamond or panel on a pole."""
    y, r = dice.uniform(2.1, 2.7) * scale, dice.uniform(0.36, 0.5) * scale
    card = pole(canvas, dice, x, z, y + r, 0.1 * scale)
    kind = dice.integer(0, 5)
    if kind == 0:
        card.disc((0, y), r, r, "sign red", n=12, cls=SIGN)
        card.disc((0, y), r * 0.68, r * 0.68, "traffic sign", n=12, cls=SIGN)
    elif kind == 1:
        card.poly(((-r * 1.1, y - r * 0.8), (r * 1.1, y - r * 0.8), (0, y + r * 1.1)), "sign red", cls=SIGN)
        card.poly(((-r * 0.6, y - r * 0.5), (r * 0.6, y - r * 0.5), (0, y + r * 0.55)), "traffic sign", cls=SIGN)
    elif kind == 2:
        card.disc((0, y), r, r, "sign red", n=8, cls=SIGN)
        card.rect(-r * 0.65, y - r * 0.18, r * 0.65, y + r * 0.18, "traffic sign", cls=SIGN)
    elif kind == 3:
        card.poly(((-r, y), (0, y - r), (r, y), (0, y + r)), "sign yellow", cls=SIGN)
    elif kind == 4:
        card.disc((0, y), r, r, "sign blue", n=12, cls=SIGN)
        card.poly(
            ((-r * 0.5, y - 0.1), (r * 0.1, y - 0.1), (r * 0.1, y - r * 0.5), (r * 0.7, y), (0, y + r * 0.4)),
            "traffic sign",
            cls=SIGN,
        )
    else:
        w, h = dice.uniform(0.7, 1.5) * scale, dice.uniform(0.5, 0.9) * scale
        card.rect(-w, y, w, y + h, "sign blue", cls=SIGN)
        card.rect(-w * 0.8, y + 0.55 * h, w * 0.6, y + 0.75 * h, "traffic sign", cls=SIGN)
        card.rect(-w * 0.8, y + 0.2 * h, w * 0.8, y + 0.4 * h, "traffic sign", cls=SIGN)


def tree(canvas: Canvas, dice: Dice, x: Number, z: Number, scale: Number = 1.0, *, kind: str) -> None:
    """A tree: broad crown, conifer or palm."""
    card = Card(canvas, x, z, VEGETATION, 0, dice.tint(), mirror=dice.sign())
    h = dice.uniform(5.0, 10.0) * scale
    w = 0.025 * h + 0.06
    canvas.contact(x - 0.5, x + 0.5, z - 0.2, z + 0.4)
    canvas.cast(x - w, z, x + w, z, h * 0.6)
    if kind == "conifer":
        card.rect(-w, 0, w, 0.2 * h, "trunk")
        for i in range(3):
            y, half = (0.12 + 0.26 * i) * h, (0.24 - 0.06 * i) * h
            card.poly(((-half, y), (half, y), (half * 0.2, y + 0.36 * h), (-half * 0.2, y + 0.36 * h)), "vegetation")
        canvas.blobs.append((x, z, h * 0.4, h * 0.2))
        return
    if kind == "palm":
        lean = 0.08 * h
        card.poly(((-w, 0), (w, 0), (lean + w * 0.6, 0.85 * h), (lean - w * 0.6, 0.85 * h)), "trunk")
        for i in range(7):
            a = math.pi * (i / 6 * 1.3 - 0.15)
            ex, ey = lean + 0.3 * h * math.cos(a), 0.85 * h + 0.22 * h * math.sin(a) - 0.04 * h
            card.poly(
                (
                    (lean, 0.82 * h),
                    ((lean + ex) / 2, (0.9 * h + ey) / 2 + 0.06 * h),
                    (ex, ey),
                    ((lean + ex) / 2, (0.84 * h + ey) / 2),
                ),
                "vegetation",
            )
        canvas.blobs.append((x, z, h * 0.85, h * 0.2))
        return
    crown, r = 0.66 * h, 0.25 * h
    card.poly(((-w, 0), (w, 0), (w * 0.7, crown), (-w * 0.7, crown)), "trunk")
    _blob(card, dice, (0.0, crown), r * 1.1)
    for _ in range(4):
        a = dice.uniform(0, 2 * math.pi)
        _blob(card, dice, (0.75 * r * math.cos(a), crown + 0.7 * r * math.sin(a)), r * dice.uniform(0.5, 0.8))
    canvas.blobs.append((x, z, crown, r * 1.4))


def bush(canvas: Canvas, dice: Dice, x: Number, z: Number, scale: Number) -> None:
    """A low bush made of a few lumps."""
    card = Card(canvas, x, z, VEGETATION, 0, dice.tint())
    canvas.contact(x - 0.8 * scale, x + 0.8 * scale, z - 0.2, z + 0.5)
    canvas.blobs.append((x, z, 0.5 * scale, 0.8 * scale))
    for _ in range(3):
        _blob(card, dice, (dice.uniform(-0.8, 0.8) * scale, 0.4 * scale), dice.uniform(0.45, 0.8) * scale)


def _blob(card: Card, dice: Dice, at: tuple[Number, Number], radius: Number) -> None:
    """An irregular lump of leaves, never below the ground."""
    points = []
    for i in range(11):
        a, r = 2 * math.pi * i / 11, radius * dice.uniform(0.82, 1.18)
        points.append((at[0] + r * math.cos(a), max(0.0, at[1] + r * math.sin(a))))
    card.poly(points, "vegetation")
