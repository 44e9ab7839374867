import numpy as np

from segdistill.objects import boxes_of


def test_boxes_of_ids_are_those_of_their_pixels():
    rng = np.random.default_rng(0)
    for _ in range(100):
        count, size = int(rng.integers(1, 5)), rng.integers(1, 9, 2)
        ids = np.repeat(rng.integers(0, count + 1, size), rng.integers(1, 4), axis=1).astype(np.int32)
        boxes = boxes_of(ids, count + 1)  # the last one is absent
        assert boxes[count] is None
        for number in range(1, count + 1):
            rows, columns = np.nonzero(ids == number)
            expected = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) if len(rows) else None
            assert boxes[number - 1] == expected
