"""`vitrail text` from the words on the command line to the files, on a tiny BERT in a folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from typer.testing import CliRunner, Result

import vitrail
from vitrail.cli import app
from vitrail.text import TextExplanation

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    texts.FAMILIES["bert"].build().save_pretrained(path)
    texts.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: Any) -> Result:
        given = ["text", *map(str, words)]
        given += [] if "--model" in given else ["--model", str(folder)]
        result = CliRunner().invoke(app, given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def test_tokens_and_scores_are_printed(run: Run, folder: Path):
    result = run(texts.TEXTS[0], "--target", "positive", "--method", "gae")
    assert result.exit_code == 0
    question, *lines = result.stdout.splitlines()
    assert question.startswith("positive ")
    ours = vitrail.explain_text(*vitrail.load_text(str(folder)), texts.TEXTS[0], "positive", method="gae")
    assert [line.split("\t")[0] for line in lines] == list(ours.tokens[0][1:-1])
    printed = torch.tensor([float(line.split("\t")[1]) for line in lines])
    torch.testing.assert_close(printed, ours.of()[1:-1], rtol=1e-4, atol=1e-8)


def test_json_holds_question_and_numbers(run: Run):
    words = ("--target", "positive", "--target", "neither", "--against", "negative", "--special", "--json")
    result = run(*texts.TEXTS[:2], *words)
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["objective"] == "difference"
    assert [(row["text"], row["target"], row["against"]) for row in document["results"]] == [
        (text, target, "negative") for text in texts.TEXTS[:2] for target in ("positive", "neither")
    ]
    assert document["results"][0]["tokens"][0]["token"] == "[CLS]"
    assert document["failures"] == []


@pytest.mark.parametrize("suffix", ["html", "png", "safetensors"])
def test_a_file_is_written(run: Run, tmp_path: Path, suffix: str):
    result = run(texts.TEXTS[0], "--output", f"out/a.{suffix}")
    assert (result.exit_code, result.stderr) == (0, f"written to out/a.{suffix}\n")
    assert (tmp_path / "out" / f"a.{suffix}").stat().st_size > 1000
    if suffix == "safetensors":
        assert TextExplanation.load(tmp_path / "out" / "a.safetensors").texts == (texts.TEXTS[0],)


def test_a_pair(run: Run):
    document = json.loads(run("a good film", "--pair", "not bad", "--json").stdout)
    assert document["results"][0]["text"] == ["a good film", "not bad"]
    assert [one["token"] for one in document["results"][0]["tokens"]] == ["a", "good", "film", "not", "bad"]


def test_what_the_numbers_are_can_be_said(run: Run):
    for words, kind in (((), "logits"), (("--output-kind", "multilabel"), "multilabel")):
        document = json.loads(run("a good film", "--target", "positive", *words, "--json").stdout)
        assert document["metadata"]["output"] == kind


def test_an_empty_text_fails_alone(run: Run):
    result = run("a good film", " ")
    assert result.exit_code == 1
    assert result.stderr == "text 1: the text is empty: there is no word to explain\n"
    assert "film\t" in result.stdout


def test_questions_at_fault(run: Run, tmp_path: Path):
    for words, message in [
        (("--target", "happy"), "no class of the model's 3 is called 'happy'"),
        (("--method", "tamm"), "no method is called 'tamm'"),
        (("--method", "gmar_l2", "--option", "alpha=-1.0"), "alpha=-1.0"),
        (
            ("--output", "a.txt"),
            "--output a.txt cannot be a single .txt file; name a folder, or a file that ends in .html",
        ),
        (("--device", "cudda"), "device 'cudda' cannot be used"),
        (("--model", "no/such/model"), "is no folder, nor an id"),
        (("--model", tmp_path), "cannot be loaded as a text classifier|is not a folder with a model"),
    ]:
        result = run("a good film", *words)
        assert result.exit_code == 2
        assert any(part in result.stderr for part in message.split("|")), result.stderr
        assert result.stderr.count("\n") == 1


def test_weights_without_a_classifier_are_refused(run: Run, tmp_path: Path):
    texts.FAMILIES["bert"].build().bert.save_pretrained(tmp_path / "bare")
    texts.tokenizer().save_pretrained(tmp_path / "bare")
    result = run("a good film", "--model", "./bare")
    assert result.exit_code == 2
    assert "classifier" in result.stderr


@pytest.mark.parametrize("watched", [False, True])
def test_names_and_tokens_command_no_terminal(run: Run, folder: Path, watched: bool, monkeypatch: pytest.MonkeyPatch):
    hostile = "a\x1b]0;owned\x07\x9b2J\u202eb\nError: c"
    model, tokenizer = vitrail.load_text(str(folder))
    model.config.id2label = {index: f"{hostile} {index}" for index in model.config.id2label}
    monkeypatch.setattr("vitrail.models.hugging_face.load_text", lambda *words, **options: (model, tokenizer))
    if watched:
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        monkeypatch.setenv("NO_COLOR", "1")
    result = run("a good \x1b]0;\x07\x9b\u202e film", "--model", hostile, "--output", "o\x1b[2J.html")
    assert result.exit_code == 0
    text = re.sub("\x1b\\[[0-9;]*m", "", result.output) if watched else result.output
    assert all(c.isprintable() or c in "\n\t" for c in text)
    assert r"a\x1b]0;owned\x07\x9b2J\u202eb\nError: c" in text
    assert r"o\x1b[2J.html" in text
