"""The house rules of CONTRIBUTING.md that a machine can check, each with a piece of code that breaks it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "segdistill"
FILE_LINES, FUNCTION_LINES, POSITIONAL, RECIPE_LINES = 400, 60, 6, 25
LETTERS = set("°±×·µ–—…→←↑↓≤≥≈²³äöüéÄÖÜßè")  # what may stand in code beside ASCII

Function = ast.FunctionDef | ast.AsyncFunctionDef
Check = Callable[[str], list[str]]


def sources(*folders: str) -> list[Path]:
    """All Python files of the named folders of the repository."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def texts() -> Iterator[Path]:
    """Everything that a reader of the repository reads."""
    yield from sources("src", "tests", "benchmarks")
    for folder, suffix in (("docs", "md"), ("benchmarks", "md"), ("recipes", "yaml")):
        yield from sorted((ROOT / folder).rglob(f"*.{suffix}"))
    yield from sorted(ROOT.glob("*.md"))
    yield from (ROOT / "pyproject.toml", ROOT / ".pre-commit-config.yaml", ROOT / ".ci" / "run")


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def file_length(source: str) -> list[str]:
    lines = len(source.splitlines())
    return [f"{lines} lines, allowed {FILE_LINES}"] if lines > FILE_LINES else []


def function_length(source: str) -> list[str]:
    """Lines from ``def`` to the end; a docstring costs nothing."""
    problems = []
    for function in functions(source):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if ast.get_docstring(function) is not None:
            lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
        if lines > FUNCTION_LINES:
            problems.append(f"line {function.lineno}: {function.name} has {lines} lines, allowed {FUNCTION_LINES}")
    return problems


def positional_parameters(source: str) -> list[str]:
    problems = []
    for function in functions(source):
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > POSITIONAL:
            problems.append(f"line {function.lineno}: {function.name} has {count} positional parameters")
    return problems


