"""Materials of surfaces. The first nineteen are the main materials of the classes, in class order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.world.classes import CLASSES


@dataclass(frozen=True)
class Material:
    """``texture``: relative amplitude of its texture; ``snow``: how readily snow lies on it; ``glow``: own light."""

    name: str
    texture: float = 0.3
    snow: float = 0.0
    glow: float = 0.0


_MAIN = {
    "road": (0.45, 0.72, 0.0),
    "sidewalk": (0.45, 0.95, 0.0),
    "building": (0.4, 0.0, 0.0),
    "wall": (0.8, 0.1, 0.0),
    "fence": (0.3, 0.12, 0.0),
    "vegetation": (1.8, 0.42, 0.0),
    "terrain": (1.1, 1.0, 0.0),
    "sky": (0.0, 0.0, 0.0),
}
_PARTS = (
    Material("marking", 0.2, 0.7),
    Material("kerb", 0.4, 0.75),
    Material("rail", 0.1, 0.35),
    Material("window", 0.1),
    Material("glass", 0.1),
    Material("tyre", 0.2),
    Material("lamp red", 0.0, glow=0.8),
    Material("lamp white", 0.0, glow=1.0),
    Material("lens red", 0.0, glow=1.0),
    Material("lens amber", 0.0, glow=1.0),
    Material("lens green", 0.0, glow=1.0),
    Material("lens off", 0.0),
    Material("skin", 0.1),
    Material("trousers", 0.3),
    Material("hair", 0.2),
    Material("trunk", 0.9),
    Material("roof", 0.5, 1.0),
    Material("shop", 0.4),
    Material("plate", 0.1),
    Material("spoke", 0.6),
    Material("sign red", 0.1),
    Material("sign blue", 0.1),
    Material("sign yellow", 0.1),
    Material("metal", 0.2),
    Material("cab", 0.2),
    Material("stripe", 0.2),
    Material("hood", 0.2),
    Material("street lamp", 0.0, glow=1.0),
    Material("top", 0.2, 1.0),
    Material("backdrop", 0.8),
    Material("floor", 0.8),
)
MATERIALS = (*(Material(name, *_MAIN.get(name, (0.3, 0.0, 0.0))) for name in CLASSES), *_PARTS)
INDEX = {material.name: i for i, material in enumerate(MATERIALS)}
TEXTURE = np.array([m.texture for m in MATERIALS], dtype=np.float32)
SNOW = np.array([m.snow for m in MATERIALS], dtype=np.float32)
GLOW = np.array([m.glow for m in MATERIALS], dtype=np.float32)
