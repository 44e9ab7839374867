"""What the page does in a browser, with its script and without: enlarged pictures, the slider, sorted tables, CSV."""

from __future__ import annotations

import csv
import io
import json
from statistics import fmean, stdev
from urllib.parse import unquote

import pytest

from browser import browser
from fake_runs import SOURCE, UNSEEN, WORST_PICTURES, make_run
from segdistill.report import render
from segdistill.results import collect
from test_axe import faults


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two arms of two seeds: folder -> results."""
    root = tmp_path_factory.mktemp("runs")
    return {
        root / f"{name}-{seed}": make_run(root / f"{name}-{seed}", name, title, seed, strength, pictures=WORST_PICTURES)
        for seed in range(2)
        for name, title, strength in (("plain", 'Plain, "no" KD', 0.15), ("gkd", "GKD", 0.31))
    }


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(collect(list(runs))), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def wide(tab, width=1280):
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)


def key(tab, name):
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode={"Escape": 27}[name])


def color_at(tab, share):
    """The colour that the screen shows at this share of the stage's width, in its middle row."""
    box = tab.run("(({x, y, width, height}) => [x, y, width, height])"
                  "(document.querySelector('.stage').getBoundingClientRect())")  # fmt: skip
    clip = {"x": box[0] + share * box[2], "y": box[1] + box[3] * 32.5 / 64, "width": 1, "height": 1, "scale": 1}
    shot = tab.call("Page.captureScreenshot", clip=clip)["data"]
    return tab.run("fetch('data:image/png;base64," + shot + "').then(r => r.blob()).then(createImageBitmap).then(b => {"
                   "const c = new OffscreenCanvas(1, 1).getContext('2d'); c.drawImage(b, 0, 0);"
                   "return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3)})")  # fmt: skip


def expected(tab, part, share):
    """The colour of a scene's own picture at the same place."""
    return tab.run(f"(() => {{ const image = document.querySelector('.scene .{part} img');"
                   "const c = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext('2d');"
                   "c.drawImage(image, 0, 0);"
                   f"return [...c.getImageData(Math.floor({share} * image.naturalWidth), image.naturalHeight / 2, 1, 1)"
                   ".data].slice(0, 3) })()")  # fmt: skip


def slide(tab, number, value):
    tab.run(f"(() => {{ const input = document.querySelectorAll('#zoom input')[{number}]; input.value = {value};"
            "input.dispatchEvent(new Event('input')) })()")  # fmt: skip


def test_a_prediction_is_enlarged_over_its_image_and_the_slider_uncovers_the_ground_truth(tab, page):
    # the page's policy forbids fetch; the pixels are read with it off
    tab.call("Page.setBypassCSP", enabled=True)
    wide(tab)
    tab.go(page)
    assert tab.run("[...document.querySelectorAll('.hint')].every(hint => hint.checkVisibility())")
    before = tab.run("document.querySelector('.scene .answer img').clientWidth")
    tab.run("(button => { button.focus({preventScroll: true}); button.click() })"
            "(document.querySelector('.scene .answer button'))")  # fmt: skip
    assert tab.run("document.querySelector('#zoom').open")
    assert tab.run("document.querySelector('.stage').clientWidth") > 3 * before
    left, right = 39.5 / 128, 90.5 / 128  # the middles of two of the 128 columns
    slide(tab, 0, 100)  # all ground truth
    assert color_at(tab, left) == expected(tab, "truth", left)
    slide(tab, 0, 0)
    assert color_at(tab, left) == expected(tab, "answer", left)
    slide(tab, 0, 50)
    assert color_at(tab, left) == expected(tab, "truth", left)
    assert color_at(tab, right) == expected(tab, "answer", right)
    slide(tab, 1, 0)  # the image alone: a jpeg or smoothed, so about
    pale = color_at(tab, left)
    assert pale != expected(tab, "truth", left)
    assert max(abs(a - b) for a, b in zip(pale, expected(tab, "image", left), strict=True)) < 60
    key(tab, "Escape")
    assert not tab.run("document.querySelector('#zoom').open")
    assert tab.run("document.activeElement.className") == "open"  # the focus is where it was
    tab.call("Page.setBypassCSP", enabled=False)


