"""Many visitors at once, and uploads of every broken kind: nothing lost, nothing mixed up, nothing left behind."""

import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from app.conftest import Running, ask, encoded, events_of
from app.test_security import temporary_files
from PIL import Image

from vitrail.bestiary import CLASS_NAMES, render, sample_scene
from vitrail.models import load

httpx = pytest.importorskip("httpx2", reason="needs the extra app: pip install 'vitrail[app]'")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow

VISITORS, EACH = 10, 5
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
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


@contextmanager
def client_of(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.address, timeout=300) as client:
        client.get("/")
        yield client
        ask(client, "leave")  # as a closed tab says


def upload(client, name: str, data: bytes) -> tuple[str, str]:
    """What is said of an upload, and all of its answer; asked again where this visitor asks too much at once."""
    while (answer := ask(client, "upload", file=(name, data))).status_code == 429:
        time.sleep(float(answer.headers["retry-after"]))
    [event] = events_of(answer)
    return event["html"]["vt-status"], "".join(event["html"].values())


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
        try:
            with client_of(running) as client:
                for each in range(EACH):
                    name = f"visitor{number}-picture{each}.png"
                    status, html = upload(client, name, pictures[name])
                    shown = {other for other in pictures if other in html}
                    if status or shown != {name} or f">{expected[name]} <em>" not in html:
                        wrong.append(f"{name}: {status!r}, {shown}, {expected[name]}")
                    done.append(name)
        except Exception as error:
            wrong.append(f"visitor {number}: {error!r}")

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
    refused = 0
    with client_of(running) as client:
        for number in range(200):
            data = broken(number, rng)
            status, html = upload(client, f"<i>{number}.png", data)
            assert "Traceback" not in html
            assert "went wrong here" not in status, (number, data[:40])
            assert "<i>" not in html
            refused += bool(status)
            if status:
                assert status.startswith('<div class="vt-problem" role="alert">This picture cannot be used: '), status
        good = encoded(render(sample_scene("single", seed=1), 100).image)
        status, html = upload(client, "a.png", good)
    record(refused_of_200=refused)
    assert refused > 120  # some are pictures still, with a few wrong pixels
    assert status == ""
    assert "a.png" in html
    said = "".join(running.said)
    assert "Traceback" not in said, said[-3000:]


def test_the_page_answers_while_long_work_goes_on(running, record):
    """A quick question of another visitor is answered during a film of a hundred steps."""
    words = {"do": "draw", "tab": "film", "link": "example=pair", "given": {"view": "transfer", "steps": 100}}
    with client_of(running) as busy, client_of(running) as other, busy.stream("POST", "/ask", json=words) as film:
        lines = film.iter_lines()
        next(line for line in lines if "moving attention" in line)
        took = []
        for number in range(5):
            began = time.perf_counter()
            [event] = events_of(ask(other, "choose", link="example=single", index=number % 3))
            took.append(time.perf_counter() - began)
            assert "data:image/webp" in event["html"]["vt-view-map"]
        *_, last = lines
        assert "data:image/webp" in last
    record(seconds_of_quick_questions=[round(seconds, 2) for seconds in took])
    assert min(took) < 5


def test_uploads_leave_no_file(running):
    before = temporary_files(running)
    pixels = np.random.default_rng(11).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    with client_of(running) as client:
        status, _ = upload(client, "secret.png", encoded(pixels))
    assert status == ""
    assert temporary_files(running) == before