def prints(source: str) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [f"line {c.lineno}: print" for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def task_words(source: str) -> list[str]:
    """Names of one task's score: what reads results takes the primary score's name from there."""
    return [f"'{word}'" for word in re.findall(r"miou|mean iou", source, re.IGNORECASE)]


def target_words(source: str) -> list[str]:
    """One task's targets and networks: what trains, runs and shows knows none."""
    words = r"label[ _]maps?|class maps?|\b(?:load|save)_label\b|segmenter|sample\.label|confusion"
    return [f"'{word}'" for word in re.findall(words, source, re.IGNORECASE)]


def stage_kinds(source: str) -> list[str]:
    """Questions after the class of a stage or a task, where the tables answer."""
    return [f"'{words}'" for words in re.findall(r"isinstance\([^()]*(?:Stage|Task|Distill|Semantic)\w*\)", source)]


def habits(source: str) -> list[str]:
    """``global``, a bare ``except``, ``import *``."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Global):
            problems.append(f"line {node.lineno}: global {', '.join(node.names)}")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"line {node.lineno}: bare except")
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            problems.append(f"line {node.lineno}: from {node.module} import *")
    return problems


def docstrings(source: str) -> list[str]:
    """Modules, public classes (nested ones too) and public functions at module level say what they are."""
    tree = ast.parse(source)
    problems = [] if ast.get_docstring(tree) else ["the module has no docstring"]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for node in (*classes, *(node for node in tree.body if isinstance(node, Function))):
        if not node.name.startswith("_") and not ast.get_docstring(node):
            problems.append(f"line {node.lineno}: {node.name} has no docstring")
    return problems


def characters(source: str) -> list[str]:
    strange = sorted({letter for letter in source if ord(letter) > 127} - LETTERS)
    return [f"characters beside ASCII: {' '.join(strange)}"] if strange else []


def places(source: str) -> list[str]:
    """Folders of somebody's machine, and hosts that serve packages. Written so that this file holds none of them."""
    folders = "|".join(("work", "farm", "root", "home"))
    hosts = "|".join(("py" + r"pi\.org", "python" + "hosted", r"download\.py" + "torch", "ana" + r"conda\.(?:org|com)"))
    pattern = re.compile(rf"(?<![\w.*)\]}}-])/(?:{folders})/|{hosts}")
    return [f"'{match.group()}'" for match in pattern.finditer(source)]


def temporary(source: str) -> list[str]:
    return ["a fixed temporary folder"] if re.search(r"[\"' ]/" + "tmp", source) else []


def names_in(module: str) -> set[str]:
    """What a module of the package holds, its own modules included; empty where there is none."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = {each.stem for each in path.glob("*")}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ():
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def lost_imports(source: str) -> list[str]:
    """Names that are imported from the package and are not there; an ``except`` may try those of an older one."""
    tree = ast.parse(source)
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    allowed = {id(node) for handler in handlers for node in ast.walk(handler)}
    problems = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("segdistill")
            and id(node) not in allowed
        ):
            lost = [alias.name for alias in node.names if alias.name not in names_in(node.module or "")]
            problems += [f"line {node.lineno}: {node.module} has no {name}" for name in lost]
    return problems


PACKAGE_CHECKS: tuple[Check, ...] = (prints, docstrings, temporary)
CODE_CHECKS: tuple[Check, ...] = (file_length, function_length, positional_parameters, habits, characters)


def complaints(check: Check, paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {problem}" for path in paths for problem in check(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("check", CODE_CHECKS)
def test_all_code(check: Check) -> None:
    assert not complaints(check, sources("src", "tests", "benchmarks"))


@pytest.mark.parametrize("check", PACKAGE_CHECKS)
def test_package(check: Check) -> None:
    paths = [path for path in sources("src") if not (check is prints and path.parent == PACKAGE / "cli")]
    assert len(paths) > 5
    assert not complaints(check, paths)


def test_no_text_names_a_machine_or_a_package_host() -> None:
    assert not complaints(places, [path for path in texts() if path.exists()])


def test_benchmarks_and_pages_import_what_is_there() -> None:
    paths = sources("benchmarks", "docs")
    assert len(paths) > 20
    assert not complaints(lost_imports, paths)


@pytest.mark.parametrize("check", [task_words, target_words])
def test_what_trains_runs_and_shows_knows_no_task(check: Check) -> None:
    folders = ("report", "grid", "results", "runs", "train")
    readers = [path for name in folders for path in sorted((PACKAGE / name).rglob("*.*"))]
    assert {path.suffix for path in readers} >= {".py", ".html", ".css"}
    assert not complaints(check, [path for path in readers if path.suffix != ".pyc"])


def test_tables_answer_for_stages_and_tasks() -> None:
    assert not complaints(stage_kinds, sources("src"))


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (task_words, "domain['miou']"),
        (task_words, "the mIoU"),
        (target_words, "np.asarray(sample.label)"),
        (target_words, "a Segmenter"),
        (stage_kinds, "if isinstance(stage, TaskConfig):"),
        (file_length, "x = 1\n" * (FILE_LINES + 1)),
        (function_length, "def f():\n" + "    x = 1\n" * FUNCTION_LINES),
        (positional_parameters, "def f(self, a, b, c, d, e, f, g): ..."),
        (prints, "def f():\n    print(1)"),
        (habits, "def f():\n    global x"),
        (habits, "try:\n    x = 1\nexcept:\n    x = 2"),
        (habits, "from os import *"),
        (docstrings, "x = 1"),
        (docstrings, '"""Module."""\ndef f(): ...'),
        (docstrings, '"""Module."""\nclass A:\n    """A."""\n    class Config:\n        x = 1'),
        (characters, "x = '\N{GREEK SMALL LETTER ALPHA}'"),
        (places, "see /" + "work/main"),
        (places, "https://py" + "pi.org/simple"),
        (lost_imports, "from segdistill.predict import Wanted"),
        (lost_imports, "from segdistill.api import predicted"),
        (temporary, "open('/" + "tmp/x')"),
    ],
)
def test_each_check_sees_what_breaks_it(check: Check, bad: str) -> None:
    assert check(bad)


def test_the_limits_themselves_are_allowed() -> None:
    assert not file_length("x = 1\n" * FILE_LINES)
    assert not function_length('def f():\n    """Two\n    lines."""\n' + "    x = 1\n" * (FUNCTION_LINES - 1))
    assert not positional_parameters("def f(self, a, b, c, d, e, f, *, g): ...")
    assert not places("runs/home/x, https://host/x/work/y")


def test_arrows_point_down() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


TORCHLESS = ("config", "files", "environment", "runlog", "report", "results", "pictures", "cli")


def test_the_light_modules_load_no_torch() -> None:
    """What the page and the command line's help need must answer in half a second."""
    names = [name for name in TORCHLESS if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()]
    code = f"import sys, {', '.join(f'segdistill.{name}' for name in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0, names


def recipe_problems(text: str) -> list[str]:
    """A recipe is short, is one YAML mapping, and opens by saying where it comes from and what it costs."""
    head = re.match(r"(?:#.*\n)*", text)
    assert head is not None
    problems = [f"the opening comment lacks '{word}:'" for word in ("paper", "cost", "measured")
                if f"{word}:" not in head.group().lower()]  # fmt: skip
    if len(text.splitlines()) > RECIPE_LINES:
        problems.append(f"{len(text.splitlines())} lines, allowed {RECIPE_LINES}")
    if not isinstance(yaml.safe_load(text), dict):
        problems.append("is no mapping")
    return problems


def test_recipes_are_short_and_say_paper_cost_and_measured() -> None:
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    assert paths
    assert not complaints(recipe_problems, paths)


def test_the_recipe_check_sees_what_breaks_it() -> None:
    head = "# GKD. Paper: x, Table 1.\n# Cost: 1 h.\n# Measured: 40 mIoU.\n"
    assert recipe_problems(head + "a: 1\n") == []
    assert len(recipe_problems("a: 1\n" + head)) == 3
    assert recipe_problems(head + "a: 1\n" * RECIPE_LINES)
    assert recipe_problems(head + "- 1\n")


def test_the_lock_file_stays_out_of_git() -> None:
    assert "uv.lock" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.splitlines()) == 202
