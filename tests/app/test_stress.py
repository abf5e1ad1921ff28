"""Many visitors at once, and uploads of every broken kind: nothing lost, nothing mixed up, nothing left behind."""

import base64
import json
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from app.conftest import Running, base64_of, encoded
from PIL import Image

from vitrail.bestiary import CLASS_NAMES, render, sample_scene
from vitrail.models import load

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow

VISITORS, EACH = 10, 5
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    pytest.importorskip("gradio_client", reason="needs the extra app: pip install 'vitrail[app]'")
    one = Running()
    yield one
    one.stop()


@pytest.fixture
def record(record_property):
    """Measured figures go into the report (--junitxml), and onto the screen with -s."""

    def keep(**figures) -> None:
        sys.stderr.write(f"{figures}\n")
        for name, value in figures.items():
            record_property(name, value)

    return keep


def client_of(running: Running):
    import httpx
    from gradio_client import Client

    cookie = httpx.get(running.address).headers["set-cookie"].partition(";")[0]
    return Client(
        running.address, headers={"cookie": cookie}, verbose=False, download_files=False, analytics_enabled=False
    )


def upload(client, sent):
    """The answer to an upload, asked again as long as the server says that this visitor asks too much at once."""
    import httpx

    while True:
        try:
            return answer_of(client.predict(sent, "", api_name="/upload"))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 429:
                raise
            time.sleep(float(error.response.headers["retry-after"]))


def answer_of(found: tuple) -> tuple[str, str, str]:
    """The link, what is said, and the page's words of an upload's answer."""
    query, status, *rest = found
    html = "".join(one if isinstance(one, str) else json.dumps(one) for one in rest)
    return _value(query), _value(status), html


def _value(one) -> str:
    return one if isinstance(one, str) else str((one or {}).get("value", ""))


def test_fifty_uploads_by_ten_visitors(running, record):
    """Each gets the answer to its own picture; afterwards the memory is what it was."""
    model = load("bestiary")
    expected: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    for number in range(VISITORS * EACH):
        name = f"visitor{number // EACH}-picture{number % EACH}.png"
        scene = sample_scene("single", seed=(number, 3), species=CLASS_NAMES[number % len(CLASS_NAMES)])
        pixels = render(scene, 400).image
        pictures[name] = encoded(pixels)
        view = model.preprocess.view(Image.fromarray(pixels))
        best = model.logits(model.preprocess.normalise(view)[None]).argmax()
        expected[name] = model.class_name(int(best))
    process = psutil.Process(running.process.pid)
    rounds = [_visit(running, pictures, expected, process) for _ in range(3)]
    record(resident_MB_after_each_round=[round(one / MEGABYTE) for one in rounds])
    assert rounds[2] - rounds[1] < 40 * MEGABYTE, rounds


