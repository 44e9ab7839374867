"""Buffers and a style to radiance: albedo, texture, snow, sun, lamps, sky, wet ground and fog."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from segdistill.world.canvas import Camera, Scene
from segdistill.world.materials import GLOW, INDEX, SNOW, TEXTURE
from segdistill.world.render import Buffers, rays, shadows
from segdistill.world.style import Style

F = np.float32
_SIDE = 512  # of the noise table
_SMOOTH = 160_000  # number of pixels from which on noise is interpolated
_SKY, _WINDOW, _LAMP = 10, INDEX["window"], INDEX["street lamp"]


@lru_cache(maxsize=1)
def _noise_table() -> np.ndarray:
    """(512 * 512,) periodic noise of several octaves in about [-1, 1], the same for every image."""
    rng = np.random.default_rng(20260301)
    total = np.zeros((_SIDE, _SIDE), dtype=np.float32)
    for octave in range(3, 10):
        cells = 2**octave
        coarse = rng.uniform(-1.0, 1.0, (cells, cells)).astype(np.float32)
        step = _SIDE // cells
        fine = np.repeat(np.repeat(coarse, step, 0), step, 1)
        for axis in (0, 1):  # a box filter as wide as a cell makes the steps linear
            if step > 1:
                wide = np.cumsum(np.concatenate([fine, np.take(fine, range(step), axis)], axis), axis, dtype=np.float64)
                fine = (
                    (np.take(wide, range(step, _SIDE + step), axis) - np.take(wide, range(_SIDE), axis)) / step
                ).astype(np.float32)
        total += fine * F(0.62 ** (octave - 3))
    total /= np.abs(total).max() * F(0.6)
    table = total.ravel()
    table.setflags(write=False)
    return table


def noise(u: np.ndarray, v: np.ndarray, *, smooth: bool) -> np.ndarray:
    """Periodic noise at lattice coordinates (u, v); one unit is one cell of the 512-cell table.

    Small images use the nearest cell, which is fast and looks the same; large ones interpolate (``smooth``).
    """
    table = _noise_table()
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    if not smooth:
        return table.take(((iv & (_SIDE - 1)) << 9) + (iu & (_SIDE - 1)))
    fu, fv = u - iu, v - iv
    left, right = iu & (_SIDE - 1), (iu + 1) & (_SIDE - 1)
    top, bottom = (iv & (_SIDE - 1)) << 9, ((iv + 1) & (_SIDE - 1)) << 9
    upper = table.take(top + left) * (1 - fu) + table.take(top + right) * fu
    lower = table.take(bottom + left) * (1 - fu) + table.take(bottom + right) * fu
    return upper * (1 - fv) + lower * fv


def _albedo(scene: Scene, style: Style) -> np.ndarray:
    """(2, K, 3): first and second colour of each polygon, with its object's own deviation."""
    card = scene.rows[:, 0].astype(np.intp)
    tint = scene.cards[card, 10:13]
    deviation = F(0.6) * tint[:, :1] + F(0.4) * tint
    out = np.empty((2, len(card), 3), dtype=np.float32)
    for i, column in enumerate((3, 4)):
        mat = scene.rows[:, column].astype(np.intp)
        out[i] = style.colours[mat] + style.spread[mat][:, None] * deviation
    return np.clip(out, 0.015, 1.0, out=out)


@dataclass(frozen=True, eq=False)
class Pattern:
    """The n pixels with a regular pattern, as flat indices: the share of the second colour, and the cell, of each."""

    where: np.ndarray  # (n,)
    amount: np.ndarray  # (n,) in [0, 1]
    column: np.ndarray  # (n,)
    row: np.ndarray  # (n,)


def _pattern(scene: Scene, buffers: Buffers, along: np.ndarray, up: np.ndarray) -> Pattern:
    """Windows, bars, bricks and joints, in surface coordinates (H, W) along and up."""
    grid = scene.rows[:, 5:9]
    has = grid[:, 2] > 0
    where = np.flatnonzero(has[buffers.polygon])
    k = buffers.polygon.ravel()[where]
    pu, pv, du, dv = (grid[:, i][k] for i in range(4))
    u, v = along.ravel()[where] / pu, up.ravel()[where] / pv
    depth = buffers.depth.ravel()[where]
    column, row = np.floor(u), np.floor(v)
    inside = ((u - column) < du) & (((v - row) < dv) | (dv >= 1))
    # periods below about two pixels are replaced by the pattern's mean
    pixel = depth / F(scene.camera.focal * buffers.polygon.shape[1])
    fine = np.clip(pu / pixel * F(0.5) - F(0.75), 0.0, 1.0)
    return Pattern(where, inside * fine + (1 - fine) * du * np.minimum(dv, 1), column, row)


