"""Street furniture, plants, people and vehicles of a street."""

from __future__ import annotations

from segdistill.world import shapes, vehicles
from segdistill.world.canvas import Canvas
from segdistill.world.city import Street
from segdistill.world.dice import Dice, Number
from segdistill.world.vehicles import Placement


def _depth(dice: Dice, low: Number, high: Number) -> float:
    """A random distance ahead, more often nearby."""
    u = dice.unit()
    return low + (high - low) * u * u


def furniture(canvas: Canvas, dice: Dice, plan: Street, layer: int) -> None:
    """Trees, bushes, lamps, poles, traffic lights and signs beside the road."""
    city = plan.city
    for _ in range(round(dice.between(city.trees))):
        z, side = _depth(dice, 6.0, 75.0), dice.sign()
        lateral = plan.half + plan.verge + 0.6 if dice.flip(0.6) else plan.edge + dice.uniform(0.5, 5.0)
        canvas.layer(layer, z)
        shapes.tree(canvas, dice, plan.x(side * lateral, z), z, kind=dice.pick(city.kinds))
    for _ in range(round(dice.between(city.bushes))):
        z, side = _depth(dice, 4.0, 45.0), dice.sign()
        canvas.layer(layer, z)
        shapes.bush(canvas, dice, plan.x(side * (plan.edge + dice.uniform(0.3, 2.0)), z), z, dice.uniform(0.7, 1.6))
    for _ in range(round(dice.between(city.poles))):
        z, side = _depth(dice, 5.0, 60.0), dice.sign()
        canvas.layer(layer, z)
        x = plan.x(side * (plan.half + 0.45), z)
        if dice.flip(0.6):
            shapes.lamp(canvas, dice, x, z)
        else:
            shapes.pole(canvas, dice, x, z, dice.uniform(3.0, 7.0), dice.uniform(0.12, 0.24))
    for _ in range(round(dice.between(city.lights))):
        z, side = _depth(dice, 6.0, 35.0), dice.sign()
        canvas.layer(layer, z)
        shapes.traffic_light(canvas, dice, plan.x(side * (plan.half + 0.5), z), z, dice.uniform(0.95, 1.3))
    for _ in range(round(dice.between(city.signs))):
        z, side = _depth(dice, 5.0, 35.0), dice.sign()
        canvas.layer(layer, z)
        shapes.sign(canvas, dice, plan.x(side * (plan.half + 0.6), z), z, dice.uniform(0.95, 1.3))


def traffic(canvas: Canvas, dice: Dice, plan: Street, layer: int) -> None:
    """People and vehicles."""
    people, riders, cars, trucks, buses, _, motorcycles, bicycles = plan.city.things  # a tram belongs to the street
    _people(canvas, dice, plan, (people, riders, motorcycles, bicycles), layer)
    free = {-1: 6.0, 1: 7.0}  # the next free distance per driving direction
    for _ in range(dice.count(cars * plan.city.parked)):
        z, side = _depth(dice, 4.5, 50.0), dice.sign()
        canvas.layer(layer, z)
        pose = "toward" if side < 0 else "away"
        vehicles.car(canvas, dice, Placement(plan.x(side * (plan.half - 0.95), z), z, pose))
    if plan.tram and dice.flip(0.75):
        z = _depth(dice, 9.0, 40.0)
        canvas.layer(layer, z)
        vehicles.train(canvas, dice, Placement(plan.x(0.0, z), z, "toward" if dice.flip(0.5) else "away"))
        free[-1] = z + 24.0
    queue = [vehicles.car] * dice.count(cars * (1 - plan.city.parked))
    queue += [vehicles.truck] * dice.count(trucks) + [vehicles.bus] * dice.count(buses)
    while queue:
        build = queue.pop(int(dice.unit() * len(queue)))
        side = dice.sign()
        heavy = build is not vehicles.car
        z = free[side] + _depth(dice, 1.0, 22.0) + (3.0 if heavy else 0.0)
        if z > 80.0:
            continue
        free[side] = z + (12.0 if heavy else 5.5)
        lanes = max(1, int(plan.half / plan.lane))
        lateral = side * (0.5 + dice.integer(0, lanes - 1)) * plan.lane
        if abs(lateral) > plan.half - 0.9:
            lateral = side * (plan.half - 1.3)
        canvas.layer(layer, z)
        if dice.flip(0.1):
            build(canvas, dice, Placement(plan.x(lateral, z), z + 4.0, "across"))
            continue
        build(canvas, dice, Placement(plan.x(lateral, z), z, "toward" if side < 0 else "away"))


def _people(canvas: Canvas, dice: Dice, plan: Street, rates: tuple[Number, ...], layer: int) -> None:
    people, riders, motorcycles, bicycles = rates
    outer = plan.half + plan.verge
    for _ in range(dice.count(people)):
        z = _depth(dice, 5.0, 45.0)
        on_road = dice.flip(0.12)
        lateral = (
            dice.uniform(-plan.half, plan.half) if on_road else dice.sign() * dice.uniform(outer + 0.5, plan.edge - 0.3)
        )
        canvas.layer(layer, z)
        shapes.person(canvas, dice, plan.x(lateral, z), z)
        if dice.flip(0.3):
            shapes.person(canvas, dice, plan.x(lateral + 0.7, z), z)
    for _ in range(dice.count(riders)):
        z = _depth(dice, 5.0, 28.0)
        lateral = dice.sign() * (plan.half - dice.uniform(0.4, 2.2))
        canvas.layer(layer, z)
        motor = dice.unit() * (motorcycles + bicycles) < motorcycles
        shapes.rider(canvas, dice, plan.x(lateral, z), z, motor=motor, side=dice.flip(0.45))
    for rate, build in ((motorcycles, shapes.motorcycle), (bicycles, shapes.bicycle)):
        for _ in range(dice.count(rate)):
            z, side = _depth(dice, 4.5, 22.0), dice.sign()
            lateral = side * dice.uniform(outer + 0.3, outer + 1.0) if dice.flip(0.7) else side * (plan.half - 0.6)
            canvas.layer(layer, z)
            build(canvas, dice, plan.x(lateral, z), z, side=dice.flip(0.7), mirror=dice.sign())
