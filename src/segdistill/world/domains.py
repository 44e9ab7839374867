"""The domains of the procedural world. To add one, add an entry to `DOMAINS`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from segdistill.world import city, palettes, style
from segdistill.world.city import City
from segdistill.world.dice import Dice
from segdistill.world.style import Look

Role = Literal["source", "more", "unseen", "validation", "proxy", "broad"]


@dataclass(frozen=True)
class Domain:
    """One domain: street layout, appearance, role. ``key`` must not change: images depend on it.

    ``source`` is the benchmark's own training domain; those of role ``more`` are further sources beside it.
    """

    name: str
    key: int
    role: Role
    city: City
    look: Look
    labelled: bool = True


INLAND_CITY = City(
    lane=(2.9, 3.4), lanes=(1.6, 3.4), sidewalk=(2.0, 4.0), verge=(-1.0, 0.3), setback=(0.0, 2.5), height=(8.0, 18.0),
    length=(10.0, 20.0), density=(0.7, 0.95), gable=0.5, trees=(1, 6), bushes=(0, 2), hills=0.3, barrier=(0.2, 0.25),
    poles=(2, 5), lights=(0, 2), signs=(1, 5), things=(6.0, 1.0, 6.0, 0.35, 0.3, 0.25, 0.5, 1.4), parked=0.55,
    camera=(1.15, 1.4), focal=(0.85, 1.05), horizon=(0.38, 0.46), hood=0.25,
)  # fmt: skip
ALPINE_CITY = City(
    lane=(3.0, 3.5), lanes=(1.6, 3.4), sidewalk=(1.6, 3.2), verge=(-1.5, 2.5), setback=(0.5, 6.0), height=(7.0, 16.0),
    length=(9.0, 18.0), density=(0.45, 0.8), gable=0.6, trees=(3, 9), bushes=(1, 4), hills=0.8, barrier=(0.35, 0.35),
    poles=(2, 6), lights=(0, 2), signs=(1, 4), things=(4.0, 0.7, 4.5, 0.4, 0.4, 0.35, 0.4, 0.9), parked=0.3,
    camera=(1.25, 1.7), focal=(0.75, 1.0), horizon=(0.38, 0.5), kinds=("broad", "conifer", "conifer"), hood=0.15,
)  # fmt: skip
COAST_CITY = City(
    lane=(3.4, 4.0), lanes=(2.6, 4.4), sidewalk=(3.0, 5.5), verge=(-1.0, 1.5), setback=(0.5, 6.0), height=(5.0, 15.0),
    length=(10.0, 26.0), density=(0.55, 0.85), gable=0.15, trees=(2, 7), bushes=(0, 4), hills=0.4, barrier=(0.35, 0.35),
    poles=(2, 6), lights=(0, 3), signs=(1, 5), things=(5.0, 0.8, 5.0, 0.6, 0.5, 0.4, 0.8, 0.9), parked=0.35,
    camera=(1.4, 1.9), focal=(0.7, 0.9), horizon=(0.42, 0.52), kinds=("palm", "palm", "broad"),
)  # fmt: skip
HARBOUR_CITY = City(
    lane=(3.0, 3.6), lanes=(1.6, 3.4), sidewalk=(2.0, 4.5), setback=(0.0, 4.0), height=(6.0, 20.0), density=(0.6, 0.9),
    gable=0.4, trees=(1, 6), barrier=(0.35, 0.3), things=(5.0, 0.8, 5.0, 0.6, 0.4, 0.3, 0.6, 0.9),
    camera=(1.2, 1.6), focal=(0.75, 1.0), horizon=(0.4, 0.48), hood=0.1,
)  # fmt: skip
ARCADE_CITY = City(
    lane=(3.2, 3.8), lanes=(2.0, 4.0), sidewalk=(2.5, 4.5), verge=(-1.0, 1.0), setback=(0.0, 4.0), height=(10.0, 26.0),
    length=(12.0, 26.0), density=(0.65, 0.95), gable=0.05, trees=(1, 5), bushes=(0, 3), hills=0.1, barrier=(0.3, 0.3),
    poles=(2, 6), lights=(0, 3), signs=(1, 5), things=(6.0, 0.9, 5.0, 0.7, 0.6, 0.5, 0.7, 1.0), parked=0.45,
    camera=(1.5, 2.3), focal=(0.65, 0.9), horizon=(0.42, 0.54), kinds=("broad", "conifer"),
)  # fmt: skip
STUDIO_CITY = City(
    lane=(2.9, 3.5), lanes=(1.4, 3.2), sidewalk=(1.8, 4.2), verge=(-1.0, 2.0), setback=(1.0, 7.0), height=(5.0, 12.0),
    length=(8.0, 18.0), density=(0.5, 0.8), gable=0.7, trees=(3, 8), bushes=(1, 4), hills=0.5, barrier=(0.3, 0.35),
    poles=(2, 6), lights=(0, 2), signs=(1, 5), things=(5.0, 0.9, 5.5, 0.5, 0.5, 0.4, 0.6, 1.1), parked=0.5,
    camera=(1.2, 1.6), focal=(0.8, 1.05), horizon=(0.4, 0.5), hood=0.1,
)  # fmt: skip
ANY_CITY = City(
    lane=(2.7, 4.2), lanes=(1.0, 5.0), sidewalk=(1.2, 6.0), verge=(-3.0, 3.0), setback=(0.0, 9.0), height=(4.0, 28.0),
    length=(6.0, 28.0), density=(0.2, 1.0), gable=0.4, trees=(0, 10), bushes=(0, 5), hills=0.5, barrier=(0.35, 0.35),
    poles=(1, 7), lights=(0, 4), signs=(0, 6), things=(5.5, 1.1, 5.5, 0.8, 0.7, 0.5, 1.0, 1.3), parked=0.4,
    curve=(-0.003, 0.003), camera=(1.0, 2.6), focal=(0.55, 1.3), horizon=(0.32, 0.6), centre=(0.3, 0.7),
    roll=(-0.05, 0.05), kinds=("broad", "conifer", "palm", "broad"), crossing=0.2,
)  # fmt: skip

_COAST = Look(
    palettes.COAST, sun=(0.55, 0.7), ambient=(0.5, 0.6), texture=(0.05, 0.12), saturation=(1.05, 1.2), noise=(0.0, 0.0),
)  # fmt: skip
_ARCADE = Look(
    palettes.ARCADE, texture=(0.0, 0.05), sun=(0.3, 0.5), elevation=(0.25, 0.5), ambient=(0.6, 0.75), warmth=(0.1, 0.2),
    clouds=(0.0, 0.2), saturation=(1.1, 1.3), contrast=(1.0, 1.15), noise=(0.0, 0.0),
)  # fmt: skip
_STUDIO = Look(
    palettes.STUDIO, jitter=(0.01, 0.03), texture=(0.15, 0.35), grain=(0.6, 1.6), sun=(0.2, 0.5), ambient=(0.65, 0.85),
    clouds=(0.3, 0.8), gamma=(0.95, 1.1), saturation=(0.85, 1.05), vignette=(0.0, 0.2), blur=(0.0, 1.0),
    noise=(0.0, 0.01),
)  # fmt: skip
_CLEAR = Look(
    palettes.INLAND, jitter=(0.02, 0.05), texture=(0.25, 0.5), grain=(0.5, 2.0), sun=(0.05, 0.45), elevation=(0.3, 0.9),
    ambient=(0.75, 1.05), warmth=(-0.05, 0.05), clouds=(0.3, 0.9), gamma=(0.9, 1.25), contrast=(0.85, 1.0),
    saturation=(0.6, 0.95), cast=(0.0, 0.06), vignette=(0.1, 0.35), blur=(0.5, 2.5), noise=(0.01, 0.03),
)  # fmt: skip
_NIGHT = Look(
    palettes.ALPINE, jitter=(0.02, 0.05), texture=(0.25, 0.5), grain=(0.5, 2.0), sun=(0.0, 0.0), ambient=(0.07, 0.16),
    warmth=(-0.25, -0.05), clouds=(0.0, 0.3), headlight=(0.5, 1.0), lamps=(0.6, 1.2), lit=(0.15, 0.4),
    exposure=(1.1, 1.5), gamma=(0.75, 0.95), contrast=(0.95, 1.1), saturation=(0.6, 0.95), cast=(0.02, 0.12),
    vignette=(0.1, 0.4), blur=(0.5, 3.0), noise=(0.015, 0.04),
)  # fmt: skip
_FOG = Look(
    palettes.ALPINE, jitter=(0.02, 0.05), texture=(0.25, 0.5), grain=(0.5, 2.0), sun=(0.0, 0.1), ambient=(0.75, 1.0),
    warmth=(-0.06, 0.06), clouds=(0.6, 1.0), fog=(0.024, 0.06), fog_light=(0.6, 0.85), gamma=(0.9, 1.15),
    contrast=(0.75, 0.95), saturation=(0.5, 0.85), cast=(0.0, 0.06), vignette=(0.1, 0.3), blur=(0.5, 3.0),
    noise=(0.01, 0.025),
)  # fmt: skip
_SNOW = Look(
    palettes.ALPINE, jitter=(0.02, 0.05), texture=(0.25, 0.5), grain=(0.5, 2.0), sun=(0.0, 0.2), ambient=(0.8, 1.05),
    warmth=(-0.1, 0.0), clouds=(0.6, 1.0), fog=(0.001, 0.008), fog_light=(0.75, 0.9), snow=(0.6, 0.95),
    flakes=(0.3, 1.5), gamma=(0.9, 1.2), contrast=(0.8, 1.0), saturation=(0.5, 0.85), cast=(0.0, 0.06),
    vignette=(0.05, 0.3), blur=(0.5, 2.5), noise=(0.01, 0.025),
)  # fmt: skip
_RAIN = Look(
    palettes.ALPINE, jitter=(0.02, 0.05), texture=(0.25, 0.5), grain=(0.5, 2.0), sun=(0.0, 0.05), ambient=(0.62, 0.88),
    warmth=(-0.12, 0.0), clouds=(0.7, 1.0), fog=(0.002, 0.012), fog_light=(0.45, 0.62), streaks=(0.5, 1.5),
    wet=(0.5, 0.95), lamps=(0.0, 0.3), lit=(0.0, 0.15), gamma=(0.9, 1.2), contrast=(0.72, 0.92), saturation=(0.5, 0.85),
    cast=(0.0, 0.08), vignette=(0.1, 0.35), blur=(1.0, 4.0), noise=(0.01, 0.03),
)  # fmt: skip
_DUSK = Look(
    palettes.HARBOUR, jitter=(0.02, 0.05), texture=(0.2, 0.45), grain=(0.5, 2.0), sun=(0.05, 0.25),
    elevation=(0.12, 0.35), ambient=(0.36, 0.5), warmth=(0.1, 0.3), clouds=(0.1, 0.7), lamps=(0.1, 0.4),
    lit=(0.02, 0.15), exposure=(1.0, 1.3), saturation=(0.7, 1.05), cast=(0.02, 0.1), vignette=(0.1, 0.3),
    blur=(0.5, 2.5), noise=(0.01, 0.03),
)  # fmt: skip
_HAZE = Look(
    palettes.HARBOUR, jitter=(0.02, 0.05), texture=(0.2, 0.45), grain=(0.5, 2.0), sun=(0.1, 0.3), ambient=(0.75, 0.95),
    warmth=(0.0, 0.15), fog=(0.008, 0.016), fog_light=(0.7, 0.85), contrast=(0.8, 1.0), saturation=(0.6, 0.95),
    vignette=(0.05, 0.3), blur=(0.5, 2.0), noise=(0.005, 0.02),
)  # fmt: skip
_DRIZZLE = Look(
    palettes.HARBOUR, jitter=(0.02, 0.05), texture=(0.2, 0.45), grain=(0.5, 2.0), sun=(0.0, 0.15), ambient=(0.7, 0.9),
    warmth=(-0.08, 0.02), clouds=(0.6, 1.0), fog=(0.0, 0.006), fog_light=(0.55, 0.7), streaks=(0.1, 0.4),
    wet=(0.15, 0.4), contrast=(0.8, 0.98), saturation=(0.6, 0.9), vignette=(0.05, 0.3), blur=(0.5, 2.5),
    noise=(0.01, 0.025),
)  # fmt: skip
# Everything except what characterises the unseen domains: no snow, rain or headlights, haze well short of fog, darkness
# well short of night; every palette is random.
_ANY = Look(
    None, jitter=(0.0, 0.05), spread=(0.6, 1.4), texture=(0.0, 0.8), grain=(0.3, 3.0), sun=(0.0, 0.8),
    elevation=(0.2, 1.3), ambient=(0.45, 1.15), warmth=(-0.25, 0.3), clouds=(0.0, 1.0), fog=(0.0, 0.014),
    fog_light=(0.35, 0.95), lit=(0.0, 0.1), exposure=(0.75, 1.35), gamma=(0.6, 1.5), contrast=(0.6, 1.25),
    saturation=(0.0, 1.5), cast=(0.0, 0.25), vignette=(0.0, 0.5), blur=(0.0, 4.0), noise=(0.0, 0.05),
)  # fmt: skip

DOMAINS: dict[str, Domain] = {
    d.name: d
    for d in (
        Domain("game", 1, "source", COAST_CITY, _COAST),
        Domain("clear", 2, "unseen", INLAND_CITY, _CLEAR),
        Domain("night", 3, "unseen", ALPINE_CITY, _NIGHT),
        Domain("fog", 4, "unseen", ALPINE_CITY, _FOG),
        Domain("snow", 5, "unseen", ALPINE_CITY, _SNOW),
        Domain("rain", 6, "unseen", ALPINE_CITY, _RAIN),
        Domain("dusk", 7, "validation", HARBOUR_CITY, _DUSK),
        Domain("haze", 8, "validation", HARBOUR_CITY, _HAZE),
        Domain("drizzle", 9, "validation", HARBOUR_CITY, _DRIZZLE),
        Domain("proxy", 10, "proxy", ANY_CITY, _ANY, labelled=False),
        Domain("broad", 11, "broad", ANY_CITY, _ANY),
        Domain("arcade", 12, "more", ARCADE_CITY, _ARCADE),
        Domain("studio", 13, "more", STUDIO_CITY, _STUDIO),
    )
}


def redrawn(domain: Domain, redraw: int) -> Domain:
    """``domain`` itself for 0; else a variant whose parameters are drawn within the domain's own spans."""
    if redraw == 0:
        return domain
    dice = Dice(domain.key, 7, redraw)
    return replace(domain, city=city.redrawn(domain.city, dice), look=style.redrawn(domain.look, dice))
