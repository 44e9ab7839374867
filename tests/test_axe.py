"""The pages in a browser, checked for accessibility by axe-core: in both colour schemes and at a phone's width."""

from __future__ import annotations

from importlib.resources import files

import pytest

from browser import browser
from fake_runs import ALL_PICTURES, make_run
from fake_tables import PAPER, result
from segdistill.report import render
from segdistill.results import collect

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
SEEN = (("light", 1280), ("dark", 1280), ("light", 390))


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def runs(folder):
    """The page of two arms of two seeds, with pictures."""
    for seed in range(2):
        for name, strength in (("plain", 0.15), ("gkd", 0.31)):
            make_run(folder / f"{name}-{seed}", name, name, seed, strength, pictures=ALL_PICTURES)
    return render(collect(sorted(folder.iterdir())))


def table(folder):
    """The page of a table beside the paper's numbers."""
    return render(result(folder, {(row, "", seed): 0.2 + row / 10 + seed / 50 for row in range(3) for seed in range(2)},
                         paper=PAPER))  # fmt: skip


def faults(tab, scheme, width):
    """What axe finds on the open page: rule, impact and the first places."""
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    tab.run((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8") + "; 1")
    found = tab.run(f"axe.run({RULES}).then(found => found.violations.map(fault => "
                    "[fault.id, fault.impact, fault.nodes.slice(0, 3).map(node => node.html)]))")  # fmt: skip
    assert tab.run("document.documentElement.scrollWidth <= window.innerWidth"), "the page is wider than the window"
    return [fault for fault in found if fault[1] in ("serious", "critical")]


@pytest.mark.parametrize("make", [runs, table], ids=["runs", "table"])
def test_axe_finds_no_serious_fault_on_a_page(tmp_path, tab, make):
    path = tmp_path / "page.html"
    text = make(tmp_path / "runs")
    path.write_text(text, encoding="utf-8")
    for scheme, width in SEEN:
        tab.go(path.as_uri())
        assert not faults(tab, scheme, width), (scheme, width)


def test_axe_sees_what_is_wrong(tmp_path, tab):
    path = tmp_path / "page.html"
    path.write_text("<title>x</title><img src='a.png'><p style='color:#aaa;background:#fff'>pale</p>", encoding="utf-8")
    tab.go(path.as_uri())
    assert {"image-alt", "color-contrast"} <= {fault[0] for fault in faults(tab, "light", 1280)}
