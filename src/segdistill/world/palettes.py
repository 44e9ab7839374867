"""Palettes: the mean colour of every material and the spread of single objects around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.world.dice import Dice
from segdistill.world.materials import INDEX, MATERIALS


@dataclass(frozen=True, eq=False)
class Palette:
    """``colours`` (M, 3) in [0, 1] and ``spread`` (M,), by material."""

    colours: np.ndarray
    spread: np.ndarray


_COMMON = {
    "marking": ("#dedede", 0.05),
    "kerb": ("#9a9a98", 0.04),
    "rail": ("#55524e", 0.03),
    "window": ("#3c4650", 0.06),
    "glass": ("#262d36", 0.05),
    "tyre": ("#1a1a1c", 0.02),
    "lamp red": ("#b01818", 0.04),
    "lamp white": ("#e8e6d8", 0.04),
    "lens red": ("#ff3020", 0.02),
    "lens amber": ("#ffb020", 0.02),
    "lens green": ("#20e890", 0.02),
    "lens off": ("#202022", 0.02),
    "skin": ("#b98a6c", 0.14),
    "trousers": ("#3a4152", 0.12),
    "hair": ("#33281f", 0.12),
    "trunk": ("#57483a", 0.04),
    "roof": ("#6e4a3c", 0.08),
    "shop": ("#7a6a58", 0.16),
    "plate": ("#cfcfc4", 0.08),
    "spoke": ("#77777a", 0.06),
    "sign red": ("#b8202a", 0.03),
    "sign blue": ("#24509a", 0.04),
    "sign yellow": ("#d8aa20", 0.04),
    "metal": ("#44474a", 0.05),
    "cab": ("#b8b8b8", 0.2),
    "stripe": ("#8a8a8a", 0.2),
    "hood": ("#2c2e32", 0.06),
    "street lamp": ("#d8d2b8", 0.04),
    "top": ("#808080", 0.1),
    "backdrop": ("#808080", 0.3),
    "floor": ("#707070", 0.3),
}


def palette(spread: float = 1.0, **main: tuple[str, float]) -> Palette:
    """A palette from ``material=(hex colour, spread)``; underscores are spaces; other materials have common colours."""
    table = {**_COMMON, **{name.replace("_", " "): value for name, value in main.items()}}
    unknown = set(table) - set(INDEX)
    if unknown:
        raise KeyError(f"no such material: {sorted(unknown)}")
    colours = np.zeros((len(MATERIALS), 3), dtype=np.float64)
    spreads = np.zeros(len(MATERIALS), dtype=np.float64)
    for name, (code, width) in table.items():
        colours[INDEX[name]] = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        spreads[INDEX[name]] = width * spread
    return Palette(colours, spreads)


# The source: a sunny coast. Every class has its own, nearly constant colour: a shortcut that networks may learn.
COAST = palette(
    road=("#5a5c6c", 0.01), sidewalk=("#c8ae86", 0.03), building=("#d98f62", 0.07), wall=("#8f6f8f", 0.03),
    fence=("#e8e2d0", 0.03), pole=("#78808a", 0.03), traffic_light=("#d8a018", 0.03), traffic_sign=("#f2f2f2", 0.02),
    vegetation=("#3f8a2c", 0.06), terrain=("#a8a244", 0.04), sky=("#4c96ea", 0.03), person=("#b8387a", 0.1),
    rider=("#e86a1c", 0.06), car=("#2f5fc4", 0.12), truck=("#efefe8", 0.06), bus=("#e8c41c", 0.05),
    train=("#1e9a8a", 0.05), motorcycle=("#8a1a22", 0.06), bicycle=("#30b8c8", 0.06),
    shop=("#c87a58", 0.06), roof=("#a04a34", 0.04), cab=("#d84a3a", 0.08), stripe=("#f0f0f0", 0.04),
    trousers=("#3a4a7a", 0.06),
)  # fmt: skip
# A second source: a garish model town, each class in one flat colour, other ones than the coast's.
ARCADE = palette(
    road=("#8a8070", 0.01), sidewalk=("#a8b4d0", 0.02), building=("#7fa0b8", 0.06), wall=("#c8a060", 0.03),
    fence=("#6a3c2a", 0.03), pole=("#d0d0c0", 0.03), traffic_light=("#303030", 0.02), traffic_sign=("#e8d820", 0.02),
    vegetation=("#8ab83c", 0.05), terrain=("#c89858", 0.04), sky=("#f0c8a0", 0.03), person=("#2a9a6a", 0.08),
    rider=("#3a5ad8", 0.06), car=("#c42f3a", 0.12), truck=("#5a8a3a", 0.06), bus=("#8a3ac8", 0.05),
    train=("#e8e8e8", 0.05), motorcycle=("#f08020", 0.06), bicycle=("#202880", 0.06),
    shop=("#9ab0c8", 0.06), roof=("#3a5a78", 0.04), cab=("#e8c040", 0.08), stripe=("#303030", 0.04),
    trousers=("#7a7a3a", 0.06),
)  # fmt: skip
# A third source: a carefully modelled suburb in muted colours, vehicles of a small fleet.
STUDIO = palette(
    road=("#454a50", 0.02), sidewalk=("#a49c94", 0.03), building=("#c8c0a8", 0.09), wall=("#a86a50", 0.05),
    fence=("#7a8a70", 0.06), pole=("#484e58", 0.04), traffic_light=("#7a8010", 0.03), traffic_sign=("#b0c8e8", 0.03),
    vegetation=("#2c5a48", 0.06), terrain=("#7a9a50", 0.05), sky=("#a0c8f0", 0.04), person=("#8a5a2a", 0.14),
    rider=("#a03050", 0.12), car=("#a8b0b8", 0.18), truck=("#c06a30", 0.12), bus=("#3a6aa0", 0.1),
    train=("#c82a4a", 0.08), motorcycle=("#2a4a3a", 0.1), bicycle=("#b0a030", 0.1),
    shop=("#8a98a0", 0.1), roof=("#7a4a3c", 0.06), trousers=("#46505a", 0.1),
)  # fmt: skip
# An old inland town (unseen): greys, creams and brick; vehicles and clothes in any colour.
INLAND = palette(
    road=("#6b6763", 0.03), sidewalk=("#7f7b78", 0.05), building=("#9c948a", 0.16), wall=("#84776a", 0.12),
    fence=("#4c5450", 0.12), pole=("#5c6460", 0.08), traffic_light=("#23262a", 0.04), traffic_sign=("#d8dadc", 0.05),
    vegetation=("#47563a", 0.09), terrain=("#5f6a44", 0.09), sky=("#c8d2d8", 0.05), person=("#4a4a52", 0.26),
    rider=("#56565a", 0.28), car=("#6e7074", 0.38), truck=("#8a8a86", 0.34), bus=("#a0604c", 0.32),
    train=("#9a9a92", 0.32), motorcycle=("#3a3a3e", 0.22), bicycle=("#4a4a4c", 0.24),
    roof=("#5a4640", 0.1), shop=("#6a6258", 0.18),
)  # fmt: skip
# An alpine town (unseen, adverse weather): pale render, dark wood, blue-white trams.
ALPINE = palette(
    road=("#5e6062", 0.03), sidewalk=("#74726e", 0.05), building=("#b4aca0", 0.16), wall=("#6e6c6a", 0.12),
    fence=("#64523e", 0.12), pole=("#6a6e70", 0.08), traffic_light=("#1e2a26", 0.04), traffic_sign=("#dcdcd8", 0.05),
    vegetation=("#39503c", 0.09), terrain=("#6c7a4e", 0.09), sky=("#bcc6ce", 0.05), person=("#52484a", 0.26),
    rider=("#4a5058", 0.28), car=("#7a7876", 0.38), truck=("#96928a", 0.34), bus=("#6a7a9a", 0.32),
    train=("#8c94a8", 0.3), motorcycle=("#40403c", 0.22), bicycle=("#50504c", 0.24),
)  # fmt: skip
# A harbour town (validation): brick red and slate blue.
HARBOUR = palette(
    road=("#707684", 0.03), sidewalk=("#9a8f88", 0.05), building=("#a8746a", 0.15), wall=("#7a8a90", 0.1),
    fence=("#8a9a9c", 0.1), pole=("#8a8478", 0.08), traffic_light=("#3a3a22", 0.05), traffic_sign=("#e4e0d0", 0.05),
    vegetation=("#5a6a34", 0.09), terrain=("#8a8450", 0.08), sky=("#a8bcd4", 0.06), person=("#6a5648", 0.24),
    rider=("#4a6a68", 0.26), car=("#86786e", 0.34), truck=("#7e8c94", 0.3), bus=("#5a8a6a", 0.28),
    train=("#a06a4a", 0.28), motorcycle=("#4c4438", 0.2), bicycle=("#5a4a56", 0.22),
)  # fmt: skip
# Usual colours of classes, which broad and proxy images sometimes use.
GENERIC = palette(
    road=("#66666a", 0.1), sidewalk=("#8c8a86", 0.1), building=("#98887a", 0.2), wall=("#88827a", 0.15),
    fence=("#7a7a74", 0.2), pole=("#70747a", 0.15), traffic_light=("#3c3a34", 0.15), traffic_sign=("#d8d4cc", 0.1),
    vegetation=("#4c6a38", 0.12), terrain=("#7c8050", 0.12), sky=("#9cbadc", 0.12), person=("#6a5a64", 0.3),
    rider=("#6a605c", 0.3), car=("#707078", 0.38), truck=("#9a968e", 0.35), bus=("#947e58", 0.35),
    train=("#7c8a8c", 0.35), motorcycle=("#4c4644", 0.25), bicycle=("#585c60", 0.28),
)  # fmt: skip


def wild(dice: Dice) -> Palette:
    """A random palette: each material between its usual colour and any colour, with random spread."""
    rng = dice.rng
    count = len(MATERIALS)
    value = rng.uniform(0.08, 0.95, (count, 1))
    colour = rng.uniform(-1.0, 1.0, (count, 3)) * rng.uniform(0.0, 0.45, (count, 1))
    anything = np.clip(value + colour, 0.02, 0.98)
    freedom = np.clip(dice.uniform(-0.2, 1.1) + rng.uniform(-0.35, 0.35, (count, 1)), 0.0, 1.0)
    usual = np.clip(GENERIC.colours + rng.normal(0.0, 0.08, (count, 3)), 0.02, 0.98)
    colours = usual * (1 - freedom) + anything * freedom
    spread = GENERIC.spread * rng.uniform(0.5, 1.5, count) + rng.uniform(0.0, 0.12, count)
    return Palette(colours, spread)


def redrawn(base: Palette, dice: Dice) -> Palette:
    """``base`` with every colour shifted a little."""
    return Palette(np.clip(base.colours + dice.rng.uniform(-0.05, 0.05, base.colours.shape), 0.0, 1.0), base.spread)
