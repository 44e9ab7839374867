"""`segdistill serve`: predictions over HTTP, what is refused, and the page in a browser."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from browser import browser
from segdistill.config import UserError
from segdistill.inference import serve
from segdistill.inference.model import Model, load
from segdistill.inference.serve import Server
from segdistill.objects import decode


@pytest.fixture(scope="module")
def server(finished):
    with Server(load(finished, device="cpu"), 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def png(size=(40, 72), mode="RGB") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


def ask(server, method, path, body=None, **headers):
    """(status, answer) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_answer_is_what_the_models_predict(server):
    status, answer = ask(server, "POST", "/predict?name=a.png", png())
    assert status == 200
    pixels = np.array(Image.open(io.BytesIO(png())))
    own, teacher = server.model.predict(pixels), server.model.teacher.predict(pixels)
    assert answer["confidence"] == pytest.approx(own.confidence.mean())
    assert answer["agreement"] == np.mean(own.classes == teacher.classes)
    assert {each["name"]: each["share"] for each in answer["classes"]} == own.shares()
    assert list(answer["pictures"]) == ["image", "student", "teacher", "confidence", "disagreement"]
    assert np.array_equal(picture(answer["pictures"]["image"]), pixels)
    assert np.array_equal(picture(answer["pictures"]["student"]), np.asarray(own.overlay()))
    differs = picture(answer["pictures"]["disagreement"])
    assert (differs[own.classes == teacher.classes] == 235).all()
    assert np.array_equal(differs[own.classes != teacher.classes], own.colored()[own.classes != teacher.classes])


def test_objects_are_answered_as_json_and_as_a_picture(finished_objects):
    with Server(load(finished_objects, device="cpu"), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = server.model.predict(np.array(Image.open(io.BytesIO(png()))))
        least = float(own.scores[3])
        status, answer = ask(server, "POST", f"/predict?name=a.png&score={least}", png())
        assert (status, ask(server, "POST", "/predict?score=2", png())[0]) == (200, 422)
        assert ask(server, "POST", "/predict?score=x", png())[1]["error"].startswith("score must be a number")
        assert ask(server, "POST", "/predict", png())[1]["score"] == 0.5
        server.shutdown()
    assert answer["objects"] == own.above(least).records()
    assert len(answer["objects"]) >= 4
    assert sum(each["count"] for each in answer["classes"]) == len(answer["objects"])
    for each, mask in zip(answer["objects"], own.masks(), strict=False):
        assert (decode(each["segmentation"]) == mask).all()
    assert list(answer["pictures"]) == ["image", "student", "teacher"]
    assert np.array_equal(picture(answer["pictures"]["student"]), np.asarray(own.overlay(least)))


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"", 415, "a.png is no image"),
        (b"no image at all", 415, "a.png is no image"),
        (png()[:200], 415, "a.png"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "a.png is no image"),
    ],
    ids=["empty", "text", "cut", "svg"],
)
def test_bad_uploads_are_refused_in_one_line(server, body, status, line):
    got, answer = ask(server, "POST", "/predict?name=a.png", body)
    assert got == status
    assert line in answer["error"]
    assert "\n" not in answer["error"]


def test_sizes_are_limited(server, monkeypatch):
    monkeypatch.setattr(serve, "MOST_PIXELS", 40 * 72 - 1)
    status, answer = ask(server, "POST", "/predict?name=a.png", png())
    assert (status, "megapixels" in answer["error"]) == (413, True)
    monkeypatch.setattr(serve, "MOST_BYTES", len(png()) - 1)
    status, answer = ask(server, "POST", "/predict?name=a.png", png())
    assert (status, "MiB" in answer["error"]) == (413, True)
    assert ask(server, "POST", "/predict", b"", Transfer_Encoding="chunked")[0] == 411
    for length in ("\u00b2", "1" * 5000):
        assert ask(server, "POST", "/predict", b"", Content_Length=length)[0] == 411


