"""Scene to buffers: the visible polygon of each pixel, then class, instance and depth by look-up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from segdistill.world.canvas import FAR, NEAR, Camera, Scene

_REACH = 30000  # polygons are clipped this many pixels outside the image


@dataclass(frozen=True, eq=False)
class Buffers:
    """Per-pixel geometry, each (H, W): ``polygon`` index, trainId, instance, metric depth and world x, y."""

    polygon: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    depth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    card: np.ndarray  # (K,) card of each polygon


def project(camera: Camera, points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (u, v), pixel centres at whole numbers, of (P, 3) metric points."""
    h, w = size
    scale = camera.focal * w / points[:, 2]
    u = scale * points[:, 0] + camera.centre * w
    v = camera.horizon * h - scale * (points[:, 1] - camera.height)
    c, s = math.cos(camera.roll), math.sin(camera.roll)
    du, dv = u - 0.5 * w, v - 0.5 * h
    return c * du - s * dv + (0.5 * w - 0.5), s * du + c * dv + (0.5 * h - 0.5)


def _integer_polygons(scene: Scene, size: tuple[int, int]) -> list[list[int]]:
    """Flat integer vertex lists. Vertices are moved inwards by half a pixel, since the painter includes the outline."""
    u, v = project(scene.camera, scene.points, size)
    starts = scene.starts[:-1]
    counts = np.diff(scene.starts)
    flat = np.empty((len(u), 2))
    for i, values in enumerate((u, v)):
        low = np.minimum.reduceat(values, starts)
        high = np.maximum.reduceat(values, starts)
        middle = np.repeat((low + high) / 2, counts)
        flat[:, i] = values - np.clip(values - middle, -0.5, 0.5)
    whole = np.clip(np.floor(flat + 0.5), -_REACH, _REACH).astype(np.int64).ravel().tolist()
    ends = (2 * scene.starts).tolist()
    return [whole[a:b] for a, b in pairwise(ends)]


def rasterise(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    """(H, W) int32: the index of the polygon in front at each pixel."""
    h, w = size
    image = Image.new("I", (w, h), 0)
    pen = ImageDraw.Draw(image)
    polygons = _integer_polygons(scene, size)
    for k in scene.order:
        pen.polygon(polygons[k], fill=k)
    return np.asarray(image, dtype=np.int32)


def rays(camera: Camera, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's ray (xn, yn, 1), yn pointing down, as (1, W) and (H, 1) arrays, or full ones if the camera rolls."""
    h, w = size
    u = np.arange(w, dtype=np.float32)[None] + np.float32(0.5 - 0.5 * w)
    v = np.arange(h, dtype=np.float32)[:, None] + np.float32(0.5 - 0.5 * h)
    if camera.roll:
        c, s = np.float32(math.cos(camera.roll)), np.float32(math.sin(camera.roll))
        u, v = c * u + s * v, c * v - s * u
    inverse = np.float32(1.0 / (camera.focal * w))
    xn = (u + np.float32((0.5 - camera.centre) * w)) * inverse
    yn = (v + np.float32((0.5 - camera.horizon) * h)) * inverse
    return xn, yn


def geometry(scene: Scene, size: tuple[int, int]) -> Buffers:
    """All geometric buffers of a scene at ``size`` (H, W)."""
    polygon = rasterise(scene, size)
    card = scene.rows[:, 0].astype(np.intp)
    plane = scene.cards[card, :3]
    xn, yn = rays(scene.camera, size)
    inverse = plane[:, 0][polygon] * xn
    inverse += plane[:, 1][polygon] * yn
    inverse += plane[:, 2][polygon]
    np.clip(inverse, 1.0 / FAR, 1.0 / NEAR, out=inverse)
    depth = np.float32(1.0) / inverse
    y = np.float32(scene.camera.height) - depth * yn
    return Buffers(
        polygon=polygon,
        label=scene.rows[:, 1].astype(np.uint8)[polygon],
        instance=scene.rows[:, 2].astype(np.int32)[polygon],
        depth=depth,
        x=depth * xn,
        y=y,
        card=card,
    )


def shadows(scene: Scene, size: tuple[int, int], sun: tuple[float, float, float]) -> np.ndarray:
    """(H, W) uint8 darkness of the ground. ``sun``: a shadow's shift (x, z) per metre of height, strength in [0, 1]."""
    h, w = size
    dx, dz, strength = sun
    image = Image.new("L", (w, h), 0)
    quads: list[np.ndarray] = []
    tones: list[int] = []
    if strength > 0.02:
        quads.append(_cast(scene.casters, dx, dz))
        quads.append(_cast_blobs(scene.blobs, dx, dz))
        tones += [round(255 * strength)] * (len(scene.casters) + len(scene.blobs))
    x0, x1, z0, z1 = scene.contacts.T
    quads.append(np.stack([np.stack([x0, x1, x1, x0], 1), np.stack([z0, z0, z1, z1], 1)], 2))
    tones += [130] * len(scene.contacts)
    corners = np.concatenate(quads).reshape(-1, 2)
    points = np.stack([corners[:, 0], np.zeros(len(corners)), np.maximum(corners[:, 1], NEAR)], 1)
    u, v = project(scene.camera, points, size)
    flat = np.clip(np.floor(np.stack([u, v], 1) + 0.5), -_REACH, _REACH).astype(np.int64).reshape(-1, 8).tolist()
    pen = ImageDraw.Draw(image)
    for vertices, tone in zip(flat, tones, strict=True):
        pen.polygon(vertices, fill=tone)
    return np.asarray(image)


def _cast(casters: np.ndarray, dx: float, dz: float) -> np.ndarray:
    """(S, 4, 2) ground outlines of the shadows of vertical rectangles."""
    ax, az, bx, bz, height = casters.T
    x = np.stack([ax, bx, bx + dx * height, ax + dx * height], 1)
    z = np.stack([az, bz, bz + dz * height, az + dz * height], 1)
    return np.stack([x, z], 2)


def _cast_blobs(blobs: np.ndarray, dx: float, dz: float) -> np.ndarray:
    """(S, 4, 2) ground diamonds: the shadows of tree crowns."""
    x, z, height, radius = blobs.T
    x, z = x + dx * height, z + dz * height
    return np.stack([np.stack([x - radius, x, x + radius, x], 1), np.stack([z, z + radius, z, z - radius], 1)], 2)
