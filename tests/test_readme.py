"""What the pages tell a reader to type is what the package understands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from segdistill.config import UserError
from segdistill.recipe import load

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = {"", "bash", "console", "sh", "shell"}
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:uv run )?segdistill [^`\n]+)`")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return ((match.group(1), match.group(2)) for match in FENCE.finditer(page))


def commands(page: str) -> Iterator[list[str]]:
    """The arguments of every ``segdistill`` call of a page, in its shell blocks and in its prose."""
    lines = [line for language, text in blocks(page) if language in SHELLS
             for line in text.replace("\\\n", " ").splitlines()]  # fmt: skip
    lines += [match.group(1) for match in INLINE.finditer(FENCE.sub("", page))]
    for line in lines:
        for call in simple_commands(line.strip().removeprefix("$ ")):
            while call and re.fullmatch(r"\w+=.*", call[0]):
                call = call[1:]
            if call[:2] == ["uv", "run"]:
                call = call[2:]
            if call[:1] == ["segdistill"]:
                yield call[1:]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of ``a && b | c`` as three lists; what follows ``#`` is a comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    call: list[str] = []
    try:
        for word in lexer:
            if set(word) <= set("&|;"):
                yield call
                call = []
            else:
                call.append(word)
    except ValueError:  # prose in an untagged block, for example an apostrophe
        return
    yield call


def problem(command: Any, words: list[str]) -> str | None:
    """Why the command line does not parse, or None. ``command`` is typer's command tree."""
    positional: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word.startswith("-"):
            name, _, value = word.partition("=")
            option = next((p for p in command.params if name in (*p.opts, *p.secondary_opts)), None)
            if option is None and name != "--help":
                return f"no option {name} in '{command.name}'"
            if option is not None and not option.is_flag and not value:
                if not queue:
                    return f"{name} wants a value"
                value = queue.pop(0)
            choices = getattr(getattr(option, "type", None), "choices", None)
            if choices and value not in [getattr(choice, "value", choice) for choice in choices]:
                return f"{name}: '{value}' is none of {list(choices)}"
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return f"no command '{word}' in '{command.name}'"
            command = command.commands[word]
        else:
            positional.append(word)
    return argument_problem(command, positional, asks_help="--help" in words)


def argument_problem(command: Any, positional: list[str], *, asks_help: bool) -> str | None:
    """Too few or too many arguments, or a recipe that is not in the repository."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    required = sum(argument.required for argument in arguments)
    if len(positional) < required and not asks_help:
        return f"'{command.name}' wants {required} arguments, got {positional}"
    if len(positional) > len(arguments) and all(argument.nargs != -1 for argument in arguments):
        return f"'{command.name}' takes {len(arguments)} arguments, got {positional}"
    for word in positional:
        if word.startswith("recipes/") and not list(ROOT.glob(word)):
            return f"no file {word}"
    return settings_problem(positional) if command.name == "run" else None


def settings_problem(positional: list[str]) -> str | None:
    """What the recipe itself says to the ``key=value`` that follow it."""
    if not positional or not (ROOT / positional[0]).is_file():
        return None  # a name that stands for the reader's own file
    try:
        load(ROOT / positional[0], positional[1:])
    except UserError as error:
        return str(error)
    return None


def cli() -> Any:
    """The command tree that ``segdistill`` runs."""
    from segdistill.cli import app

    return typer.main.get_command(app)


def test_every_command_line_parses(tmp_path: Path, official_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's folders are there, with small instances of the data sets; recipes load with what follows them."""
    (tmp_path / "prepared").symlink_to(official_files)
    monkeypatch.chdir(tmp_path)
    tree = cli()
    problems = []
    for page in PAGES:
        for words in commands(page.read_text(encoding="utf-8")):
            if (found := problem(tree, words)) is not None:
                problems.append(f"{page.name}: segdistill {shlex.join(words)}: {found}")
    assert not problems, "\n".join(problems)


def test_the_readme_shows_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ["demo"] in list(commands(readme))
    assert re.search(r"^(?:\$ )?uv run pytest\b", readme, re.MULTILINE)
    assert "\nuv run pytest\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path) -> None:
    """The Python blocks of a page run one after the other, in one program and an empty folder."""
    for page in PAGES:
        program = "\n".join(text for language, text in blocks(page.read_text(encoding="utf-8")) if language == "python")
        if program:
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{page.name}:\n{done.stderr}"


EXAMPLE = typer.Typer()


@EXAMPLE.command("run")
def _run(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    *,
    fast: bool = False,
    device: str = "cpu",
) -> None:
    """An example to check the checker on."""


@EXAMPLE.command("list")
def _list() -> None:
    """A second command, so that there are subcommands."""


@pytest.mark.parametrize(
    "line",
    [
        "run a.yaml",
        "run a.yaml x=1 y=[2,3] --fast",
        "run --device cuda a",
        "run --help",
        "run recipes/world_pretrain_teacher.yaml seed=1",
    ],
)
def test_the_checker_accepts(line: str) -> None:
    assert problem(typer.main.get_command(EXAMPLE), line.split()) is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("rum a.yaml", "no command 'rum'"),
        ("run a.yaml --quick", "no option --quick"),
        ("run", "wants 1 arguments"),
        ("run a.yaml --device", "wants a value"),
        ("list all", "takes 0 arguments"),
        ("run recipes/nowhere.yaml", "no file recipes/nowhere.yaml"),
        ("run recipes/world_pretrain_teacher.yaml sede=1", "unknown key"),
    ],
)
def test_the_checker_refuses(line: str, reason: str) -> None:
    assert reason in (problem(typer.main.get_command(EXAMPLE), line.split()) or "")


def test_commands_are_found_in_blocks_and_prose() -> None:
    page = """
Type `segdistill list` or `uv run segdistill run a.yaml`, not `segdistill`.
```console
$ uv run segdistill demo --fast   # ten minutes
Usage: segdistill run
$ cd segdistill && X=1 segdistill run \\
    a.yaml
```
```python
segdistill = 1
```
```
it's prose
```
"""
    assert list(commands(page)) == [["demo", "--fast"], ["run", "a.yaml"], ["list"], ["run", "a.yaml"]]
    assert [language for language, _ in blocks(page)] == ["console", "python", ""]
