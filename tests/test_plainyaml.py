"""YAML as settings need it: bombs and doubtful words are refused soon, in one line that names the place."""

from __future__ import annotations

import re
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segdistill import plainyaml
from segdistill.config import UserError, read_yaml
from segdistill.recipe import apply

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join(9 * [f'*a{i - 1}'])}]\n  k{i}: 1\n" for i in range(1, 12)
)
REFUSED = {
    "laughs": (LAUGHS, "more than 20,000 values, those of aliases counted at every use"),
    "merges": (MERGES, "more than 20,000 values"),
    "recursion": ("a: &a [*a]", "an alias contains itself"),
    "merged into itself": ("a: &a {<<: *a}", "an alias contains itself"),
    "list depth": ("a: " + "[" * 100_000, "nested deeper than 40 levels"),
    "block depth": ("- " * 60_000, "nested deeper than 40 levels"),
    "key depth": ("? " * 60_000, "nested deeper than 40 levels"),
    "length": ("a: " + "x" * plainyaml.LONGEST, "262,147 characters; allowed: 262,144"),
    "digits": (f"a: 1\nb: {'9' * 5000}", "line 2: a number of 5,000 characters"),
    "clock": ("a: " + "1:" * 50_000 + "1", "a number of 100,001 characters"),
    "twice": ("a: 1\nb: {c: 1,\n  c: 2}", "line 3: the key 'c' appears twice"),
    "twice in numbers": ("1: a\n0x1: b", "line 2: the key '1' appears twice"),
    "python": ("a: !!python/object/apply:os.system [ls]", "line 1: the tag !!python/object/apply:os.system"),
    "own tag": ("a: !x 1", "line 1: the tag !x is not supported"),
    "set": ("a: !!set {x}", "line 1: the tag !!set is not supported"),
    "binary": ("\na: !!binary aGk=", "line 2: the tag !!binary is not supported"),
    "wrong tag": ("a: !!int b", "line 1: 'b' is not a valid int"),
    "wrong truth": ("a: !!bool b", "line 1: 'b' is not a valid bool"),
    "empty int": ("a: !!int ''", "line 1: '' is not a valid int"),
    "true key": ("yes: 1", "a key must be text or a whole number, got 'yes'; quote it"),
    "null key": ("~: 1", "got '~'; quote it"),
    "number key": ("1.5: 1", "got '1.5'; quote it"),
    "list key": ("? [a]\n: 1", "got a list or a group; quote it"),
    "escape": ('a: "x\\0"', "line 1: text with the character '\\x00'"),
    "half a character": ('a: "\\ud800"', "text with the character '\\ud800'"),
    "control": ("a: \x07", "special characters are not allowed"),
    "two texts": ("a: 1\n---\nb: 2", "expected a single document"),
    "unknown alias": ("a: *b", "undefined alias"),
    "merged text": ("<<: a", "line 1: << merges groups"),
}


@pytest.mark.parametrize("text, message", REFUSED.values(), ids=REFUSED)  # noqa: PT006
def test_what_is_no_plain_yaml_is_refused_soon_in_one_line(text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        plainyaml.load(text)
    assert time.process_time() - began < 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [text for text, _ in REFUSED.values() if "---" not in text], ids=len)
def test_a_file_and_an_override_refuse_the_same_texts(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (lambda: read_yaml(path, "menu", ""), lambda: apply({}, f"a={text}")):
        with pytest.raises(UserError) as caught:
            read()
        assert len(str(caught.value)) < 2000
        assert str(caught.value).isprintable()


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["C"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(TREES)
def test_plain_values_are_read_as_pyyaml_reads_them(tree):
    for flow in (True, False):
        text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True)
        assert plainyaml.load(text) == yaml.safe_load(text) == tree


def test_aliases_and_merges_are_copies_and_own_keys_win():
    text = "a: &a {x: 1, y: 2}\nb: &b {x: 5, z: 6}\nc: {<<: *a, y: 3}\nd: *a\ne: {x: 0, <<: [*a, *b]}\n"
    values = plainyaml.load(text)
    assert values == yaml.safe_load(text)
    values["d"]["x"] = 9
    assert values["a"] == {"x": 1, "y": 2}


def test_dates_are_text_and_an_empty_text_is_nothing():
    assert plainyaml.load("a: 2026-02-31\nb: 2026-01-01 10:00:00\nc: =") == {
        "a": "2026-02-31", "b": "2026-01-01 10:00:00", "c": "="}  # fmt: skip
    assert plainyaml.load("") is plainyaml.load("# nothing") is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(tmp_path, encoding):
    (tmp_path / "x.yaml").write_bytes("caf\u00e9: 1".encode(encoding))
    assert read_yaml(tmp_path / "x.yaml", "menu", "") == {"caf\u00e9": 1}
