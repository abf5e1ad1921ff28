"""`vitrail vlm` from the words on the command line to the page in a browser, on a captioner with random weights."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import vitrail
from vitrail.bestiary.captioner import build_captioner, build_processor
from vitrail.cli import app
from vitrail.generation.explanation import GenerationExplanation
from vitrail.plotting.generation import answer_data, answer_news, generation_page, word_rows

pytest.importorskip("transformers")

Run = Callable[..., Result]
PROMPT, ANSWER = "what is in the picture?", "a horned tavel above a murlo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captioner")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build_captioner(width=32, layers=2, heads=2).eval().save_pretrained(path)
    build_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def run(folder: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: Any) -> Result:
        given = ["vlm", str(picture), "--model", str(folder), "--prompt", PROMPT, *map(str, words)]
        result = CliRunner().invoke(app, given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def test_the_files_hold_what_python_gives(run: Run, folder: Path, picture: Path, tmp_path: Path):
    result = run("--answer", ANSWER, "--json", "--output", "seen")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert [row["word"] for row in document["words"]] == ANSWER.split()
    assert document["files"] == [
        f"seen/{name}" for name in ("index.html", "sheet.png", "words.json", "maps.safetensors")
    ]
    assert json.loads((tmp_path / "seen" / "words.json").read_text())["words"] == document["words"]
    model = vitrail.load_vlm(str(folder))
    ours = vitrail.explain_generation(model, picture, PROMPT, answer=ANSWER)
    kept = GenerationExplanation.load(tmp_path / "seen" / "maps.safetensors")
    assert torch.equal(kept.image_scores[0], ours.image_scores[0])
    assert torch.equal(kept.text_scores, ours.text_scores)
    assert (tmp_path / "seen" / "index.html").read_text(encoding="utf-8") == generation_page(kept)
    for row, shares in zip(document["words"], ours.grounding, strict=True):
        assert list(row["grounding"].values()) == pytest.approx(shares.tolist(), rel=1e-4)


def test_a_table_on_the_terminal_and_a_word_to_compare_with(run: Run):
    result = run("--answer", ANSWER, "--against", "oozel", "--method", "gae", "--vision", "tokens")
    header, *rows = result.stdout.splitlines()
    assert header.split("\t") == ["word", "probability", "image", "prompt", "earlier answer"]
    assert [row.split("\t")[0] for row in rows] == ANSWER.split()
    assert result.stderr.count("written: out/") == 4


def test_ctrl_c_keeps_the_tokens_that_are_done(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from vitrail.cli.console import Reporter

    def interrupted(_: Reporter, doing: str, done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Reporter, "report", interrupted)
    result = run("--answer", ANSWER, "--json")
    assert result.exit_code == 130
    assert [row["word"] for row in json.loads(result.stdout)["words"]] == ["a", "horned"]
    assert len(GenerationExplanation.load(tmp_path / "out" / "maps.safetensors")) == 2
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--answer", "a unicorn"), "the tokenizer cannot join the answer 'a unicorn'"),
        (("--method", "tattr"), "method 'tattr' is made for classifiers of images"),
        (("--answer", ANSWER, "--against", "murlo"), "is held against itself: give another word by --against"),
        (("--answer", ""), "the answer is empty"),
    ],
)
def test_questions_without_sense_are_refused(run: Run, words: tuple[str, ...], said: str):
    result = run(*words)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_the_image_that_cannot_be_read_is_reported(
    folder: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = CliRunner().invoke(app, ["vlm", str(picture), "broken.png", "--model", str(folder), "--prompt", PROMPT])
    assert result.exit_code == 1
    assert result.stderr.startswith("broken.png: ")


@pytest.fixture(scope="module")
def explanation(folder: Path, picture: Path) -> GenerationExplanation:
    return vitrail.explain_generation(vitrail.load_vlm(str(folder)), picture, PROMPT, answer=ANSWER)


def test_nothing_on_the_page_comes_from_elsewhere_or_is_taken_for_markup(explanation: GenerationExplanation):
    page = generation_page(explanation)
    assert "http" not in page.replace("http-equiv", "")
    said = "</script><script>alert(1)</script>"
    page = generation_page(replace(explanation, prompt=said, answer=said, sequence=(said,) * len(explanation.sequence)))
    assert said not in page


def test_words_that_are_told_one_by_one_come_to_the_whole_page(explanation: GenerationExplanation):
    """Also where a token makes one word of two (T, -, shirt), or two of one (a full stop)."""
    tokens = ("a", " T", "-", "shirt", ".", " murlo")
    sequence = (*explanation.sequence[: explanation.positions[0]], *tokens)
    whole = replace(explanation, tokens=tokens, sequence=sequence, answer="".join(tokens))
    assert [row["word"] for row in word_rows(whole)] == ["a", "T-shirt", ".", "murlo"]
    page, known = answer_data(whole[:1]), whole[:1].words
    assert page["answer"] == [{"word": 0, "text": ""}, {"word": None, "text": " T-shirt. murlo"}]
    kept = []
    for count in range(2, 7):
        news = answer_news(whole[:count], known, ended=count == 6)
        kept.append(news["keep"])
        page |= news | {"words": page["words"][: news["keep"]] + news["words"]}
        assert count == 6 or page["start"] == len(page["words"]) - 1
        known = whole[:count].words
    assert kept == [1, 2, 1, 2, 3]
    assert page | {"keep": 0} == answer_data(whole)


@pytest.mark.slow
def test_pointing_tapping_and_two_words_in_a_browser(explanation: GenerationExplanation, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "index.html"
    path.write_text(generation_page(explanation), encoding="utf-8")
    rows = word_rows(explanation)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        question, buttons = page.locator(".question"), page.locator(".answer button")
        assert buttons.all_inner_texts() == ANSWER.split()
        for number, row in enumerate(rows):
            buttons.nth(number).hover()
            assert question.inner_text() == row["question"]
        buttons.nth(2).tap()
        assert buttons.nth(2).get_attribute("aria-pressed") == "true"
        first = page.evaluate("document.querySelector('canvas').toDataURL()")
        buttons.nth(5).tap()
        assert question.inner_text() == "tavel against murlo"
        assert page.evaluate("document.querySelector('canvas').toDataURL()") != first
        page.keyboard.press("Escape")
        assert buttons.nth(2).get_attribute("aria-pressed") == "false"
        # The corner of the canvas has the colour of the map's own corner: red for, blue against.
        shown = page.evaluate("data.start")
        red, _, blue, _ = page.evaluate(
            "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 1, 1).data]"
        )
        corner = rows[shown]["maps"][0][0]
        if abs(corner) > 0.1 * max(map(abs, rows[shown]["maps"][0])):
            assert (red > blue) == (corner > 0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not wrong