def test_a_drag_moves_the_divider_and_a_photograph_has_none(tab, page):
    wide(tab)
    tab.go(page)
    tab.run("document.querySelector('.scene .answer button').click()")
    x, y, width = tab.run(
        "(({x, y, width}) => [x, y, width])(document.querySelector('.stage').getBoundingClientRect())"
    )
    for kind, at in (("mousePressed", 0.5), ("mouseMoved", 0.2), ("mouseReleased", 0.2)):
        tab.call("Input.dispatchMouseEvent", type=kind, x=x + at * width, y=y + 20, button="left", buttons=1,
                 clickCount=1)  # fmt: skip
    assert tab.run("Number(document.querySelector('#zoom input').value)") == pytest.approx(20, abs=2)
    tab.run("[...document.querySelectorAll('#zoom button')].find(b => b.textContent === 'Next').click()")
    titles = tab.run("document.querySelector('#zoom h2').textContent")
    assert titles.startswith("Plain")  # after the teacher
    tab.run("document.querySelector('#zoom .close').click(); document.querySelector('.scene .image button').click()")
    assert tab.run("document.querySelector('#zoom .controls').hidden")
    assert tab.run("document.querySelectorAll('.stage img').length") == 1


def test_the_csv_holds_the_measured_values_of_the_results_in_the_order_of_the_table(tab, page, runs):
    wide(tab)
    tab.go(page)
    read = "document.querySelector('#table a.csv').href"
    head, *rows = csv.reader(io.StringIO(unquote(tab.run(read).partition(",")[2])))
    assert tab.run("document.querySelectorAll('a.csv').length === document.querySelectorAll('table').length")
    by_title = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(by_title) == ["Teacher", 'Plain, "no" KD', "GKD"]
    for domain in (*SOURCE, *UNSEEN):
        values = [r["models"]["student"]["domains"][domain]["miou"] for r in runs.values() if r["name"] == "gkd"]
        assert float(by_title["GKD"][domain]) == pytest.approx(fmean(values), rel=1e-12)
        assert float(by_title["GKD"][f"{domain} spread"]) == pytest.approx(100 * stdev(values), abs=0.051)
    assert by_title["Teacher"]["retention (%)"] == ""
    name = tab.run("document.querySelector('#table a.csv').download")
    assert name == "miou-in-percent.csv"
    tab.run("[...document.querySelectorAll('#table thead button')].find(b => b.textContent === 'model').click()")
    tab.run("document.querySelector('#table a.csv').dispatchEvent(new Event('click'))")
    again = list(csv.reader(io.StringIO(unquote(tab.run(read).partition(",")[2]))))
    shown = json.loads(tab.run("JSON.stringify([...document.querySelectorAll('#table table tbody tr')]"
                               ".map(row => row.cells[0].textContent))"))  # fmt: skip
    assert [row[0] for row in again[1:]] == shown
    assert sorted(shown) == sorted(by_title)
    assert shown != list(by_title)


def test_columns_and_order_fit_the_screen(tab, page):
    for width, columns in ((1280, range(4, 7)), (1920, range(4, 7)), (390, (2,))):
        wide(tab, width)
        tab.go(page)
        lefts = tab.run(
            "[...new Set([...document.querySelectorAll('.scene')].flatMap(scene => "
            "[...scene.children].map(figure => Math.round(figure.getBoundingClientRect().left))))]"
        )
        assert len(lefts) in columns, (width, lefts)
        first = tab.run(
            "[...document.querySelector('.scene').children].map(figure => [figure.className, "
            "figure.offsetTop * 10000 + figure.offsetLeft]).sort((a, b) => a[1] - b[1])[0][0]"
        )
        assert first == ("answer" if width == 390 else "image")


def test_the_worst_images_stand_in_their_gallery_with_their_scores(tab, page):
    wide(tab)
    tab.go(page)
    best, *notes = tab.run("[...document.querySelectorAll('#failures .note')].map(note => note.textContent)")
    assert best == "The images on which GKD, the best student, scores lowest."
    # by domain in the page's order, the worst first
    assert notes == [
        f'image {index}, mIoU of this image: Plain, "no" KD {score}, GKD {score}'
        for index, score in ((4, "2.1"), (7, "30.0"), (2, "5.0"), (0, "10.0"))
    ]
    heads = tab.run("[...document.querySelectorAll('#failures article h3')].map(head => head.textContent)")
    assert heads == ["night unseen", "fog unseen"]


def test_without_a_script_the_page_reads_the_same_and_offers_no_dead_button(tab, page):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    wide(tab)
    tab.go(page)
    assert tab.run("document.querySelectorAll('button, dialog, a.csv').length") == 0
    assert tab.run("[...document.querySelectorAll('.hint')].every(hint => !hint.checkVisibility())")
    assert tab.run("document.querySelectorAll('.scene img').length") > 0
    tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_axe_finds_no_serious_fault_while_a_prediction_is_enlarged(tab, page):
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        wide(tab, width)
        tab.go(page)
        tab.run("document.querySelector('.scene .answer button').click()")
        assert tab.run("document.querySelector('#zoom').open")
        assert not faults(tab, scheme, width), (scheme, width)
        assert tab.run("(box => box.right <= innerWidth && box.bottom <= innerHeight)"
                       "(document.querySelector('#zoom').getBoundingClientRect())")  # fmt: skip