def shade(scene: Scene, buffers: Buffers, style: Style) -> np.ndarray:
    """(H, W, 3) float32 radiance of the scene, before the camera."""
    k = buffers.polygon
    card = scene.cards[buffers.card]
    ground = card[:, 9] > 0
    depth = buffers.depth
    along = card[:, 6][k] * buffers.x + card[:, 7][k] * depth - card[:, 8][k]
    up = np.where(ground[k], depth, buffers.y)
    first, second = _albedo(scene, style)
    rgb = first.take(k, axis=0)
    pattern = _pattern(scene, buffers, along, up)
    flat, where = rgb.reshape(-1, 3), pattern.where
    flat[where] += (second[k.ravel()[where]] - flat[where]) * pattern.amount[:, None]
    texture = _texture(scene, style, k, along, up)
    rgb *= (1 + texture * np.clip(F(30.0) / depth, 0.25, 1.0))[..., None]
    if style["snow"] > 0:
        _snow(rgb, scene, buffers, style)
    light = _light(scene, buffers, style, ground)
    glow = _glow(scene, buffers, style, pattern)
    rgb *= light
    if glow is not None:
        rgb += glow
    _sky(rgb, scene.camera, buffers, style)
    if style["wet"] > 0:
        _wet(rgb, scene.camera, buffers, style, ground[k] & (buffers.label != _SKY))
    if style["fog"] > 0:
        _fog(rgb, scene.camera, buffers, style)
    return rgb


def _texture(scene: Scene, style: Style, k: np.ndarray, along: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(H, W) relative brightness change by surface texture."""
    amplitude = TEXTURE[scene.rows[:, 3].astype(np.intp)] * F(style["texture"])
    scale = F(14.0 * style["grain"])
    shift = k * 37  # neighbouring polygons have different textures
    return noise(along * scale + shift, up * scale + shift, smooth=k.size >= _SMOOTH) * amplitude[k]


def _snow(rgb: np.ndarray, scene: Scene, buffers: Buffers, style: Style) -> None:
    """Covers upward surfaces with snow, in place, in patches on materials that hold little snow."""
    k = buffers.polygon
    hold = SNOW[scene.rows[:, 3].astype(np.intp)]
    patches = noise(
        buffers.x * F(5) + F(4096),
        np.where(buffers.y < 0.05, buffers.depth, buffers.y) * F(5) + F(4096),
        smooth=k.size >= _SMOOTH,
    )
    cover = np.clip((hold[k] * F(2.0 * style["snow"]) + patches * F(0.5) - F(0.62)) * F(3.0), 0.0, 0.95)
    cover[hold[k] == 0] = 0
    white = np.array([0.86, 0.88, 0.92], dtype=np.float32)
    rgb += (white - rgb) * cover[..., None]


def _light(scene: Scene, buffers: Buffers, style: Style, ground: np.ndarray) -> np.ndarray:
    """(H, W, 3) light that falls on each pixel's surface."""
    k, card = buffers.polygon, scene.cards[buffers.card]
    a, e = style["azimuth"], style["elevation"]
    sun = np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)], dtype=np.float32)
    facing = card[:, 3:6] @ sun
    facing = np.where(ground, facing, np.clip(F(0.5) * facing + F(0.4), 0.0, 1.0))
    warm = style["warmth"]
    direct = F(style["sun"]) * np.array([1 + warm, 1.0, 1 - 1.6 * warm], dtype=np.float32)
    sky = F(style["ambient"]) * np.array([1 - 0.3 * warm, 1.0, 1 + 0.5 * warm], dtype=np.float32)
    strength = style["sun"] / (style["sun"] + style["ambient"] + 1e-6)
    shift = (float(-sun[0] / sun[1]), float(-sun[2] / sun[1]), min(1.0, 1.5 * strength) if style["sun"] > 0.05 else 0.0)
    dark = shadows(scene, k.shape, shift)
    on_ground = ground[k]
    lit = np.where(on_ground, F(1) - dark * F(1 / 255), F(1))
    base = np.where(on_ground, F(1) - dark * F(0.35 / 255), np.clip(F(0.7) + buffers.y * F(0.25), 0.7, 1.0))
    per_polygon = facing[k] * lit
    light = base[..., None] * sky + per_polygon[..., None] * direct
    if style["headlight"] > 0 or style["lamps"] > 0:
        _artificial(light, scene, buffers, style)
    return light


def _artificial(light: np.ndarray, scene: Scene, buffers: Buffers, style: Style) -> None:
    """Adds the ego vehicle's headlights and the street lamps, in place."""
    depth, x = buffers.depth, buffers.x
    if style["headlight"] > 0:
        spread = x / (F(1.6) + F(0.28) * depth)
        cone = (
            np.exp(-spread * spread) / (1 + (depth * F(1 / 16)) ** 2) * np.clip(F(1.5) - F(0.35) * buffers.y, 0.12, 1.0)
        )
        light += (cone * F(style["headlight"]))[..., None] * np.array([1.0, 0.97, 0.88], dtype=np.float32)
    if style["lamps"] > 0:
        total = np.zeros_like(depth)
        for lx, ly, lz in scene.lamps[np.argsort(scene.lamps[:, 2], kind="stable")][:6].tolist():
            total += 1 / (
                F(1)
                + ((x - F(lx)) ** 2 + (depth - F(lz)) ** 2 + F(0.6) * (buffers.y - F(ly) * F(0.4)) ** 2) * F(1 / 14)
            )
        light += (total * F(0.55 * style["lamps"]))[..., None] * np.array([1.0, 0.82, 0.55], dtype=np.float32)


