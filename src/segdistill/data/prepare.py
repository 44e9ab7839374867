"""One-time conversions of data sets: trainId labels, half-size images and clips, in a layout of the catalog.

The official files are only read. Files are written atomically, and a rerun only writes missing or damaged ones, so an
interruption loses nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdistill.config import UserError, choose
from segdistill.data.archives import BadSample, Folder, Store
from segdistill.data.catalog import DATASETS, DatasetRecord, Encoding, Files, Layout
from segdistill.data.dataset import Progress, Split
from segdistill.data.decode import open_image, read_rgb, stored_size
from segdistill.data.index import Found, Item, Place, find
from segdistill.data.labels import LabelReader
from segdistill.data.pool import worker_pool
from segdistill.files import write_bytes

CLIP = 512
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Counts:
    """Numbers of files written, of intact files kept, and of images left out for lack of a label."""

    made: int = 0
    kept: int = 0
    unlabelled: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.made + other.made, self.kept + other.kept, self.unlabelled + other.unlabelled)


@dataclass(frozen=True)
class Job:
    """An image or label of ``plan.store`` and the file to write in ``plan.out``."""

    source: str
    target: str
    label: bool


@dataclass(frozen=True)
class Plan:
    """Shared data of the jobs of one split; sent to other processes."""

    store: Store
    encoding: Encoding
    out: Path
    convert: Callable[[Plan, Job, LabelReader], Counts]


def same(plan: Plan, job: Job, reader: LabelReader) -> Counts:
    """Labels become trainIds; images are linked, or copied out of an archive and to another file system."""
    if job.label:
        return _made(plan.out / job.target, lambda: _png(reader(plan.store.read(job.source), job.source)))
    target = plan.out / job.target
    if not isinstance(plan.store, Folder):
        return _made(target, lambda: plan.store.read(job.source))
    source = plan.store.where / job.source
    if target.exists() and (target.samefile(source) or whole(target)):
        return Counts(kept=1)
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without links
        return _made(target, source.read_bytes)
    return Counts(made=1)


def half(plan: Plan, job: Job, reader: LabelReader) -> Counts:
    """Half the width and height, rounded down (spec D.1): images bicubic, as JPEG of Pillow's default quality as the
    authors' script saves them, labels nearest.
    """

    def image() -> bytes:
        with open_image(plan.store.read(job.source), job.source) as full:
            return _encoded(_halved(full, Image.Resampling.BICUBIC), "JPEG")

    def label() -> bytes:
        full = Image.fromarray(reader(plan.store.read(job.source), job.source))
        return _encoded(_halved(full, Image.Resampling.NEAREST), "PNG")

    return _made(plan.out / job.target, label if job.label else image)


def clips(plan: Plan, job: Job, reader: LabelReader) -> Counts:
    """A tile in clips of 512 x 512 pixels; labels as the converter writes them, 0 ignored and 1 to 6 the classes
    (spec D.4). The name contains the clip's position: ``2_10_0_512_512_1024.png``.
    """
    content = plan.store.read(job.source)
    height, width = stored_size(content, job.source)
    base = job.target.removesuffix(".png")
    targets = {box: plan.out / f"{base}_{'_'.join(map(str, box))}.png" for box in boxes(height, width)}
    wanting = {box: path for box, path in targets.items() if not whole(path)}
    if wanting:
        # 255 + 1 is 0: the ignored pixels
        tile = reader(content, job.source) + np.uint8(1) if job.label else read_rgb(content, job.source)
        for (left, top, right, bottom), path in wanting.items():
            write_bytes(path, _png(np.ascontiguousarray(tile[top:bottom, left:right])))
    return Counts(made=len(wanting), kept=len(targets) - len(wanting))


@dataclass(frozen=True)
class Preparation:
    """The layout to write, how, and the template of its ``{stem}`` (None: unchanged)."""

    title: str
    convert: Callable[[Plan, Job, LabelReader], Counts] = same
    stem: str | None = None
    batch: int = 8  # files that a process takes at once, and finishes if it is interrupted


PREPARATIONS: dict[str, Preparation] = {
    "gtav": Preparation("trainIds beside"),
    "synthia": Preparation("trainIds beside"),
    "urbansyn": Preparation("renamed", stem="{number}"),  # officially the two names of a pair differ; 19 becomes 255
    "cityscapes": Preparation("trainIds beside"),
    "mapillary": Preparation("trainIds"),
    "mapillary_half": Preparation("prepared", half),
    "potsdam_rgb": Preparation("clips", clips, "{tile}", batch=1),
    "potsdam_irrg": Preparation("clips", clips, "{tile}", batch=1),
    "vaihingen_irrg": Preparation("clips", clips, "{tile}", batch=1),
    "endovis18": Preparation("flat", stem="{sequence}_{stem}"),
}


def prepare(
    name: str, source: Path, out: Path, *, processes: int = 1, progress: Progress | None = None
) -> tuple[Path, Counts]:
    """Convert data set ``name`` in the folder or archive ``source`` into its folder in ``out``."""
    if name in DATASETS and name not in PREPARATIONS:
        raise UserError(f"{name} needs no preparation; data sets that do: {', '.join(sorted(PREPARATIONS))}")
    preparation = choose("preparation", name, PREPARATIONS)
    record = DATASETS[name]
    target = next(layout for layout in record.layouts if layout.title == preparation.title)
    folder = out / record.folders[0]
    if _nested(folder, source):
        raise UserError(f"{folder} and the official files in {source} overlap; choose another --out")
    counts = Counts()
    errands: list[Callable[[], Counts]] = []
    for split, found in _sources(name, record, target, source).items():
        assert found.layout.encoding is not None, "unlabelled data sets need no preparation"
        plan = Plan(found.store, found.layout.encoding, folder, preparation.convert)
        labelled = [item for item in found.items if item.label is not None]
        counts += Counts(unlabelled=len(found.items) - len(labelled))
        jobs = [job for item in labelled for job in _jobs(item, target.splits[split], preparation)]
        batch = preparation.batch
        errands += [partial(_convert, plan, jobs[i : i + batch]) for i in range(0, len(jobs), batch)]
    return folder, sum(_in_processes(errands, processes, progress, f"preparing {name}"), counts)


def boxes(height: int, width: int, clip: int = CLIP) -> Iterator[Box]:
    """(left, top, right, bottom) of a tile's clips, row by row: corners at multiples of ``clip``, the last ones
    shifted back to the border (spec D.4). A side shorter than ``clip`` is taken whole (ours: the usual converter's
    slices go wrong there).
    """
    for top in range(0, height, clip):
        for left in range(0, width, clip):
            x, y = max(0, min(left, width - clip)), max(0, min(top, height - clip))
            yield x, y, min(x + clip, width), min(y + clip, height)


def whole(path: Path) -> bool:
    """Whether ``path`` is an image that can be read to its end."""
    try:
        open_image(Folder(path.parent).read(path.name), str(path))
    except BadSample:
        return False
    return True


def _sources(name: str, record: DatasetRecord, target: Layout, source: Path) -> dict[Split, Found]:
    """The official files of every available split with public labels."""
    official = record.raw or tuple(layout for layout in record.layouts if layout.title != target.title)
    where = Place(name, replace(record, layouts=official), source)
    found: dict[Split, Found] = {}
    problems = []
    for split, files in target.splits.items():
        if files.labels is None:
            continue
        try:
            here = find(where, split)
        except UserError as error:
            problems.append(error)
            continue
        if len(here.lone_images) < len(here.items):
            found[split] = here
    if found:
        return found
    if source.exists() and _there(replace(where, record=replace(record, layouts=(target,)))):
        raise UserError(f"{source} holds {name} in prepared form; there is nothing to do")
    raise problems[0] if problems else UserError(f"images without labels only: {where.missing()}")


def _there(where: Place) -> bool:
    """Whether a split of the record's only layout is there with labels."""
    for split in where.record.layouts[0].splits:
        try:
            found = find(where, split)
        except UserError:
            continue
        if len(found.lone_images) < len(found.items):
            return True
    return False


