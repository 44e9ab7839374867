"""Street scenes: `street` draws a random street with the statistics of a `City`."""

from __future__ import annotations

from segdistill.world.canvas import FAR, Camera, Canvas, Card, Ends, Ground, Scene, freeze
from segdistill.world.city import City, Street
from segdistill.world.dice import Dice, Number
from segdistill.world.traffic import furniture, traffic

BUILDING, WALL, FENCE, VEGETATION, TERRAIN, SKY = 2, 3, 4, 8, 9, 10
SKY_LAYER, FAR_LAYER, GROUND_LAYER, PAINT_LAYER, BUILT_LAYER, EDGE_LAYER, OBJECT_LAYER, HOOD_LAYER = range(8)


def street(city: City, dice: Dice) -> Scene:
    """One street of ``city``."""
    camera = Camera(*(dice.between(s) for s in (city.camera, city.focal, city.centre, city.horizon, city.roll)))
    canvas = Canvas(camera)
    lanes = max(1, round(dice.between(city.lanes)))
    lane = dice.between(city.lane)
    half = lanes * lane / 2
    own = half - lane * 0.5 - (lane if lanes >= 4 and dice.flip(0.5) else 0.0)
    plan = Street(
        city=city,
        lane=lane,
        half=half,
        verge=max(0.0, dice.between(city.verge)),
        walk=dice.between(city.sidewalk),
        own=own + dice.uniform(-0.4, 0.4),
        curve=dice.between(city.curve),
        tram=dice.flip(min(0.9, 1.5 * city.things[5])),
    )
    backdrop(canvas, dice, city.hills)
    _ground(canvas, dice, plan, lanes)
    for side in (-1, 1):
        _buildings(canvas, dice, plan, side)
        _barriers(canvas, dice, plan, side)
    canvas.layer(OBJECT_LAYER)
    furniture(canvas, dice, plan, OBJECT_LAYER)
    traffic(canvas, dice, plan, OBJECT_LAYER)
    if dice.flip(city.hood):
        hood(canvas, dice)
    return freeze(canvas)


def backdrop(canvas: Canvas, dice: Dice, hills: Number) -> None:
    """The sky, and sometimes a distant line of trees or roofs."""
    canvas.layer(SKY_LAYER)
    sky = Card(canvas, 0.0, FAR, SKY)
    sky.rect(-4 * FAR, -4 * FAR, 4 * FAR, 6 * FAR, "sky")
    canvas.layer(FAR_LAYER)
    z = 260.0
    if dice.flip(hills):
        line = Card(canvas, 0.0, z, VEGETATION, tint=dice.tint())
        tops = [(-320.0 + 40.0 * i, dice.uniform(6.0, 22.0)) for i in range(17)]
        line.poly([(-320.0, 0.0), *tops, (320.0, 0.0)], "vegetation")
    x = -200.0
    while x < 200.0:
        width = dice.uniform(14.0, 40.0)
        if dice.flip(0.35):
            block = Card(canvas, x, z - 10, BUILDING, tint=dice.tint())
            block.rect(0, 0, width, dice.uniform(8.0, 34.0), "building", second="window", grid=(4.0, 3.5, 0.5, 0.5))
        x += width


def _ribbon(plan: Street, inner: Number, outer: Number) -> list[tuple[Number, Number]]:
    """The (x, z) outline of the strip between two lateral positions."""
    stops = (1.0, 6.0, 12.0, 20.0, 32.0, 50.0, 80.0, 130.0, 220.0)
    return [(plan.x(inner, z), z) for z in stops] + [(plan.x(outer, z), z) for z in reversed(stops)]


