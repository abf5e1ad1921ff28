"""Take the pictures of the web page: each view in Chromium, on creatures of the bestiary, into docs/pictures/app.

python docs/pictures/app.py
python docs/pictures/app.py --only map phone --chromium /usr/bin/chromium
"""

import argparse
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vitrail.app.server import application
from vitrail.app.service import Service
from vitrail.app.session import ModelCache
from vitrail.models import load

HERE = Path(__file__).parent / "app"
LARGEST = 330_000  # bytes of a picture


@contextmanager
def serving(server: Any) -> Iterator[str]:
    """A page on a free port."""
    running = uvicorn.Server(uvicorn.Config(server, port=0, log_level="warning"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def keep(page: Page, name: str, *, whole: bool = True) -> None:
    """The page as a JPEG, as good as is small enough; the whole of it, or what a window shows."""
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.move(2, 2)
    page.wait_for_timeout(400)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    file = io.BytesIO()
    for quality in range(90, 40, -5):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
        if file.tell() < LARGEST:
            break
    HERE.mkdir(exist_ok=True)
    (HERE / f"{name}.jpg").write_bytes(file.getvalue())


def opened(page: Page, link: str) -> None:
    page.goto(link)
    page.locator("[data-class]").first.wait_for()
    view = parse_qs(urlsplit(link).query).get("view", ["map"])[0]
    drawn(page, view)
    page.wait_for_timeout(800)


def drawn(page: Page, view: str) -> None:
    """Wait for the view that a link has asked for."""
    page.locator(f"#vt-view-{view} .vt-panel:visible").first.wait_for(timeout=300_000)


def asked(page: Page, link: str) -> None:
    """The words of an answer, one creature held against the other."""
    page.goto(link)
    words = page.locator(".words .answer button")
    words.nth(6).wait_for(timeout=300_000)
    page.locator("#vt-stop-words").wait_for(state="hidden")
    for number in (2, 6):
        words.nth(number).click()


VIEWS: dict[str, Callable[[Page, str], None]] = {
    "map": lambda page, at: opened(page, f"{at}?example=pair&target=0&against=8"),
    "patch": lambda page, at: opened(page, f"{at}?example=pair&target=0&against=8&row=8&col=8"),
    "layers": lambda page, at: opened(page, f"{at}?example=pair&target=0&view=layers&layer=0"),
    "heads": lambda page, at: opened(page, f"{at}?example=pair&target=0&against=8&view=heads"),
    "detail": lambda page, at: opened(page, f"{at}?example=chimera&target=12&against=15&view=detail"),
    "methods": lambda page, at: opened(page, f"{at}?example=pair&target=0&against=8&view=methods"),
    "guide": lambda page, at: opened(page, f"{at}?example=single&view=guide"),
    "transfer": lambda page, at: opened(page, f"{at}?example=pair&target=8&against=0&view=transfer&steps=40"),
    "rewrite": lambda page, at: opened(page, f"{at}?example=sibling&view=rewrite"),
    "words": lambda page, at: asked(page, f"{at}?example=pair&view=words"),
    "phone": lambda page, at: opened(page, f"{at}?example=pair&target=0&against=8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VIEWS, default=list(VIEWS))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    asked = parser.parse_args()
    server = application(Service(ModelCache("bestiary", load=lambda name, _: load(name))))
    with serving(server) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
        for name in asked.only:
            # A picture of the whole page would have Chromium forget the finger: the phone's is as high as the page.
            look: Any = {"viewport": {"width": 1280, "height": 800}}
            if name == "phone":
                look = {"viewport": {"width": 390, "height": 1690}, "is_mobile": True, "has_touch": True}
            page = browser.new_page(**look)
            page.set_default_timeout(200_000)
            VIEWS[name](page, address + "/")
            if name == "transfer":
                page.locator("#vt-view-transfer .vt-player input").fill("9")
            keep(page, name, whole=name != "phone")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