def _jobs(item: Item, files: Files, preparation: Preparation) -> tuple[Job, Job]:
    """The image and the label of ``item``, with their paths by the templates ``files``."""
    assert item.label is not None and files.labels is not None, "the caller only passes labelled items"
    fields = dict(item.key) | {"ext": PurePosixPath(item.image).suffix[1:]}
    if preparation.stem is not None:
        fields["stem"] = preparation.stem.format(**fields)
    return (
        Job(item.image, files.images.format(**fields), label=False),
        Job(item.label, files.labels.format(**fields), label=True),
    )


def _convert(plan: Plan, jobs: Sequence[Job]) -> Counts:
    reader = LabelReader(plan.encoding)
    return sum((plan.convert(plan, job, reader) for job in jobs), Counts())


def _in_processes(
    errands: Sequence[Callable[[], Counts]], processes: int, progress: Progress | None, what: str
) -> Iterator[Counts]:
    """The results of all errands in order of completion; a failure or an interruption cancels those not started."""
    tell = progress or (lambda *_: None)
    if processes <= 1:
        for done, errand in enumerate(errands, start=1):
            yield errand()
            tell(what, done, len(errands))
        return
    with worker_pool(processes) as pool:
        futures = [pool.submit(errand) for errand in errands]
        for done, future in enumerate(as_completed(futures), start=1):
            yield future.result()
            tell(what, done, len(errands))


def _made(path: Path, content: Callable[[], bytes]) -> Counts:
    if whole(path):
        return Counts(kept=1)
    write_bytes(path, content())
    return Counts(made=1)


def _halved(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), resample)


def _png(array: NDArray[np.uint8]) -> bytes:
    return _encoded(Image.fromarray(array), "PNG")


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _nested(a: Path, b: Path) -> bool:
    """Whether one of two folders contains the other."""
    a, b = a.resolve(), b.resolve()
    return a == b or a in b.parents or b in a.parents
