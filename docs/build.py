"""Builds the site into build/site/html: ``uv run python docs/build.py [FOLDER]``.

The pages are the repository's own, with their paths, so that a link works here and there. Added are the Python page,
made from docstrings, and every file that a page links to.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reference
import yaml

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "site"
MADE = {"docs/api.md": reference.page}
"""Pages that are written by a function."""
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def main(out: Path) -> None:
    """Collect the pages, check them, run zensical."""
    pages = stage(out / "pages")
    problems = [*broken_links(out / "pages", pages), *unlisted(pages)]
    if problems:
        sys.exit("\n".join(problems))
    settings = read_settings() | {"docs_dir": "pages", "site_dir": "html"}
    settings["nav"] = present(settings["nav"], pages)
    (out / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    program = Path(sys.executable).with_name("zensical")
    command = [str(program), "build", "--strict", "--config-file", str(out / "mkdocs.yml")]
    sys.exit(subprocess.run(command, cwd=out, check=False).returncode)


def sources(root: Path = ROOT) -> list[str]:
    """The pages of the repository, as paths."""
    paths = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "benchmarks").glob("*.md")]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def stage(folder: Path) -> list[str]:
    """Copy pages and what they link to into ``folder``; returns the pages."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = sources()
    for name in pages:
        copy(name, folder)
    for name, make in MADE.items():
        (folder / name).write_text(make(), encoding="utf-8")
    for name in pages:
        for target, _ in links((ROOT / name).read_text(encoding="utf-8")):
            path = (ROOT / name).parent.joinpath(target).resolve()
            if path.is_file() and path.is_relative_to(ROOT) and path.suffix != ".md":
                copy(path.relative_to(ROOT).as_posix(), folder)
    return [*pages, *MADE]


def copy(name: str, folder: Path) -> None:
    """One file of the repository, with its path."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, folder / name)


def links(text: str) -> Iterator[tuple[str, str]]:
    """(path, anchor) of every link within the site; code is no link."""
    for target in LINK.findall(CODE.sub("", text)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def broken_links(folder: Path, pages: list[str]) -> list[str]:
    """Links to a file or a heading that is not there."""
    problems = []
    for name in pages:
        page = folder / name
        for path, anchor in links(page.read_text(encoding="utf-8")):
            target = page.parent / path if path else page
            if not target.is_file():
                problems.append(f"{name}: no file {path}")
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                problems.append(f"{name}: no heading #{anchor} in {path or name}")
    return problems


def anchors(text: str) -> set[str]:
    """The headings of a page, as links name them."""
    found: dict[str, int] = {}
    fenced = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
    names = set()
    for heading in re.findall(r"^#+ +(.*?)\s*$", fenced.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        names.add(slug if slug not in found else f"{slug}_{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return names


def read_settings() -> dict[str, Any]:
    """The site's settings."""
    return yaml.safe_load((ROOT / "docs" / "site.yml").read_text(encoding="utf-8"))


def present(nav: list[Any], pages: list[str]) -> list[Any]:
    """The navigation without the pages that are not there; a folder becomes its pages, its index first."""
    kept: list[Any] = []
    for item in nav:
        ((title, value),) = item.items()
        if isinstance(value, list):
            if below := present(value, pages):
                kept.append({title: below})
        elif value.endswith(".md"):
            kept += [item] if value in pages else []
        else:
            below = [page for page in pages if page.startswith(f"{value}/")]
            kept.append({title: sorted(below, key=lambda page: (not page.endswith("/index.md"), page))})
    return kept


def unlisted(pages: list[str]) -> list[str]:
    """Pages that nobody finds."""
    listed = set(flat(present(read_settings()["nav"], pages)))
    return [f"{page}: is not in the navigation of docs/site.yml" for page in pages if page not in listed]


def flat(nav: list[Any]) -> Iterator[str]:
    """The pages of a navigation."""
    for item in nav:
        for value in item.values() if isinstance(item, dict) else [item]:
            yield from flat(value) if isinstance(value, list) else [value]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the site.")
    parser.add_argument("folder", nargs="?", type=Path, default=OUT)
    main(parser.parse_args().folder.resolve())
