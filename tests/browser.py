"""Chromium without a window, driven over a pipe with its DevTools protocol: no driver and no library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
           "--no-first-run", "--disable-background-networking", "--disable-component-update")  # fmt: skip


def executable() -> str:
    """The browser of this machine; ``.ci/run`` provides for one."""
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, f"the tests drive a browser: install one of {', '.join(NAMES)}, or set CHROMIUM to its path"
    return found


class Page:
    """One tab."""

    def __init__(self, to_browser: Any, from_browser: Any) -> None:
        self._to, self._from, self._number, self._session = to_browser, from_browser, 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("DOM.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._to.write(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        self._to.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        parts = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts += byte
        return bytes(parts)

    def go(self, url: str) -> None:
        """Open ``url`` and wait until it is complete."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Wait until the expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"still not: {script}"
            time.sleep(0.05)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose files in an input, as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a fresh browser, which keeps its files in ``profile``."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    command = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", str(their_in), str(their_out), executable(), *OPTIONS,
         f"--user-data-dir={profile}"],
        pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(their_in)
    os.close(their_out)
    with os.fdopen(our_out, "wb") as to_browser, os.fdopen(our_in, "rb") as from_browser:
        try:
            yield Page(to_browser, from_browser)
        finally:
            process.kill()
            process.wait()
