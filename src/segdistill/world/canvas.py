"""Planar surfaces in metric space: a scene is a list of polygons, each on a card (a plane with an owner)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from segdistill.world.dice import Number
from segdistill.world.materials import INDEX

Point = tuple[Number, Number]
Ends = tuple[Point, Point]
NEAR = 1.0  # nearest distance of objects, in metres
FAR = 1000.0  # the depth of the sky, in metres
PLAIN = (1.0, 1.0, 0.0, 0.0)  # the grid of a surface without a pattern: u period, v period, u duty, v duty

_CIRCLES = {n: [(math.cos(2 * math.pi * i / n), math.sin(2 * math.pi * i / n)) for i in range(n)] for n in range(3, 17)}


@dataclass(frozen=True)
class Camera:
    """A pinhole: ``focal`` in image widths, principal point as fractions of the image, ``height`` m, ``roll`` rad."""

    height: Number = 1.4
    focal: Number = 0.8
    centre: Number = 0.5
    horizon: Number = 0.45
    roll: Number = 0.0


class Canvas:
    """Collects cards and polygons, back to front within a layer; ``layer`` sets the layer of the next polygons."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.cards: list[tuple[Number, ...]] = []
        self.frames: list[tuple[Number, ...]] = []
        self.rows: list[tuple[Number, ...]] = []
        self.points: list[Point] = []
        self.starts: list[int] = [0]
        self.keys: list[tuple[int, float]] = []
        self.casters: list[tuple[Number, Number, Number, Number, Number]] = []
        self.blobs: list[tuple[Number, Number, Number, Number]] = []
        self.contacts: list[tuple[Number, Number, Number, Number]] = []
        self.lamps: list[tuple[Number, Number, Number]] = []
        self.instances = 0
        self._key = (0, 0.0)

    def layer(self, level: int, depth: Number = 0.0) -> None:
        """Put the next polygons into ``level``; within it, farther ones (larger ``depth``) are painted first."""
        self._key = (level, -depth)

    def instance(self) -> int:
        """A fresh instance id, from 1."""
        self.instances += 1
        return self.instances

    def cast(self, ax: Number, az: Number, bx: Number, bz: Number, height: Number) -> None:
        """A vertical rectangle from (ax, az) to (bx, bz) that casts a shadow."""
        self.casters.append((ax, az, bx, bz, height))

    def contact(self, x0: Number, x1: Number, z0: Number, z1: Number) -> None:
        """The dark patch under an object that stands on the ground."""
        self.contacts.append((x0, x1, max(z0, NEAR), max(z1, NEAR)))

    def add(self, points: Sequence[Point], row: tuple[Number, ...]) -> None:
        """One polygon in its card's coordinates, and its row (card, class, instance, two materials, grid of four)."""
        self.points.extend(points)
        self.starts.append(len(self.points))
        self.rows.append(row)
        self.keys.append(self._key)


@dataclass(slots=True)
class Card:
    """A vertical plane through (x, z) along the ground direction (ux, uz); its points are (metres along, metres up).

    ``mirror`` = -1 reverses "along", so that one profile serves both headings.
    """

    canvas: Canvas
    x: Number
    z: Number
    cls: int
    inst: int = 0
    tint: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)
    direction: Point = (1.0, 0.0)
    mirror: Number = 1.0
    index: int = field(init=False)

    def __post_init__(self) -> None:
        ux, uz = self.direction
        nx, nz = uz, -ux
        distance = nx * self.x + nz * self.z
        if abs(distance) < 0.05:
            distance = math.copysign(0.05, distance)
        if distance > 0:  # the normal must face the camera
            nx, nz, distance = -nx, -nz, -distance
        phase = ux * self.x + uz * self.z
        self.index = len(self.canvas.cards)
        self.canvas.cards.append((nx / distance, 0.0, nz / distance, nx, 0.0, nz, ux, uz, phase, 0.0, *self.tint))
        m = self.mirror
        self.canvas.frames.append((self.x, 0.0, self.z, m * ux, 0.0, m * uz, 0.0, 1.0, 0.0))

    def poly(
        self,
        points: Sequence[Point],
        material: str,
        *,
        cls: int = -1,
        second: str = "",
        grid: tuple[Number, Number, Number, Number] = PLAIN,
    ) -> None:
        """A polygon of (along, up) points; ``second`` and ``grid`` paint a regular pattern such as windows."""
        mat = INDEX[material]
        owner = self.cls if cls < 0 else cls
        self.canvas.add(points, (self.index, owner, self.inst, mat, INDEX[second] if second else mat, *grid))

    def rect(self, x0: Number, y0: Number, x1: Number, y1: Number, material: str, **kwargs: object) -> None:
        """An upright rectangle."""
        self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), material, **kwargs)  # type: ignore[arg-type]

    def disc(self, at: Point, rx: Number, ry: Number, material: str, *, n: int = 10, cls: int = -1) -> None:
        """An ellipse around ``at`` as an n-gon."""
        self.poly([(at[0] + rx * c, at[1] + ry * s) for c, s in _CIRCLES[n]], material, cls=cls)


