"""Class names, colours and id tables of the data sets (spec D.2-D.5)."""

from __future__ import annotations

from segdistill.data.catalog.record import IGNORE, RGB, class_colors, interleaved_colors
from segdistill.world.classes import CLASSES, COLORS

# The 19 Cityscapes classes: the world's own, in the same order and colours.
DRIVING = CLASSES
DRIVING_COLORS: tuple[RGB, ...] = tuple((int(r), int(g), int(b)) for r, g, b in COLORS)

CITYSCAPES_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
    28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip

# terrain (16), truck (14) and train (20) do not occur in SYNTHIA-RAND-CITYSCAPES
SYNTHIA_IDS = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14, 19: 15,
    20: 16, 12: 17, 11: 18,
}  # fmt: skip

_MAPILLARY = (
    (7, 8, 10, 13, 14, 23, 24),  # road: also bike lane, crosswalk, parking, service lane, markings
    (2, 9, 11, 15),  # sidewalk: also curb, curb cut, pedestrian area
    (17,),
    (6,),
    (3,),
    (44, 45, 47),  # pole: also street light, utility pole
    (48,),
    (46, 49, 50),  # traffic sign: also its frame and its back
    (30,),
    (29,),
    (27,),
    (19,),
    (20, 21, 22),
    (55,),
    (61,),
    (54,),
    (58,),
    (57,),
    (52,),
)
MAPILLARY_IDS = {number: trainid for trainid, numbers in enumerate(_MAPILLARY) for number in numbers}

AERIAL = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
AERIAL_COLORS: tuple[RGB, ...] = (
    (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0),
)  # fmt: skip
AERIAL_TABLE = {(0, 0, 0): IGNORE} | {color: i for i, color in enumerate(AERIAL_COLORS)}

# The paper has 11 classes, the challenge's labels have 12 (spec A.11, G.9). The paper's model has no output for
# "ultrasound probe"; its validation set ignores 11, but its metric 255, so probe pixels leave the union while
# predictions on them count against other classes. Here all 12 are classes.
ENDOVIS = (
    "background tissue", "instrument shaft", "instrument clasper", "instrument wrist", "kidney parenchyma",
    "covered kidney", "thread", "clamps", "suturing needle", "suction instrument", "small intestine",
    "ultrasound probe",
)  # fmt: skip
ENDOVIS_COLORS: tuple[RGB, ...] = (
    (0, 0, 0), (0, 255, 0), (0, 255, 255), (125, 255, 12), (255, 55, 0), (24, 55, 125), (187, 155, 25), (0, 255, 125),
    (255, 255, 125), (123, 15, 175), (124, 155, 5), (12, 255, 141),
)  # fmt: skip

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_COLORS = interleaved_colors(len(VOC))

ADE = tuple(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
    light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
    pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
    canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
    food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
    sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
    glass, clock, flag""".replace("\n", " ").replace("     ", " ").split(", ")
)  # fmt: skip
ADE_COLORS = class_colors(len(ADE))  # for pictures only: its labels are numbers

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
# The usual 11 classes from the 32 original ones [know]: one row per class, its own colour first.
_CAMVID = (
    ((128, 128, 128),),
    ((128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)),  # bridge, wall, tunnel, archway
    ((192, 192, 128), (0, 0, 64)),  # traffic cone
    ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # both lane markings
    ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # parking block, road shoulder
    ((128, 128, 0), (192, 192, 0)),  # other vegetation
    ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # text, traffic light
    ((64, 64, 128),),
    ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),  # pickup, truck, train, other
    ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # child, cart and luggage, animal
    ((0, 128, 192), (192, 0, 192)),  # motorcycle
)
CAMVID_COLORS: tuple[RGB, ...] = tuple(row[0] for row in _CAMVID)
CAMVID_TABLE = {(0, 0, 0): IGNORE} | {color: i for i, row in enumerate(_CAMVID) for color in row}
