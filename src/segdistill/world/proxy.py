"""Unlabelled proxy images: close-ups of objects, random compositions, and streets from unusual cameras."""

from __future__ import annotations

import math
from dataclasses import replace

from segdistill.world import shapes, vehicles
from segdistill.world.canvas import FAR, Camera, Canvas, Card, Ground, Scene, freeze
from segdistill.world.city import City
from segdistill.world.dice import Dice, Number
from segdistill.world.scene import OBJECT_LAYER, backdrop, barrier, house, street
from segdistill.world.vehicles import Placement

# Heights in metres of the objects of close-ups.
HEIGHTS = {
    "person": 1.75, "rider": 1.8, "bicycle": 1.1, "motorcycle": 1.1, "car": 1.5, "truck": 4.4, "bus": 4.8, "train": 5.5,
    "tree": 7.5, "bush": 1.2, "sign": 3.0, "traffic light": 4.0, "house": 9.0, "barrier": 1.8, "lamp": 7.0,
}  # fmt: skip


def proxy(city: City, dice: Dice) -> Scene:
    """A proxy scene: 40 % object-centred, 30 % compositions, 30 % unusual views of streets."""
    kind = dice.unit()
    if kind < 0.4:
        return _close_up(dice)
    if kind < 0.7:
        return _composition(dice)
    return street(_strange(city, dice), dice)


def _strange(city: City, dice: Dice) -> City:
    """``city`` seen by a camera that is too high, tilted, or zoomed in."""
    focal = dice.uniform(0.45, 2.6)
    height = dice.uniform(0.6, 5.0)
    roll, horizon = dice.uniform(-0.25, 0.25), dice.uniform(0.1, 0.85)
    return replace(
        city,
        camera=(height, height),
        focal=(focal, focal),
        roll=(roll, roll),
        horizon=(horizon, horizon),
        centre=(0.1, 0.9),
        density=(0.0, 1.0),
    )


def _stage(dice: Dice, camera: Camera) -> Canvas:
    """A canvas with a random background: sky or backdrop above, one to three strips of ground below."""
    canvas = Canvas(camera)
    if dice.flip(0.5):
        backdrop(canvas, dice, 0.5)
    else:
        canvas.layer(0)
        wall = Card(canvas, 0.0, FAR, 255, tint=dice.tint())
        grid = (dice.uniform(60, 400), dice.uniform(60, 400), dice.uniform(0.0, 0.5), dice.uniform(0.2, 1.0))
        wall.rect(
            -9 * FAR, -9 * FAR, 9 * FAR, 9 * FAR, "backdrop", second=dice.pick(("floor", "wall", "window")), grid=grid
        )
    canvas.layer(2)
    cls, material = dice.pick(((9, "terrain"), (0, "road"), (1, "sidewalk"), (255, "floor"), (255, "backdrop")))
    Ground(canvas, dice.tint()).poly([(-900, 1), (-900, 900), (900, 900), (900, 1)], cls, material)
    for _ in range(dice.integer(0, 2)):
        cls, material = dice.pick(((9, "terrain"), (0, "road"), (1, "sidewalk"), (255, "floor")))
        near, far = dice.uniform(1.0, 8.0), dice.uniform(10.0, 60.0)
        left, width, skew = dice.uniform(-20, 10), dice.uniform(2.0, 30.0), dice.uniform(-15, 15)
        corners = [(left, near), (left + skew, far), (left + skew + width, far), (left + width, near)]
        Ground(canvas, dice.tint()).poly(corners, cls, material)
    return canvas


def _close_up(dice: Dice) -> Scene:
    """One or two large objects before a random background; the first one near the middle of a 1:2 image."""
    name = dice.pick(tuple(HEIGHTS))
    height, focal = dice.uniform(0.5, 2.4), dice.uniform(0.7, 1.6)
    z = max(2.2, HEIGHTS[name] * focal * 2 / dice.uniform(0.45, 1.1))
    middle = 0.5 + 2 * focal / z * (0.5 * HEIGHTS[name] - height)  # the horizon that centres the object
    camera = Camera(
        height=height,
        focal=focal,
        centre=dice.uniform(0.35, 0.65),
        horizon=min(1.05, max(-0.05, middle + dice.uniform(-0.12, 0.12))),
        roll=dice.uniform(-0.15, 0.15),
    )
    canvas = _stage(dice, camera)
    canvas.layer(OBJECT_LAYER, z)
    place(canvas, dice, name, dice.uniform(-0.2, 0.2) * z / focal, z)
    if dice.flip(0.4):
        z *= dice.uniform(1.0, 1.8)
        canvas.layer(OBJECT_LAYER, z)
        place(canvas, dice, dice.pick(tuple(HEIGHTS)), dice.uniform(-0.45, 0.45) * z / focal, z)
    return freeze(canvas)


def _composition(dice: Dice) -> Scene:
    """Many objects at random places and scales on random ground."""
    camera = Camera(
        height=dice.uniform(0.8, 6.0),
        focal=dice.uniform(0.5, 1.4),
        centre=dice.uniform(0.3, 0.7),
        horizon=dice.uniform(0.15, 0.6),
        roll=dice.uniform(-0.2, 0.2),
    )
    canvas = _stage(dice, camera)
    for _ in range(dice.integer(4, 16)):
        z = 3.5 + 45.0 * dice.unit() ** 2
        x = dice.uniform(-0.6, 0.6) * z / camera.focal
        canvas.layer(OBJECT_LAYER, z)
        place(canvas, dice, dice.pick(tuple(HEIGHTS)), x, z)
    return freeze(canvas)


def place(canvas: Canvas, dice: Dice, name: str, x: Number, z: Number) -> None:
    """One object of a kind in `HEIGHTS` in a random pose."""
    scale = dice.uniform(0.8, 1.25)
    at = Placement(x, z, dice.pick(("away", "toward", "across", "across")), scale)
    if name in ("car", "truck", "bus", "train"):
        getattr(vehicles, name)(canvas, dice, at)
    elif name == "person":
        shapes.person(canvas, dice, x, z, scale)
    elif name == "rider":
        shapes.rider(canvas, dice, x, z, motor=dice.flip(0.5), side=dice.flip(0.7))
    elif name in ("bicycle", "motorcycle"):
        build = shapes.bicycle if name == "bicycle" else shapes.motorcycle
        build(canvas, dice, x, z, side=dice.flip(0.8), mirror=dice.sign())
    elif name == "tree":
        shapes.tree(canvas, dice, x, z, scale, kind=dice.pick(("broad", "conifer", "palm")))
    elif name == "bush":
        shapes.bush(canvas, dice, x, z, scale)
    elif name == "sign":
        shapes.sign(canvas, dice, x, z, scale)
    elif name == "traffic light":
        shapes.traffic_light(canvas, dice, x, z, scale)
    elif name == "lamp":
        shapes.lamp(canvas, dice, x, z)
    elif name == "house":
        a = dice.uniform(0.1, 0.9)
        length = dice.uniform(6.0, 16.0)
        far = (x + length * math.cos(a) * (-1 if x > 0 else 1), z + length * math.sin(a))
        house(canvas, dice, ((x, z), far), dice.uniform(4.0, 14.0), gable=0.5)
    else:
        a, length = dice.uniform(-0.6, 0.6), dice.uniform(4.0, 12.0)
        start = (x - length / 2 * math.cos(a), z)
        end = (x + length / 2 * math.cos(a), max(2.0, z + length * math.sin(a)))
        barrier(canvas, dice, (start, end), solid=dice.flip(0.5), low=False)