def test_an_error_of_the_model_is_an_answer(server, monkeypatch):
    def full(_):
        assert server.lock.locked()
        raise RuntimeError("out of memory\nat line 3")

    monkeypatch.setattr(server.model, "predict", full)
    assert ask(server, "POST", "/predict?name=a.png", png()) == (
        500, {"error": "a.png could not be predicted: out of memory"})  # fmt: skip
    monkeypatch.undo()
    monkeypatch.setattr(serve, "decode", full)  # settings of Pillow belong to all threads
    assert ask(server, "POST", "/predict?name=a.png", png())[0] == 500


@pytest.mark.parametrize(("error", "told"), [(BrokenPipeError(), False), (RuntimeError("odd"), True)])
def test_a_closed_tab_prints_nothing(server, capsys, error, told):
    try:
        raise error
    except type(error):
        server.handle_error(None, ("127.0.0.1", 1))
    assert ("odd" in capsys.readouterr().err) is told


def test_a_teacher_that_cannot_be_loaded_is_left_out(server, caplog):
    def lost():
        raise UserError("no weights at 'x'; or score only the student with --role student")

    own = server.model
    with Server(Model(own.segmenter, own.names, own.colors, teacher=lost), 0) as alone:
        assert alone.answer(png(), "a.png")["agreement"] is None
    assert caplog.messages == ["warning: nothing is compared with the teacher: no weights at 'x'"]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_every_mode_of_pillow_is_read(server, mode):
    assert ask(server, "POST", "/predict?name=a.png", png(mode=mode))[0] == 200


def test_only_this_computers_own_page_is_answered(server):
    own = f"127.0.0.1:{server.server_port}"
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "GET", "/", Host="evil.example")[0] == 403
    assert ask(server, "POST", "/predict", png(), Host=own, Origin="http://evil.example")[0] == 403
    assert ask(server, "POST", "/predict", png(), Host=own, Origin=f"http://{own}")[0] == 200
    assert ask(server, "POST", "/predict", png(), Host=own, Origin="http://[")[0] == 403
    assert ask(server, "GET", "HTTP://[")[0] == ask(server, "POST", "HTTP://[", b"")[0] == 404
    connection = http.client.HTTPConnection(own, timeout=60)
    connection.request("GET", "/")
    assert "frame-ancestors 'none'" in connection.getresponse().headers["Content-Security-Policy"]
    connection.close()
    assert ask(server, "GET", "/etc/passwd")[0] == ask(server, "POST", "/", b"")[0] == 404


def test_a_port_that_is_taken_is_one_line(server):
    with pytest.raises(UserError, match=r"port .* cannot be used .*choose another --port"):
        Server(server.model, server.server_port)


def test_the_page_in_a_browser(server, tmp_path):
    good, bad = tmp_path / "street <b>.png", tmp_path / "notes.png"
    good.write_bytes(png())
    bad.write_text("no image")
    with browser(tmp_path / "profile") as page:
        page.go(server.url)
        page.choose_files("#files", good, bad)
        page.wait("document.getElementById('state').textContent === '2 images done'")
        page.wait("[...document.images].every(image => image.complete)")
        sizes = page.run("[...document.images].map(image => [image.naturalHeight, image.naturalWidth])")
        assert sizes == [[40, 72]] * 5
        assert page.run("[...document.images].every(image => image.alt.endsWith(' of street <b>.png'))")
        captions = page.run("[...document.querySelectorAll('figcaption')].map(each => each.textContent)")
        assert captions[:3] == ["image", "model", "teacher"]
        heads = page.run("[...document.querySelectorAll('h2')].map(each => each.textContent)")
        assert heads == ["notes.png", "street <b>.png"]
        assert "is no image" in page.run("document.querySelector('.error').textContent")
        page.run(  # the same file again, dropped
            "(() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'dropped.png'));"
            " document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data})); })()"
        )
        page.wait("document.querySelector('h2').textContent === 'dropped.png'")
