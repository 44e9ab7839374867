"""Reads label files in which objects are numbered: Cityscapes' instanceIds and polygons, ADE20K's channels, own files.

Ids that the encoding lacks are errors, as for classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segdistill.data.archives import BadSample, Store
from segdistill.data.catalog import IGNORE, Encoding
from segdistill.data.decode import Picture, open_picture
from segdistill.data.labels import Drawing, LabelReader, class_numbers, ranges
from segdistill.data.outlines import painted
from segdistill.data.voc_xml import BoxReader
from segdistill.objects import Objects

VALUES = 1 << 16
"""Values of a label file of 16 bits."""

STUFF, VOID, UNLISTED = -1, -2, -3
"""What a value means that is not an object."""


def reader_of(encoding: Encoding) -> LabelReader:
    """The reader of label files of ``encoding``."""
    if encoding.names:
        return BoxReader(encoding)
    return LabelReader(encoding) if encoding.objects is None else ObjectReader(encoding)


class ObjectReader(LabelReader):
    """Decodes label files with numbered objects; its class maps are those of the objects (255: none, crowd or void)."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__(encoding)
        assert encoding.objects is not None, "reader_of chooses"
        self._objects = numbers = encoding.objects
        values = np.arange(VALUES)
        plain = (values < numbers.divisor) & (numbers.crowds == "plain")
        ids = np.where(plain, values, values // numbers.divisor)
        meanings = np.full(VALUES, UNLISTED, np.int16)
        meanings[list(numbers.stuff)] = STUFF
        for number, to in encoding.ids.items():
            meanings[number] = VOID if to == IGNORE else to
        self._meaning = meanings[ids]
        self._crowd = plain | ((values % numbers.divisor == 0) & (numbers.crowds == "zero"))
        self._ids = ids

    def read(self, store: Store, name: str) -> Drawing:
        """The objects of the label ``name``, from the store itself or from its file."""
        kept = store.objects(name)
        if kept is not None:
            return Drawing(kept.class_map(), objects=kept)
        named = f"{store}: {name}"
        if name.lower().endswith(".json"):
            objects = self.numbered(painted(store.read(name), named), named)
            return Drawing(objects.class_map(), objects=objects)
        picture = open_picture(store.read(name), named)
        objects = self.numbered(self._values(picture, named), named)
        return Drawing(objects.class_map(), picture.orientation, objects)

    def decode(self, picture: Picture, name: str) -> NDArray[np.uint8]:
        """The map (H, W) of the objects' classes in an open file."""
        return self.numbered(self._values(picture, name), name).class_map()

    def numbered(self, values: NDArray[np.integer], name: str) -> Objects:
        """The objects in the stored ``values`` (H, W), in the order of their values."""
        counts = np.bincount(values.ravel(), minlength=VALUES)
        strange = np.flatnonzero((counts > 0) & (self._meaning == UNLISTED))
        if len(strange):
            shown = ", ".join(f"{self._ids[value]} (value {value})" for value in strange[:3])
            known = ranges({*self._table, *self._objects.stuff})
            raise BadSample(
                f"{name}: unknown id {shown}{', ...' * (len(strange) > 3)} at {counts[strange].sum()} pixels; "
                f"the table has {known}"
            )
        things = np.flatnonzero((counts > 0) & (self._meaning >= 0))
        numbers = np.zeros(VALUES, np.int32)
        numbers[things] = np.arange(1, len(things) + 1)
        void = self._meaning == VOID
        return Objects(
            numbers[values][None],
            self._meaning[things].astype(np.int64),
            self._crowd[things],
            void[values] if counts[void].any() else None,
        )

    def _values(self, picture: Picture, name: str) -> NDArray[np.integer]:
        """The stored values (H, W), below :data:`VALUES`."""
        self._exact(picture, name)
        ids, channel = class_numbers(picture, name, self.encoding.channel), self._objects.channel
        if channel is None:
            return ids
        numbers, divisor = class_numbers(picture, name, channel), self._objects.divisor
        if numbers.max(initial=0) >= divisor or ids.max(initial=0) * divisor >= VALUES:
            raise BadSample(
                f"{name}: object {numbers.max(initial=0)} or id {ids.max(initial=0)} is too large; "
                f"allowed: objects below {divisor}, ids below {VALUES // divisor}"
            )
        return ids.astype(np.int64) * divisor + numbers