class Ground:
    """The horizontal plane at height 0; its polygons are given by (x, z) points."""

    def __init__(self, canvas: Canvas, tint: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)) -> None:
        self.canvas = canvas
        self.index = len(canvas.cards)
        canvas.cards.append((0.0, 1.0 / canvas.camera.height, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, *tint))
        canvas.frames.append((0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))

    def poly(
        self,
        points: Sequence[Point],
        cls: int,
        material: str,
        *,
        second: str = "",
        grid: tuple[Number, Number, Number, Number] = PLAIN,
    ) -> None:
        """A polygon of (x, z) points on the plane."""
        mat = INDEX[material]
        self.canvas.add(points, (self.index, cls, 0, mat, INDEX[second] if second else mat, *grid))


@dataclass(frozen=True, eq=False)
class Scene:
    """A resolution-independent scene: polygons, the order to paint them in, cards, shadow casters, lights."""

    camera: Camera
    points: np.ndarray  # (P, 3) float64, metres: x right, y up, z ahead
    starts: np.ndarray  # (K + 1,) where each polygon's points begin
    order: list[int]  # the K polygons, back to front
    rows: np.ndarray  # (K, 9): card, class, instance, material, second material, grid
    cards: np.ndarray  # (C, 13): inverse-depth plane, normal, along, phase, is ground, tint
    casters: np.ndarray  # (S, 5)
    blobs: np.ndarray  # (S, 4)
    contacts: np.ndarray  # (S, 4)
    lamps: np.ndarray  # (S, 3)


def freeze(canvas: Canvas) -> Scene:
    """The finished scene: sorted, with points in world coordinates, all in front of the camera."""
    rows = _table(canvas.rows, 9, np.float32)
    starts = np.array(canvas.starts)
    flat = _table(canvas.points, 2, np.float64)
    frame = np.repeat(_table(canvas.frames, 9, np.float64)[rows[:, 0].astype(np.intp)], np.diff(starts), axis=0)
    origin, along, up = frame[:, 0:3], frame[:, 3:6], frame[:, 6:9]
    a, b = flat[:, :1], flat[:, 1:]
    steep = along[:, 2:] != 0  # cards that recede from the camera are cut at NEAR along their own plane
    low = (NEAR - origin[:, 2:]) / np.where(steep, along[:, 2:], 1.0)
    a = np.where(steep, np.where(along[:, 2:] > 0, np.maximum(a, low), np.minimum(a, low)), a)
    points = origin + a * along + b * up
    np.maximum(points[:, 2], NEAR, out=points[:, 2])
    return Scene(
        camera=canvas.camera,
        points=points,
        starts=starts,
        order=sorted(range(len(canvas.keys)), key=canvas.keys.__getitem__),
        rows=rows,
        cards=_table(canvas.cards, 13, np.float32),
        casters=_table(canvas.casters, 5, np.float64),
        blobs=_table(canvas.blobs, 4, np.float64),
        contacts=_table(canvas.contacts, 4, np.float64),
        lamps=_table(canvas.lamps, 3, np.float64),
    )


def _table(rows: Sequence[tuple[Number, ...]], width: int, dtype: type) -> np.ndarray:
    """(n, width) array of equally long tuples; twice as fast as np.array on them."""
    return np.fromiter(chain.from_iterable(rows), dtype, len(rows) * width).reshape(-1, width)
