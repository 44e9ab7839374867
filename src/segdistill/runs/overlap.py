"""Images that are scored and trained on: the same file under whatever name, or a copy of it. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from segdistill.data.archives import ImageFile
from segdistill.data.copies import Originals
from segdistill.recipe import Reading, Recipe


def overlaps(recipe: Recipe, readings: Sequence[Reading]) -> list[tuple[str, bool]]:
    """A line for each domain with images that are scored and trained on, and whether it is unseen."""
    trained = [each for each in readings if each.where != "evaluate"]
    scored = [each for each in readings if each.where == "evaluate" and trained]
    files = [file for each in scored for file in each.source.files(each.selection)]
    domains: dict[str, list[str]] = defaultdict(list)  # of each path; an image may be scored in several
    for file in files:
        domains[file.path].append(file.domain)
    totals, originals = Counter(file.domain for file in files), Originals(files)
    unseen = () if recipe.evaluate is None else recipe.evaluate.unseen
    found: dict[str, str] = {}
    for each in trained:
        same: dict[str, ImageFile] = {}
        for file in each.source.files(each.selection):
            same |= dict.fromkeys(originals.same(file), file)
        for domain, count in Counter(domain for path in same for domain in domains[path]).items():
            total = totals[domain]
            images = f"{'all' if count == total else f'{count} of the'} {total} images of '{domain}'"
            copies = [(file.path, path) for path, file in same.items() if path != file.path and domain in domains[path]]
            such = f" (for example, {copies[0][0]} is a copy of {copies[0][1]})" if copies else ""
            found.setdefault(domain, f"evaluate: {images} are also read by {each.where}{such}; ")
    return [
        (line + ("remove them from one of the two, or the domain from 'unseen'" if domain in unseen
                 else "its score says nothing about new images"), domain in unseen)
        for domain, line in found.items()
    ]  # fmt: skip


def still_there(trained: Recipe) -> list[Reading]:
    """What the stages of ``trained`` read, as far as the images can be found."""
    stages = trained.model_copy(update={"evaluate": None}).readings()
    return [each for each in stages if not each.source.problems(each.selection, labelled=False)]


def trained_on(files: Sequence[ImageFile], trained: Recipe) -> int:
    """How many of ``files`` a stage of ``trained`` reads, or a copy of them, as far as its images can be found."""
    originals, found = Originals(files), set[str]()
    for each in still_there(trained) if files else ():
        for file in each.source.files(each.selection):
            found.update(originals.same(file))
    return len(found)