def _ground(canvas: Canvas, dice: Dice, plan: Street, lanes: int) -> None:
    canvas.layer(GROUND_LAYER)
    Ground(canvas, dice.tint()).poly([(-900, 1), (-900, 900), (900, 900), (900, 1)], TERRAIN, "terrain")
    tint = dice.tint()
    paving = Ground(canvas, tint)
    road = Ground(canvas, dice.tint())
    for side in (-1, 1):
        start = plan.half + plan.verge
        paving.poly(
            _ribbon(plan, side * start, side * plan.edge), 1, "sidewalk", second="kerb", grid=(1.5, 1.5, 0.06, 1.0)
        )
        paving.poly(_ribbon(plan, side * plan.half, side * (plan.half + 0.22)), 1, "kerb")
    road.poly(_ribbon(plan, -plan.half, plan.half), 0, "road")
    canvas.layer(PAINT_LAYER)
    for i in range(1, lanes):
        lateral = -plan.half + i * plan.lane
        if lanes > 2 and 2 * i == lanes:
            road.poly(_ribbon(plan, lateral - 0.09, lateral + 0.09), 0, "marking")
            continue
        z = dice.uniform(1.0, 8.0)
        while z < 70.0:
            far = z + 3.0
            corners = [
                (plan.x(lateral - 0.08, z), z),
                (plan.x(lateral - 0.08, far), far),
                (plan.x(lateral + 0.08, far), far),
                (plan.x(lateral + 0.08, z), z),
            ]
            road.poly(corners, 0, "marking")
            z += 8.0
    if dice.flip(0.6):
        for side in (-1, 1):
            road.poly(_ribbon(plan, side * (plan.half - 0.3), side * (plan.half - 0.45)), 0, "marking")
    if plan.tram:
        for rail in (-0.72, 0.72):
            road.poly(_ribbon(plan, rail - 0.05, rail + 0.05), 0, "rail")
    if dice.flip(plan.city.crossing):
        z = dice.uniform(6.0, 22.0)
        lateral = -plan.half + 0.4
        while lateral < plan.half - 0.5:
            a, b = plan.x(lateral, z), plan.x(lateral + 0.5, z)
            road.poly([(a, z), (a, z + 3.0), (b, z + 3.0), (b, z)], 0, "marking")
            lateral += 1.0


def _buildings(canvas: Canvas, dice: Dice, plan: Street, side: int) -> None:
    city = plan.city
    z = 2.0
    density = dice.between(city.density)
    level = dice.between(city.height)
    while z < 130.0:
        length = dice.between(city.length)
        if not dice.flip(density):
            z += length * 0.8
            continue
        lateral = side * (plan.edge + 0.1 + dice.between(city.setback))
        height = max(3.2, 0.5 * level + 0.5 * dice.between(city.height))
        canvas.layer(BUILT_LAYER, z)
        x0, x1 = plan.x(lateral, z), plan.x(lateral, z + length)
        house(canvas, dice, ((x0, z), (x1, z + length)), height, gable=city.gable)
        z += length + (dice.uniform(2.0, 9.0) if dice.flip(1 - density) else 0.0)
    canvas.layer(BUILT_LAYER, 140.0)
    end = plan.x(side * plan.edge, 140.0)
    block = Card(canvas, end, 140.0, BUILDING, tint=dice.tint(), mirror=side)
    height = dice.between(city.height) * 1.2
    block.rect(dice.uniform(-12.0, 2.0), 0, 60, height, "building", second="window", grid=(2.8, 3.1, 0.5, 0.55))


def house(
    canvas: Canvas,
    dice: Dice,
    front: Ends,
    height: Number,
    *,
    gable: Number,
) -> None:
    """A building whose street front runs from the near to the far (x, z) end of ``front``; its gable faces us."""
    (x0, z0), (x1, z1) = front
    length = ((x1 - x0) ** 2 + (z1 - z0) ** 2) ** 0.5
    direction = ((x1 - x0) / length, (z1 - z0) / length)
    tint = dice.tint()
    storey, bay = dice.uniform(2.7, 3.4), dice.uniform(1.8, 3.2)
    grid = (bay, storey, dice.uniform(0.35, 0.65), dice.uniform(0.4, 0.65))
    side = 1 if x0 > 0 else -1
    end = Card(canvas, x0, z0, BUILDING, tint=tint, mirror=side)
    face = Card(canvas, x0, z0, BUILDING, tint=tint, direction=direction)
    depth = dice.uniform(8.0, 14.0)
    pitched = dice.flip(gable)
    blank = dice.flip(0.4)
    end.rect(0, 0, depth, height, "building", second="building" if blank else "window", grid=grid)
    face.rect(0, 0, length, height, "building", second="window", grid=grid)
    if dice.flip(0.6):
        face.rect(0, 0, length, 0.85 * storey, "shop", second="window", grid=(bay * 1.6, 9.0, 0.7, 0.25))
    if pitched:
        peak = height + dice.uniform(1.5, 3.5)
        end.poly(((0, height), (depth, height), (depth / 2, peak)), "building")
        face.poly(((-0.3, height), (length + 0.3, height), (length, peak), (0, peak)), "roof")
    else:
        face.rect(-0.1, height - 0.3, length + 0.1, height + 0.25, "roof")
        end.rect(-0.1, height - 0.3, depth, height + 0.25, "roof")
    canvas.cast(x0, z0, x1, z1, height)
    canvas.cast(x0, z0, x0 + side * depth, z0, height)
    canvas.contact(min(x0, x1) - (0.35 if x0 > 0 else 0.0), max(x0, x1) + (0.35 if x0 < 0 else 0.0), z0, min(z1, 60.0))