def _glow(scene: Scene, buffers: Buffers, style: Style, pattern: Pattern) -> np.ndarray | None:
    """(H, W, 3) light that surfaces emit themselves: lenses and lamps always, windows if lit."""
    k = buffers.polygon
    mat = scene.rows[:, 3].astype(np.intp)
    strength = GLOW[mat] * F(0.12 + 0.8 * style["lamps"])
    strength[mat == _LAMP] *= F(1.0 if style["lamps"] > 0 else 0.0)
    if not strength.any() and style["lit"] <= 0:
        return None
    table = strength[:, None] * style.colours[mat].astype(np.float32)
    glow = table.take(k, axis=0)
    if style["lit"] > 0 and len(pattern.where):
        kk = k.ravel()[pattern.where]
        cell = pattern.column * 12.9898 + pattern.row * 78.233 + kk * 3.7
        hashed = np.abs(cell.astype(np.int64) * 2654435761 >> 7) % 1000
        on = (hashed < 1000 * style["lit"]) & (scene.rows[kk, 4] == _WINDOW)
        level = (pattern.amount * on * (0.35 + 0.0005 * hashed)).astype(np.float32)
        glow.reshape(-1, 3)[pattern.where] += level[:, None] * np.array([1.0, 0.8, 0.5], dtype=np.float32)
    return glow


def _sky_colours(style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Colour at the zenith and at the horizon."""
    base = style.colours[_SKY].astype(np.float32)
    level = F(min(1.0, style["ambient"] * 1.15 + 0.45 * style["sun"]))
    pale = base + (F(base.max()) * F(1.02) - base) * F(0.6)
    return base * level, np.minimum(pale * level * F(1.06), 1.0)


def _sky(rgb: np.ndarray, camera: Camera, buffers: Buffers, style: Style) -> None:
    """Paints the sky pixels: a gradient with clouds, in place."""
    h, w = buffers.label.shape
    where = np.flatnonzero(buffers.label == _SKY)
    if not len(where):
        return
    xn, yn = rays(camera, (h, w))
    rise = np.broadcast_to(-yn, (h, w)).ravel()[where]
    across = np.broadcast_to(xn, (h, w)).ravel()[where]
    zenith, horizon = _sky_colours(style)
    t = np.sqrt(np.clip(rise * F(1.6), 0.0, 1.0))
    colour = horizon + (zenith - horizon) * t[:, None]
    height = np.maximum(rise, 0.0) + F(0.12)
    u, v = across / height * F(26) + F(8192 + style.noise_key % 512), F(9) / height + F(style.noise_key % 307)
    puffs = noise(u, v, smooth=h * w >= _SMOOTH)
    cover = np.clip((puffs + F(2.2 * style["clouds"] - 1.15)) * F(2.0), 0.0, 0.9)
    level = F(min(1.0, style["ambient"] + 0.6 * style["sun"]))
    cloud = np.array([0.93, 0.93, 0.94], dtype=np.float32) * level * (F(0.85) + F(0.15) * puffs[:, None])
    rgb.reshape(-1, 3)[where] = colour + (cloud - colour) * cover[:, None]


def _wet(rgb: np.ndarray, camera: Camera, buffers: Buffers, style: Style, ground: np.ndarray) -> None:
    """Adds reflections on the ground, in place: rows are mirrored at the horizon and stretched."""
    h = len(rgb)
    rows = np.arange(h)
    horizon = camera.horizon * h
    mirrored = np.clip(np.rint(horizon - 0.75 * (rows - horizon)), 0, h - 1).astype(np.intp)
    puddle = noise(buffers.x * F(2.2) + F(4096), buffers.depth * F(0.9) + F(4096), smooth=ground.size >= _SMOOTH)
    strength = np.where(ground, np.clip(F(0.55) + F(0.8) * puddle, 0.1, 1.0) * F(style["wet"]), F(0))
    reflected = rgb[mirrored]
    rgb *= (1 - F(0.45) * strength)[..., None]
    rgb += reflected * (F(0.75) * strength)[..., None]


def _fog(rgb: np.ndarray, camera: Camera, buffers: Buffers, style: Style) -> None:
    """Blends towards the fog's colour with distance; thinner towards the zenith, in place."""
    clear = np.exp(buffers.depth * F(-style["fog"]))
    sky = buffers.label == _SKY
    _, yn = rays(camera, buffers.label.shape)
    clear = np.where(sky, np.clip(-yn * F(0.9) - F(12.0 * style["fog"]) + F(0.25), 0.0, 0.85), clear)
    warm = style["warmth"]
    colour = F(style["fog_light"]) * np.array([1 + 0.4 * warm, 1.0, 1 - 0.4 * warm], dtype=np.float32)
    rgb *= clear[..., None]
    rgb += (1 - clear)[..., None] * colour
