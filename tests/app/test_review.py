"""The review page: what it shows, that decisions are on the disk before they count, and its work in Chromium."""

import csv
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app.audits import CLASSES, SPITEFUL, an_audit
from app.conftest import SOURCES, Running, Visitor, saved

from vitrail.app.review import Review, Stale
from vitrail.audit import Audit, Decisions, read_audit
from vitrail.audit.decisions import reviewing
from vitrail.errors import OutputFileError, RunFolderError, RunFolderInUseError

httpx = pytest.importorskip("httpx2", reason="needs the extra app: pip install 'vitrail[app]'")
testclient = pytest.importorskip("starlette.testclient", reason="needs the extra app: pip install 'vitrail[app]'")

SUSPECTS = 12
slow = pytest.mark.slow


class Reviewing(Running):
    """The review page of an audit as its command serves it, in a process of its own, on a free port."""

    def __init__(self, folder: Path, *, token: bool = False) -> None:
        command = [sys.executable, "-m", "vitrail.cli", "audit", "--review", str(folder), "--port", "0", "--no-browser"]
        command += [] if token else ["--no-token"]
        self.begin(command, {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1"})


class Serving:
    """The review page of an audit, served by a thread of this process on a free port."""

    def __init__(self, folder: Path) -> None:
        import uvicorn

        from vitrail.app.review_server import review_application

        self._held = reviewing(read_audit(folder))
        review = Review(read_audit(folder), self._held.__enter__())
        self._server = uvicorn.Server(uvicorn.Config(review_application(review), port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < until, "the page did not start"
            time.sleep(0.02)
        self.address = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._held.__exit__(None, None, None)


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return an_audit(tmp_path / "run", SUSPECTS)


@pytest.fixture
def review(audit: Audit) -> Iterator[Review]:
    with reviewing(audit) as decisions:
        yield Review(audit, decisions)


def client_of(review: Review) -> Any:
    from vitrail.app.review_server import review_application

    client = testclient.TestClient(review_application(review), base_url="http://127.0.0.1:7860")
    assert client.get("/").status_code == 200
    return client


# -- what is told ------------------------------------------------------------------------------------------------------


def test_all_suspects_and_pairs_are_told(review):
    told = client_of(review).get("/review").json()
    assert [one["image"] for one in told["suspects"]] == list(range(SUSPECTS))
    first = told["suspects"][0]
    assert (first["given"], first["suggested"], first["margin"], first["duplicates"]) == (0, 1, "−1", 1)
    assert (first["p_given"], first["p_suggested"], first["issue"]) == ("3.0 %", "91.0 %", True)
    assert told["names"]["1"] == CLASSES[1]
    assert [(pair["shown"], pair["other"]) for pair in told["pairs"]] == [(0, 1), (0, 2)]
    assert (told["version"], told["last"], told["decisions"]) == (0, None, {})


def test_a_suspect_comes_with_its_pictures(review):
    client = client_of(review)
    told = client.get("/suspect/1").json()
    for kind in ("photo", "view"):
        assert told[kind].startswith("data:image/jpeg;base64,")
    for kind in ("contrast", "given", "suggested"):
        assert told[kind].startswith("data:image/webp;base64,")
    assert len({told[kind] for kind in ("contrast", "given", "suggested")}) == 3
    assert [(one["image"], one["suspect"]) for one in told["duplicates"]] == [(0, True)]
    typical = client.get("/typical/1").json()["images"]
    assert [one["image"] for one in typical] == list(review.audit.typical[1])
    pair = client.get("/pair/0/2").json()["images"]
    assert [one["image"] for one in pair] == list(review.audit.pair_images[0, 2])
    assert all(one["side"] == (-1 if one["balance"].startswith("−") else 1) for one in pair)


def test_the_contrastive_map_is_red_where_the_given_class_is_argued_for(review, monkeypatch):
    """Its colour is that of the stored map, drawn over the view and not over something else."""
    import base64

    import numpy as np
    from PIL import Image

    scores = np.zeros((4, 4), np.float32)
    scores[0, 0], scores[3, 3] = 1, -1
    monkeypatch.setattr(Audit, "map", lambda *given, **named: scores)
    address = client_of(review).get("/suspect/3").json()["contrast"]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")).astype(int)
    red, blue = drawn[4, 4], drawn[-5, -5]
    assert red[0] > red[2] + 40
    assert blue[2] > blue[0] + 40


@pytest.mark.parametrize(
    "path",
    ["/suspect/99", "/suspect/12", "/suspect/-1", "/suspect/1.5", "/suspect/x", f"/suspect/{'9' * 5000}", "/typical/77",
     "/pair/1/0", "/pair/0/0", "/decisions.exe", "/static/review.py", "/static/../review.js", "/suspect/1/2",
     "/audit.json"],
)  # fmt: skip
def test_nonsense_is_not_found(review, path):
    answer = client_of(review).get(path, headers={"accept": "application/json"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "words",
    [b"", b"[]", b"null", b"{", b'{"image": "1", "verdict": "keep"}', b'{"image": true, "verdict": "keep"}',
     b'{"image": 1.0, "verdict": "keep"}', b'{"image": 1, "verdict": "burn"}', b'{"image": 1, "verdict": ["keep"]}',
     b'{"image": 1, "verdict": "keep", "was": {}}', b"\xff", b"[" * 900],
)  # fmt: skip
def test_a_decision_that_is_none_is_refused(review, words):
    client = client_of(review)
    assert client.post("/decide", content=words).status_code == 400
    assert review.state()["version"] == 0


def test_limits_of_a_decision(review):
    client = client_of(review)
    assert client.post("/decide", content=b"x" * 2000).status_code == 413
    assert client.post("/decide", json={"image": 50, "verdict": "keep", "was": None}).status_code == 404
    assert client.get("/decide").status_code == 405
    stranger = testclient.TestClient(client.app, base_url="http://127.0.0.1:7860")
    for path in ("/review", "/suspect/1", "/decisions.csv"):
        assert stranger.get(path).status_code == 401
    assert stranger.post("/decide", json={"image": 1, "verdict": "keep", "was": None}).status_code == 401
    foreign = {"origin": "https://evil.example"}
    assert client.post("/decide", json={"image": 1, "verdict": "keep", "was": None}, headers=foreign).status_code == 403
    assert review.state()["version"] == 0


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_decisions_are_written_undone_and_found_again(review, audit):
    client = client_of(review)

    def decide(image, verdict, was=None):
        return client.post("/decide", json={"image": image, "verdict": verdict, "was": was}).json()

    assert decide(3, "keep") == {"version": 1, "last": 3, "image": 3, "verdict": "keep"}
    assert decide(4, "drop")["last"] == 4
    assert decide(3, "relabel", "keep") == {"version": 3, "last": 3, "image": 3, "verdict": "relabel"}
    assert client.post("/undo", json={"image": 3}).json() == {"version": 4, "last": 4, "image": 3, "verdict": "keep"}
    again = Decisions(audit.folder, range(SUSPECTS))
    assert {image: one.verdict for image, one in again.current.items()} == {3: "keep", 4: "drop"}
    assert (again.version, again.last) == (4, 4)


def test_a_page_that_is_behind_is_told_and_changes_nothing(review):
    client = client_of(review)
    client.post("/decide", json={"image": 3, "verdict": "keep", "was": None})
    for path, words in (("/decide", {"image": 3, "verdict": "drop", "was": None}), ("/undo", {"image": 4})):
        answer = client.post(path, json=words)
        assert answer.status_code == 409
        assert "another tab" in answer.json()["detail"]
        assert answer.json()["state"] == {"version": 1, "last": 3, "decisions": {"3": "keep"}}
    with pytest.raises(Stale):
        review.undo(4)


def test_many_at_once_are_all_written(review, audit):
    threads = [threading.Thread(target=review.decide, args=(image, "skip", None)) for image in range(SUSPECTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Decisions(audit.folder, range(SUSPECTS)).current) == review.state()["version"] == SUSPECTS


def test_what_cannot_be_written_does_not_count_and_spoils_nothing(review, audit, monkeypatch):
    client = client_of(review)
    client.post("/decide", json={"image": 1, "verdict": "keep", "was": None})

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = client.post("/decide", json={"image": 2, "verdict": "keep", "was": None})
    assert answer.status_code == 507
    assert answer.json()["detail"] == "it cannot be written: No space left on device"
    assert review.state()["decisions"] == {"1": "keep"}
    with review.decisions.path.open("ab") as journal:  # half of the line has come to the disk
        journal.write(b'{"image": 2, "verd')
    assert client.post("/decide", json={"image": 3, "verdict": "keep", "was": None}).status_code == 200
    assert sorted(Decisions(audit.folder, range(SUSPECTS)).current) == [1, 3]


def test_a_second_review_of_the_same_audit_is_refused(review, audit):
    with pytest.raises(RunFolderInUseError, match="another process has"), reviewing(audit):
        pass


def test_a_folder_where_nothing_can_be_written_is_refused(audit):
    (audit.folder / "review.lock").mkdir()
    with pytest.raises(OutputFileError, match="no decision can be written"), reviewing(audit):
        pass


def test_exports(review):
    from pyarrow import parquet

    client = client_of(review)
    for image, verdict in ((2, "relabel"), (3, "both"), (4, "drop"), (5, "keep")):
        client.post("/decide", json={"image": image, "verdict": verdict, "was": None})
    answer = client.get("/decisions.csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="decisions.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["corrected"] for row in rows] == ["3", "3 4", "", "5"]
    assert rows[0]["file"] == SPITEFUL
    answer = client.get("/decisions.parquet")
    assert answer.headers["content-disposition"] == 'attachment; filename="decisions.parquet"'
    table = parquet.read_table(io.BytesIO(answer.content)).to_pylist()
    assert [(row["image"], row["verdict"], row["corrected"]) for row in table] == [
        (int(row["image"]), row["verdict"], row["corrected"]) for row in rows
    ]


def test_relabelling_takes_away_or_adds_where_one_of_the_two_is_missing(tmp_path):
    audit = an_audit(tmp_path, multilabel=True)
    with reviewing(audit) as decisions:
        for image in (0, 1):
            decisions.decide(image, "relabel")
        rows = list(csv.DictReader(io.StringIO(Review(audit, decisions).export("csv").decode())))
    assert [(row["labels"], row["corrected"]) for row in rows] == [("0", "0 1"), ("1", "")]


def test_killed_right_after_an_answer_the_decision_is_there(audit):
    """SIGKILL leaves the server no moment; the answer came, so the decision is on the disk, and found at the start."""
    running = Reviewing(audit.folder)
    with httpx.Client(base_url=running.address, timeout=60) as client:
        client.get("/")
        answer = client.post("/decide", json={"image": 5, "verdict": "drop", "was": None})
        running.process.send_signal(signal.SIGKILL)
        assert answer.json()["verdict"] == "drop"
    running.process.wait(20)
    running.stop()
    assert running.process.returncode == -signal.SIGKILL
    with reviewing(audit) as decisions:  # nor does the dead process hold the audit
        told = client_of(Review(audit, decisions)).get("/state").json()
    assert told == {"version": 1, "last": 5, "decisions": {"5": "drop"}}


@slow
def test_the_command_asks_for_its_token_and_ends_by_a_signal(audit):
    running = Reviewing(audit.folder, token=True)
    assert "?token=" in running.printed
    with httpx.Client(timeout=60, follow_redirects=True) as client:
        assert client.get(running.address + "/review").status_code == 401
        assert client.get(running.printed).status_code == 200
        assert client.get(running.address + "/review").status_code == 200
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 143
    running.stop()
    assert "Traceback" not in "".join(running.said)


def test_another_folder_is_refused(tmp_path):
    from vitrail.cli.review import review

    with pytest.raises(RunFolderError, match="holds no audit"):
        review(tmp_path, port=0, no_browser=True)


# -- in Chromium -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reviewer(chromium: Any, audit: Audit) -> Iterator[Visitor]:
    running = Serving(audit.folder)
    one = Visitor(chromium, running)
    yield one
    one.leave()
    running.stop()


def shown(visitor: Visitor, image: int | str) -> None:
    """Wait until a suspect is shown with its pictures."""
    visitor.until(f"document.querySelector('#rv-suspect').dataset.image === '{image}'")
    assert visitor.page.evaluate("[...document.querySelectorAll('#rv-suspect img')].every(one => one.naturalWidth > 0)")


def come(visitor: Visitor, link: str = "", image: int | str = 0) -> Any:
    visitor.page.goto(f"{visitor.server.address}/{link}")
    shown(visitor, image)
    return visitor.page


def counted(visitor: Visitor, decided: int) -> None:
    visitor.until(f"document.querySelector('#rv-done').textContent === '{decided} of {SUSPECTS} decided'")


def on_disk(visitor: Visitor) -> dict[int, str]:
    return {
        int(image): verdict
        for image, verdict in visitor.page.evaluate("fetch('state').then(r => r.json())")["decisions"].items()
    }


def test_by_keyboard_with_undo_and_reload(reviewer):
    page = come(reviewer)
    assert (
        page.locator("#rv-words").inner_text()
        == f"labelled {CLASSES[0]} (3.0 %) — the model says {CLASSES[1]} (91.0 %)"
    )
    assert "near duplicate" in page.locator("#rv-facts").inner_text()
    assert page.locator("[data-row=duplicates] figure").count() == 1
    for image, key in enumerate("krbds"):
        page.keyboard.press(key)
        shown(reviewer, image + 1)
    counted(reviewer, 5)
    assert on_disk(reviewer) == {0: "keep", 1: "relabel", 2: "both", 3: "drop", 4: "skip"}
    for key, image in (("u", 4), ("z", 3), ("Backspace", 2)):
        page.keyboard.press(key)
        shown(reviewer, image)
    counted(reviewer, 2)
    page.keyboard.press("ArrowLeft")
    shown(reviewer, 1)
    assert page.locator("[data-verdict=relabel]").get_attribute("aria-pressed") == "true"
    assert "decided: relabelled" in page.locator("#rv-facts").inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    shown(reviewer, 3)
    counted(reviewer, 2)
    page.reload()
    shown(reviewer, 3)  # the address keeps the place
    counted(reviewer, 2)
    page.keyboard.press("Control+k")
    page.keyboard.press("x")
    counted(reviewer, 2)
    come(reviewer, "", 2)  # without one, the first that is not decided


def test_a_key_that_is_held_down_passes_suspects_and_decides_about_one(reviewer):
    page = come(reviewer)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(500)
    page.evaluate(
        """() => { for (let n = 0; n < 9; n += 1) document.dispatchEvent(
        new KeyboardEvent("keydown", { key: "ArrowRight", repeat: n > 0, bubbles: true })); }"""
    )
    shown(reviewer, 9)
    assert not any(url.endswith("/suspect/8") for url in asked)
    page.evaluate(
        """() => { for (let n = 0; n < 9; n += 1) document.dispatchEvent(
        new KeyboardEvent("keydown", { key: "k", repeat: n > 0, bubbles: true })); }"""
    )
    shown(reviewer, 10)
    counted(reviewer, 1)


def test_filters_and_pairs(reviewer):
    page = come(reviewer)
    page.get_by_label("Class", exact=False).first.select_option(label=f"{CLASSES[3]} (2)")
    shown(reviewer, 2)
    assert page.locator("#rv-where").inner_text() == "1 of 2"
    page.keyboard.press("d")
    shown(reviewer, 3)
    page.keyboard.press("k")
    page.locator("#rv-none").wait_for()
    page.get_by_role("button", name="All suspects").last.click()
    shown(reviewer, 0)
    page.locator("[name=show]").select_option("drop")
    shown(reviewer, 2)
    assert SPITEFUL in page.locator("#rv-file").inner_text()
    page.locator("[name=show]").select_option("undecided")
    shown(reviewer, 0)
    assert page.locator("#rv-where").inner_text() == f"1 of {SUSPECTS - 2}"
    page.get_by_role("tab", name="Class pairs").click()
    page.locator("tr[data-pair]").first.click()
    page.locator(".rv-grid figure").nth(2).wait_for()
    page.keyboard.press("k")  # decides nothing where no suspect is shown
    page.get_by_role("button", name="Go to the suspect of these two classes").click()
    shown(reviewer, 0)
    assert page.locator("#rv-where").inner_text() == "1 of 1"
    counted(reviewer, 2)
    assert page.title() == "Vitrail: review of labels"  # a name is no HTML


def test_what_is_not_saved_is_said_and_shown_again(reviewer):
    page = come(reviewer)
    page.keyboard.press("k")
    counted(reviewer, 1)
    page.route("**/decide", lambda route: route.fulfill(status=507, json={"detail": "it cannot be written: disk full"}))
    page.keyboard.press("d")
    page.locator("#rv-alert", has_text="NOT SAVED: “dropped” for 0001.png: it cannot be written: disk full").wait_for()
    shown(reviewer, 1)
    counted(reviewer, 1)
    page.unroute("**/decide")
    page.keyboard.press("d")
    shown(reviewer, 2)
    counted(reviewer, 2)
    reviewer.until("document.querySelector('#rv-alert').textContent === ''")
    assert on_disk(reviewer) == {0: "keep", 1: "drop"}


def test_two_tabs_know_of_each_other(reviewer):
    page = come(reviewer)
    other = reviewer.context.new_page()
    other.goto(f"{reviewer.server.address}/?image=1")
    other.locator(".rv-photo img").wait_for()
    page.bring_to_front()
    page.keyboard.press("k")
    counted(reviewer, 1)
    end = "document.querySelector('#rv-done').textContent.startsWith('1 of')"
    for _ in range(200):
        if other.evaluate(end):
            break
        other.wait_for_timeout(50)
    assert other.evaluate(end)
    # A tab that nobody told, as one on another machine: it is behind, says so, and shows what is so.
    with httpx.Client(base_url=reviewer.server.address, timeout=60) as client:
        client.get("/")
        client.post("/decide", json={"image": 1, "verdict": "both", "was": None})
    page.keyboard.press("d")
    page.locator("#rv-alert", has_text="another tab has decided since").wait_for()
    shown(reviewer, 1)
    assert page.locator("[data-verdict=both]").get_attribute("aria-pressed") == "true"
    assert on_disk(reviewer) == {0: "keep", 1: "both"}


def test_exports_and_the_last_one(reviewer):
    page = come(reviewer)
    for image in range(SUSPECTS):
        shown(reviewer, image)
        page.keyboard.press("k")
    page.locator("#rv-none", has_text="All suspects are decided").wait_for()
    counted(reviewer, SUSPECTS)
    for name, kind in (("CSV", "csv"), ("Parquet", "parquet")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename == f"decisions.{kind}"
        assert len(saved(download.value)) > 500
    page.keyboard.press("u")
    shown(reviewer, SUSPECTS - 1)
    counted(reviewer, SUSPECTS - 1)


def test_a_label_that_is_only_missing_or_only_too_many(chromium, tmp_path):
    running = Serving(an_audit(tmp_path, multilabel=True).folder)
    visitor = Visitor(chromium, running, color_scheme="dark", viewport={"width": 390, "height": 844})
    page = come(visitor)
    assert page.locator("#rv-words").inner_text() == f"label {CLASSES[1]} may be missing (the model gives it 91.0 %)"
    assert page.locator("[data-verdict=relabel]").inner_text().endswith(f"Add {CLASSES[1]}")
    assert page.locator("[data-verdict=both]").is_disabled()
    assert not page.locator(".rv-contrast").is_visible()
    page.keyboard.press("b")
    page.keyboard.press("r")
    shown(visitor, 1)
    assert page.locator("#rv-words").inner_text() == f"label {CLASSES[1]} is doubtful (the model gives it 3.0 %)"
    assert page.locator("[data-verdict=relabel]").inner_text().endswith(f"Not {CLASSES[1]}")
    page.keyboard.press("s")
    shown(visitor, 2)
    assert page.locator(".rv-contrast").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visitor.leave()
    running.stop()