def _barriers(canvas: Canvas, dice: Dice, plan: Street, side: int) -> None:
    """A wall, a fence or a hedge along the outer edge of the sidewalk, and a railing or kerb wall at the road."""
    wall, fence = plan.city.barrier
    roll = dice.unit()
    if roll < wall + fence:
        z0 = dice.uniform(2.0, 22.0)
        z1 = z0 + dice.uniform(9.0, 40.0)
        at_kerb = dice.flip(0.25)
        lateral = side * (plan.half + 0.35 if at_kerb else plan.edge)
        canvas.layer(EDGE_LAYER, z0)
        barrier(canvas, dice, ((plan.x(lateral, z0), z0), (plan.x(lateral, z1), z1)), solid=roll < wall, low=at_kerb)
    elif dice.flip(0.25):
        z0 = dice.uniform(2.0, 30.0)
        z1 = z0 + dice.uniform(8.0, 30.0)
        a, b = (plan.x(side * (plan.edge + 0.3), z) for z in (z0, z1))
        canvas.layer(EDGE_LAYER, z0)
        length = ((b - a) ** 2 + (z1 - z0) ** 2) ** 0.5
        hedge = Card(canvas, a, z0, VEGETATION, tint=dice.tint(), direction=((b - a) / length, (z1 - z0) / length))
        hedge.rect(0, 0, length, dice.uniform(0.8, 2.0), "vegetation")


def barrier(canvas: Canvas, dice: Dice, ends: Ends, *, solid: bool, low: bool) -> None:
    """A wall (``solid``, with a coping) or a fence (bars between posts) between two (x, z) ends."""
    (x0, z0), (x1, z1) = ends
    length = ((x1 - x0) ** 2 + (z1 - z0) ** 2) ** 0.5
    height = dice.uniform(0.7, 1.1) if low else dice.uniform(1.2, 2.6)
    card = Card(
        canvas, x0, z0, WALL if solid else FENCE, tint=dice.tint(), direction=((x1 - x0) / length, (z1 - z0) / length)
    )
    canvas.cast(x0, z0, x1, z1, height)
    if solid:
        card.rect(0, 0, length, height, "wall", second="roof", grid=(1.1, 0.42, 0.05, 1.0))
        card.rect(-0.1, height - 0.1, length + 0.1, height + 0.1, "top")
        return
    card.rect(0, 0.05, length, height, "fence", second="metal", grid=(0.34, 1.0, 0.6, 1.0))
    card.rect(0, height - 0.12, length, height, "fence")
    card.rect(0, 0.1, length, 0.25, "fence")


def hood(canvas: Canvas, dice: Dice) -> None:
    """The ego vehicle's bonnet at the lower image edge; not a class of the world (255)."""
    canvas.layer(HOOD_LAYER)
    camera = canvas.camera
    z, reach = 1.2, (1.0 - camera.horizon) * 0.5 / camera.focal * 1.2
    card = Card(canvas, 0.0, z, 255)
    low, top = camera.height - 1.6 * reach, camera.height - reach * dice.uniform(0.86, 0.92)
    half = 0.62 * z / camera.focal
    card.poly(
        ((-half, low), (-half, top - 0.08), (-0.5 * half, top), (0.5 * half, top), (half, top - 0.08), (half, low)),
        "hood",
    )
