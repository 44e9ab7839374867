"""The site builds without a warning, every link on it leads somewhere, and what its pages quote exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def build(monkeypatch):
    """The build script as a module."""
    monkeypatch.syspath_prepend(str(DOCS))
    import build

    yield build
    for name in ("build", "reference"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, and what the build said."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(DOCS / "build.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html", done.stdout + done.stderr


class Links(HTMLParser):
    """What a page points at, the names of its places, and what it would fetch from elsewhere."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.ids, self.fetched = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values.get("id"), values.get("name")}
        for key in ("href", "src"):
            if values.get(key):
                self.targets.append(values[key])
                if tag in ("img", "script", "source") or (tag == "link" and "stylesheet" in values.get("rel", "")):
                    self.fetched.append(values[key])


def pages_of(html):
    return {path: Links(path) for path in sorted(html.rglob("*.html")) if path.name != "404.html"}


def dead(html):
    """Links to a file or a place that the site lacks."""
    pages = pages_of(html)
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            goal = path.parent / unquote(parts.path) if parts.path else path
            goal = goal / "index.html" if goal.is_dir() else goal
            goal = goal.resolve()
            if not goal.is_file():
                yield f"{path.relative_to(html)}: {target}"
            elif parts.fragment and goal in pages and unquote(parts.fragment) not in pages[goal].ids:
                yield f"{path.relative_to(html)}: {target} has no such place"


def test_the_site_builds_without_a_warning(site):
    html, said = site
    assert "No issues found" in said
    assert (html / "docs" / "troubleshooting" / "index.html").is_file()
    assert not re.search("warn", said, re.IGNORECASE)


def test_every_link_of_the_site_leads_somewhere(site):
    html, _ = site
    assert len(pages_of(html)) > 10
    assert sum(len(page.targets) for page in pages_of(html).values()) > 100
    assert not list(dead(html))


def test_the_page_fetches_nothing_from_elsewhere(site):
    html, _ = site
    foreign = {target for page in pages_of(html).values() for target in page.fetched if urlsplit(target).netloc}
    assert not foreign


def test_the_dead_are_found(tmp_path):
    (tmp_path / "index.html").write_text('<a href="b/">b</a><a href="b/#x">x</a><a href="#y">y</a><img src="no.png">')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.html").write_text('<h1 id="z">b</h1><a href="../">up</a>')
    assert [line.partition(": ")[2] for line in dead(tmp_path)] == [
        "b/#x has no such place", "#y has no such place", "no.png",
    ]  # fmt: skip


def test_broken_links_end_the_build_and_code_is_no_link(build, tmp_path):
    text = "# A title: `x`\n[a](b.md) [c](b.md#there) [d](b.md#gone) [e](c.md) [f](#a-title-x) `[g](no.md)`\n"
    (tmp_path / "a.md").write_text(text + "```\n[h](no.md)\n# no heading\n```\n[i](#no-heading)\n")
    (tmp_path / "b.md").write_text("## There\n")
    found = build.broken_links(tmp_path, ["a.md", "b.md"])
    assert [line.partition(": ")[2].split(" in ")[0] for line in found] == [
        "no heading #gone", "no file c.md", "no heading #no-heading",
    ]  # fmt: skip


def test_every_page_is_in_the_navigation_once_and_one_that_is_not_ends_the_build(build):
    pages = [*build.sources(), *build.MADE]
    assert not build.unlisted(pages)
    listed = list(build.flat(build.present(build.read_settings()["nav"], pages)))
    assert sorted(listed) == sorted(pages)
    assert build.unlisted([*pages, "docs/lost.md"]) == ["docs/lost.md: is not in the navigation of docs/site.yml"]


def test_what_the_build_writes_is_ignored_by_git(build):
    assert build.OUT.relative_to(ROOT).parts[0] == "build"
    assert "build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_the_python_page_has_every_name_that_the_package_exports(build):
    import reference

    import segdistill

    text = reference.page()
    names = [name for name in getattr(segdistill, "__all__", []) if not name.startswith("__")]
    assert [name for name in names if f"## segdistill.{name}\n" not in text] == []
    for path in reference.ALSO:
        assert f"## {path}." in text or any(f"## segdistill.{name}\n" in text for name in reference.ALSO[path])


def test_signatures_and_docstrings_come_from_where_a_name_is_defined(build, tmp_path):
    import reference

    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("if 1:\n    from toy.api import Box, open_it\nfrom toy.api import _hidden\n")
    (package / "api.py").write_text(
        "from toy.deep import Box\n"
        "def _hidden(): ...\n"
        "def open_it(path: str, *, words: tuple[str, ...] = ('a, b', 'c'), "
        "other: dict[str, int] | None = None, last: int = 0) -> Box:\n"
        '    """Open ``path``, a :class:`toy.Box`."""\n'
    )
    (package / "deep.py").write_text(
        'class Box:\n    """A box."""\n    @property\n    def size(self) -> int:\n        """How large."""\n'
        "    def bare(self): ...\n"
        '    def shut(self, hard: bool = False) -> None:\n        """Shut it."""\n'
    )
    text = reference.page(package, {})
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["toy.Box", "toy.open_it"]
    assert "Open `path`, a `toy.Box`." in text
    assert "    words: tuple[str, ...]=('a, b', 'c'),\n    other: dict[str, int] | None=None,\n" in text
    assert "property size: int" in text
    assert "shut(hard: bool=False) -> None" in text
    assert "bare" not in text


def messages():
    """Every text of the package, with a hole where a value is put in."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def quoted(page):
    """The messages that a page quotes: inline code of several words that is neither a command nor a setting."""
    for text in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)):
        if " " in text and not re.match(r"segdistill |uv |pip |trackio |tensorboard |\S+=|\S+: ?[\[{]", text):
            yield text


def unknown(page, texts):
    """Quoted messages of which a piece between two values is in no text."""
    everything = "\n".join(texts)
    for text in quoted(page):
        pieces = [piece.strip() for piece in re.split(r"\.\.\.|\d+", text) if piece.strip(" .,:;")]
        if any(piece not in everything for piece in pieces):
            yield text


def test_the_messages_that_troubleshooting_quotes_exist():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert len(list(quoted(page))) >= 10
    assert not list(unknown(page, messages()))
    assert len(re.findall(r"^## \d+\. ", page, re.MULTILINE)) == 15


def test_a_message_that_no_code_has_is_found():
    texts = ["batch \0 cannot be divided among \0 processes"]
    assert not list(unknown("`batch 6 cannot be divided among 4 processes` `x=1 y`", texts))
    assert list(unknown("`batch 6 cannot be shared`", texts)) == ["batch 6 cannot be shared"]


def lost(page, package=ROOT / "src" / "segdistill"):
    """Places such as ``methods/gkd.py: QSDHead, GKD.forward`` of which the file or a name in it does not exist."""
    for place, names in re.findall(r"`([\w/]+\.py)(?:: ([\w., ]+))?`", page):
        if not (package / place).is_file():
            yield place
            continue
        text = (package / place).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            if not re.search(rf"\b{name}\b", text):
                yield f"{place}: {name}"


def test_every_place_that_the_index_of_the_papers_names_exists():
    page = (DOCS / "papers.md").read_text(encoding="utf-8")
    assert len(re.findall(r"`[\w/]+\.py[:`]", page)) > 50
    assert not list(lost(page))


def test_a_lost_place_is_found(tmp_path):
    (tmp_path / "a.py").write_text("class Here: ...\n")
    assert list(lost("`a.py: Here, Gone` `b.py`", tmp_path)) == ["a.py: Gone", "b.py"]