def _visit(running: Running, pictures: dict[str, bytes], expected: dict[str, str], process) -> int:
    wrong: list[str] = []
    done: list[str] = []

    def visit(number: int) -> None:
        client = client_of(running)
        try:
            for each in range(EACH):
                name = f"visitor{number}-picture{each}.png"
                sent = {"name": name, "content": base64_of(pictures[name])}
                _, status, html = answer_of(client.predict(sent, "", api_name="/upload"))
                shown = {other for other in pictures if other in html}
                if status or shown != {name} or f">{expected[name]} <em>" not in html:
                    wrong.append(f"{name}: {status!r}, {shown}, {expected[name]}")
                done.append(name)
        except Exception as error:
            wrong.append(f"visitor {number}: {error!r}")
        finally:
            client.close()  # as a closed tab does: the page forgets the visitor

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(VISITORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert wrong == []
    assert sorted(done) == sorted(pictures)
    time.sleep(2)
    return process.memory_info().rss


def broken(number: int, rng: np.random.Generator) -> bytes:
    """A file that is no picture, or nearly one: cut, garbled, lying of its size, another kind altogether."""
    pixels = rng.integers(0, 256, (int(rng.integers(1, 60)), int(rng.integers(1, 60)), 3), dtype=np.uint8)
    kind = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO")[number % 8]
    whole = bytearray(encoded(pixels, kind))
    match number // 8 % 6:
        case 0:  # cut short
            return bytes(whole[: int(rng.integers(0, len(whole)))])
        case 1:  # garbled
            for _ in range(int(rng.integers(1, 40))):
                whole[int(rng.integers(len(whole)))] = int(rng.integers(256))
            return bytes(whole)
        case 2:  # noise behind a true beginning
            return bytes(whole[:16]) + rng.bytes(int(rng.integers(1, 4000)))
        case 3:  # a PNG that says it is enormous
            header = struct.pack(">IIBBBBB", int(rng.integers(1, 2**31)), int(rng.integers(1, 2**31)), 8, 2, 0, 0, 0)
            check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
            return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + check
        case 4:  # something else
            others = (
                b"",
                b"\x00" * 5000,
                b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
                b"%PDF-1.7",
                b"PK\x03\x04" + rng.bytes(90),
                b"\x80\x04\x95cos\nsystem\n",
                b"#!/bin/sh\n",
                b"%!PS-Adobe-3.0 EPSF-3.0\n",
            )
            return others[number % len(others)]
        case _:  # parts in the wrong order
            half = len(whole) // 2
            return bytes(whole[half:] + whole[:half])


def test_two_hundred_malformed_uploads(running, record):
    """No crash, no trace of the machine; what is refused is refused in a sentence, and the page goes on."""
    rng = np.random.default_rng(7)
    client = client_of(running)
    refused = 0
    for number in range(200):
        data = broken(number, rng)
        content = base64.b64encode(data).decode()
        if number % 10 == 9:  # nor is what carries it always whole
            content = ("data:" + content, content[:-1] + "!", "data:,", "\x00" + content)[number // 10 % 4]
        sent = {"name": f"<i>{number}.png", "content": content}
        _, status, html = upload(client, sent)
        assert "Traceback" not in status + html
        assert "went wrong here" not in status, (number, data[:40])
        assert "<i>" not in html
        refused += bool(status)
        if status:
            assert status.startswith('<div class="vt-problem" role="alert">This picture cannot be used: '), status
    record(refused_of_200=refused)
    assert refused > 120  # some are pictures still, with a few wrong pixels
    for sent in (None, 5, "x", [], {"name": 3, "content": None}):
        _, status, _ = upload(client, sent)
        assert "cannot be used" in status
    good = encoded(render(sample_scene("single", seed=1), 100).image)
    _, status, html = upload(client, {"name": "a.png", "content": base64_of(good)})
    assert status == ""
    assert "a.png" in html
    said = "".join(running.said)
    assert "Traceback" not in said, said[-3000:]


def test_the_page_answers_while_long_work_goes_on(running, record):
    """A quick question of another visitor is answered during a film of a hundred steps."""
    busy, other = client_of(running), client_of(running)
    other.predict("view=map&example=single", api_name="/arrive")
    busy.predict("view=map&example=pair", api_name="/arrive")
    job = busy.submit("view=transfer&example=pair", 100, api_name="/transfer")
    until = time.monotonic() + 60
    while not job.outputs() and time.monotonic() < until:
        time.sleep(0.05)
    took = []
    while not job.done() and len(took) < 5:
        began = time.perf_counter()
        other.predict(int(len(took) % 3), "view=map&example=single", api_name="/choose")
        took.append(time.perf_counter() - began)
    record(seconds_of_quick_questions=[round(seconds, 2) for seconds in took])
    assert not job.done() or len(took) >= 3
    assert min(took) < 5
    job.result(timeout=300)


def test_uploads_leave_no_file(running, tmp_path):
    import tempfile

    folder = Path(tempfile.gettempdir()) / "gradio"
    before = {path for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()
    client = client_of(running)
    pixels = np.random.default_rng(11).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    client.predict({"name": "secret.png", "content": base64_of(encoded(pixels))}, "", api_name="/upload")
    after = {path for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()
    assert after <= before
