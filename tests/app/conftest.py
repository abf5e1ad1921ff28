"""What the tests of the page share: the page on a free port, and the system's Chromium with the network beyond shut."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.app.pictures import Limits
from vitrail.app.service import Service
from vitrail.app.session import ModelCache
from vitrail.models import load

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOURCES = Path(__file__).parents[2] / "src"
LIMITS = Limits(bytes=2_000_000, pixels=4_000_000)


def encoded(picture: np.ndarray, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def creature() -> bytes:
    """A PNG of a tavel, 180 pixels a side."""
    from vitrail.bestiary import render, sample_scene

    return encoded(render(sample_scene("single", seed=23, species="tavel"), 180).image)


@pytest.fixture
def service() -> Service:
    return new_service()


def new_service() -> Service:
    return Service(ModelCache("bestiary", load=lambda name, checkpoint: load(name)), LIMITS)


def ask(client: Any, do: str, *, link: str = "", tab: str = "tests", file: tuple | None = None, **given: Any) -> Any:
    """The answer to a question as the page's script asks it; `file` is (name, bytes)."""
    question = {"do": do, "tab": tab, "link": link, "given": given}
    if file is None:
        return client.post("/ask", json=question)
    return client.post("/ask", data={"question": json.dumps(question)}, files={"file": file})


def events_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


class Running:
    """The page as its command serves it, in a process of its own, on a free port."""

    def __init__(self, *words: str, auth: str | None = None, token: bool = False) -> None:
        command = [sys.executable, "-m", "vitrail.cli", "app", "--port", "0", "--no-browser", *words]
        command += [] if token or auth else ["--no-token"]
        command += ["--max-bytes", str(LIMITS.bytes), "--max-pixels", str(LIMITS.pixels)]
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1"}
        environment |= {} if auth is None else {"VITRAIL_AUTH": auth}
        self.begin(command, environment)

    def begin(self, command: list[str], environment: dict[str, str]) -> None:
        """Start the command, and wait until the page is there."""
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.printed = line.partition(" at ")[2].split()[0] if " at " in line else ""
        self.address = self.printed.partition("?")[0].rstrip("/")
        self.said: list[str] = [line]
        assert self.address, line + self.process.stdout.read()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until = time.monotonic() + 240  # on a busy machine
        while not self._answers():
            assert time.monotonic() < until, "the page did not start"
            time.sleep(0.1)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.said += iter(self.process.stdout.readline, "")

    def _answers(self) -> bool:
        import httpx2 as httpx

        try:
            return httpx.get(self.address + "/", timeout=5).status_code in (200, 401)
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="session")
def page_server() -> Iterator[Running]:
    if importlib.util.find_spec("starlette") is None:
        pytest.skip("needs the extra app: pip install 'vitrail[app]'")
    running = Running()
    yield running
    running.stop()


@pytest.fixture(scope="module")  # Playwright's greenlets, while they live, upset Python 3.11 in importing modules
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not installed here (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """Somebody at the page. Whatever it asks of another machine is refused, and held against it."""

    def __init__(self, browser: Any, server: Running, **look: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | look)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.server, self.elsewhere, self.errors = server, [], []
        self.page.route("**/*", self._route)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.wait_for_function = self.until  # Playwright's own makes code of text, which the page's policy forbids

    def _route(self, route: Any) -> None:
        if route.request.url.startswith((self.server.address, "data:", "blob:")):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def _heard(self, message: Any) -> None:
        if "Content Security Policy" in message.text or "EvalError" in message.text:
            self.errors.append(message.text)

    def until(self, true: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(true):
            assert time.monotonic() < end, f"never true: {true}"
            self.page.wait_for_timeout(50)

    def come(self, link: str = "") -> Any:
        self.page.goto(self.server.address + "/" + link)
        self.page.locator("[data-class]").first.wait_for(state="attached")  # the view of words hides them
        return self.page

    def upload(self, data: bytes, name: str = "mine.png") -> None:
        file = {"name": name, "mimeType": "image/png", "buffer": data}
        self.page.locator("input[aria-label='Choose a photograph']").set_input_files(file)

    def linked(self, *words: str) -> None:
        """Wait until the address says all of these."""
        said = " && ".join(f"location.search.includes({word!r})" for word in words)
        self.page.wait_for_function(said)

    def leave(self) -> None:
        self.context.close()
        assert not self.elsewhere, f"the page asked other machines: {self.elsewhere}"
        assert not self.errors, f"the page's script failed: {self.errors}"


@pytest.fixture
def visitor(chromium: Any, page_server: Running) -> Iterator[Visitor]:
    one = Visitor(chromium, page_server)
    yield one
    one.leave()


def saved(download: Any) -> bytes:
    return Path(download.path()).read_bytes()
