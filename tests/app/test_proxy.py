"""The page behind a real reverse proxy: on a sub-path, under another name, as docs/app.md says it."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from app.conftest import CHROMIUM, Running, Visitor

DOCS = Path(__file__).parents[2] / "docs" / "app.md"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")

pytestmark = pytest.mark.slow


@contextmanager
def nginx(folder: Path, server: str, port: int) -> Iterator[int]:
    """nginx with the documented location, in front of the page on that port."""
    location = re.search(r"```nginx\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert location is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        outside = free.getsockname()[1]
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    block = location[1].replace("127.0.0.1:7860", f"127.0.0.1:{port}")
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ {paths} access_log off; server {{ listen 127.0.0.1:{outside}; server_name {server};\n{block}\n}} }}"
    )
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(configuration)], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 10
        while True:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            try:
                socket.create_connection(("127.0.0.1", outside), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)
        yield outside
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_the_page_behind_nginx_on_a_sub_path_under_another_name(tmp_path):
    """Assets were asked for outside of the prefix, and another name than loopback's was refused."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if NGINX is None or CHROMIUM is None:
        pytest.skip("needs nginx and Chromium (Debian: apt-get install nginx-light chromium)")
    running = Running("--root-path", "/vitrail", "--allow-host", "glass.example", auth="ada:lace")
    inside = int(running.address.partition("127.0.0.1:")[2].partition("/")[0])
    try:
        with nginx(tmp_path, "glass.example", inside) as port, sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--host-resolver-rules=MAP glass.example 127.0.0.1"],
            )
            running.address = f"http://glass.example:{port}/vitrail"
            visitor = Visitor(browser, running)
            page = visitor.page
            page.goto(f"{running.address}/?view=map&example=single")
            page.get_by_label("Name").fill("ada")
            page.get_by_label("Password").fill("lace")
            page.get_by_role("button", name="Open the page").click()
            page.locator("#vt-view-map .vt-map").first.wait_for()
            visitor.linked("example=single")
            page.locator(".vt-class").nth(1).click()
            visitor.linked("target=")
            page.get_by_role("tab", name="Transfer").click()
            page.locator("#vt-draw-transfer").click()
            page.locator("#vt-view-transfer .vt-player").wait_for()
            visitor.leave()
            browser.close()
    finally:
        running.stop()
