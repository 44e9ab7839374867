"""A page on this computer to drop images on: model, teacher, confidence or scores, and where the two differ.

A program can post images to ``/predict`` too and gets JSON: class shares of a model of class maps; score, class, box
and run lengths of every object that a model of objects finds (``?score=0.3``: of at least this score, by default 0.5);
a detector's objects have no run lengths.

The standard library's server, bound to 127.0.0.1. Only requests that name this server as their host and their origin
are answered, so that no other page in the browser can use it; nothing is written to disk.
"""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from PIL import Image

from segdistill.config import UserError, first_line
from segdistill.data.archives import BadSample
from segdistill.inference.inputs import decode
from segdistill.inference.model import Model, ObjectModel, teacher_here
from segdistill.inference.objects import SHOWN, ObjectResult
from segdistill.inference.result import Result
from segdistill.pictures import colorize, overlay

MOST_BYTES = 32 * 2**20  # of an upload
MOST_PIXELS = 40_000_000  # of an image
LONGEST = 1024  # side of the pictures that are sent back, pixels
SAME = 235  # grey of the pixels on which model and teacher agree
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Refused(Exception):
    """A request that gets no prediction: its HTTP status and one line for the user."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class Server(ThreadingHTTPServer):
    """Serves ``model`` at :attr:`url`; one image is predicted at a time."""

    daemon_threads = True

    def __init__(self, model: Model | ObjectModel, port: int) -> None:
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error.strerror}): choose another --port, 0 is any") from None
        self.model, self.lock = model, threading.Lock()
        log = logging.getLogger(__name__)
        self.teacher = teacher_here(model, lambda line: log.warning("warning: %s", line))
        page = files("segdistill.inference").joinpath("serve.html").read_text(encoding="utf-8")
        self.page = page.replace("TITLE", html.escape(model.title or "segdistill")).encode()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def answer(self, content: bytes, name: str, score: float | None = None) -> dict[str, Any]:
        """What the page shows of one uploaded file; ``score``: the least of objects."""
        if score is not None and isinstance(self.model, Model):
            raise UserError("score is for models of objects; this one predicts class maps")
        with self.lock:  # decoding changes settings that Pillow keeps for all threads
            pixels = read_upload(content, name)
            result = self.model.predict(pixels)
            teacher = None if self.teacher is None else self.teacher.predict(pixels)
        if isinstance(result, ObjectResult):
            assert teacher is None or isinstance(teacher, ObjectResult)
            return describe_objects(result, teacher, SHOWN if score is None else score)
        assert isinstance(result, Result)
        assert teacher is None or isinstance(teacher, Result)
        return describe(result, teacher)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, but nothing where the browser has closed the connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """The page, and predictions for what is posted to ``/predict``."""

    server: Any  # a Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that an upload may pause

    def do_GET(self) -> None:
        """The page."""
        try:
            self._check_host()
            if self.path.partition("?")[0] != "/":
                raise Refused(HTTPStatus.NOT_FOUND, "there is one page here: /")
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        except Refused as refused:
            self._refuse(refused)

    def do_POST(self) -> None:
        """A prediction for the image in the body."""
        try:
            self._check_host()
            path, _, text = self.path.partition("?")
            if path != "/predict":
                raise Refused(HTTPStatus.NOT_FOUND, "images are posted to /predict")
            content = self.rfile.read(self._length())
            query = parse_qs(text)
            name = query.get("name", ["the image"])[0]
            answer = self._answer(content, name, _number(query.get("score", [""])[0]))
            self._send(HTTPStatus.OK, "application/json", json.dumps(answer).encode())
        except Refused as refused:
            self._refuse(refused)
        except UserError as error:
            self._refuse(Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))

    def _answer(self, content: bytes, name: str, score: float | None) -> dict[str, Any]:
        try:
            return self.server.answer(content, name, score)
        except (Refused, UserError):
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("prediction failed")
            line = f"{name} could not be predicted: {first_line(error)}"
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, line) from error

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the page says what happened."""

    def _check_host(self) -> None:
        """Only this server's own page may ask."""
        names = {f"{host}:{self.server.server_port}" for host in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in names or origin not in (None, *(f"http://{name}" for name in names)):
            raise Refused(HTTPStatus.FORBIDDEN, f"open {self.server.url} on this computer")

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", text):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the upload does not say how long it is")
        if int(text) > MOST_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the file has {int(text) / 2**20:.0f} MiB, more than {MOST_BYTES // 2**20}: use segdistill predict",
            )
        return int(text)

    def _refuse(self, refused: Refused) -> None:
        self.close_connection = True  # what is left of the body is not read
        self._send(refused.status, "application/json", json.dumps({"error": refused.line}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers: Mapping[str, str] = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        for key, value in headers.items():
            self.send_header(key, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def read_upload(content: bytes, name: str) -> np.ndarray:
    """The image (H, W, 3) in an uploaded file; :class:`Refused` where it is none, damaged, or too large."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except Exception:  # noqa: BLE001  what Pillow raises for foreign bytes is not limited to its own errors
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{name} is no image that can be read") from None
    if width * height > MOST_PIXELS:
        line = f"{name} has more than {MOST_PIXELS // 10**6} megapixels: use segdistill predict"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
    try:
        return decode(content, name)
    except BadSample as error:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from None


def describe(result: Result, teacher: Result | None) -> dict[str, Any]:
    """Numbers and pictures of a prediction as JSON: shares of classes, PNG as data URIs."""
    height, width = result.classes.shape
    pictures = {
        "image": result.image,
        "student": overlay(result.image, result.classes, result.colors),
        "confidence": np.repeat(result.grey()[..., None], 3, axis=2),
    }
    agreement = None
    if teacher is not None:
        same = result.classes == teacher.classes
        agreement = float(same.mean())
        pictures["teacher"] = overlay(result.image, teacher.classes, teacher.colors)
        pictures["disagreement"] = np.where(same[..., None], np.uint8(SAME), colorize(result.classes, result.colors))
    order = ("image", "student", "teacher", "confidence", "disagreement")
    return {
        "height": height,
        "width": width,
        "confidence": float(result.confidence.mean()),
        "agreement": agreement,
        "classes": [
            {"name": name, "share": share, "color": _hex(result.colors[result.names.index(name)])}
            for name, share in result.shares().items()
        ],
        "pictures": {kind: _data_uri(pictures[kind]) for kind in order if kind in pictures},
    }


def describe_objects(result: ObjectResult, teacher: ObjectResult | None, score: float) -> dict[str, Any]:
    """The objects of at least ``score`` as JSON (see :meth:`.ObjectResult.records`), and pictures as data URIs."""
    shown = result.above(score)
    height, width = result.detections.size
    counts = Counter(shown.class_names)
    pictures = {"image": result.image, "student": np.asarray(shown.overlay(score))}
    if teacher is not None:
        pictures["teacher"] = np.asarray(teacher.overlay(score))
    return {
        "height": height,
        "width": width,
        "score": score,
        "objects": shown.records(),
        "classes": [
            {"name": name, "count": count, "color": _hex(result.colors[result.names.index(name)])}
            for name, count in counts.most_common()
        ],
        "pictures": {kind: _data_uri(pixels) for kind, pixels in pictures.items()},
    }


def _number(text: str) -> float | None:
    """A number of a query, None if there is none."""
    try:
        return float(text) if text else None
    except ValueError:
        raise UserError(f"score must be a number between 0 and 1, got '{text}'") from None


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _data_uri(pixels: np.ndarray) -> str:
    """A picture of at most LONGEST pixels a side as PNG in a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST, LONGEST))
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
