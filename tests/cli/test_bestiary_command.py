"""`vitrail bestiary …` and `vitrail demo`, as a person or a program calls them."""

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from vitrail.bestiary import render, sample_scene
from vitrail.cli import app
from vitrail.methods.registry import choose_methods


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_draw_writes_the_scenes_of_the_seed(tmp_path) -> None:
    result = call(
        "bestiary", "draw", "pair", "-n", 2, "--size", 64, "--seed", 7, "-o", tmp_path, "-s", "tavel", "-s", "konka"
    )
    assert result.exit_code == 0, result.output
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["pair-0000-tavel-konka.png", "pair-0001-tavel-konka.png"]
    expected = render(sample_scene("pair", (7, 1), species=("tavel", "konka")), 64).image
    assert (expected == Image.open(files[1])).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["draw", "single", "-s", "tavle"], "unknown species 'tavle'"),
        (["draw", "chimera", "-s", "tavel", "-s", "borrin"], "tavel and borrin differ in one part only"),
        (["draw", "pair", "-s", "tavel"], "needs 2 classes, not 1"),
        (["accuracy", "--model", "timm/vit_tiny_patch16_224"], "knows no creatures"),
        (["accuracy", "--checkpoint", "missing.safetensors"], "missing.safetensors is no readable safetensors file"),
        (["score", "--methods", "gea"], "no method is called 'gea'"),
        (["score", "--methods", "gae", "--gradient", "half"], "--gradient half is not a gradient mode"),
        (["label-errors", "--gradient", "half"], "--gradient half is not a gradient mode"),
        (["label-errors", "--method", "gea"], "no method is called 'gea'"),
    ],
)
def test_bad_input_ends_with_code_2_and_a_reason(words, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("bestiary", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.slow
def test_accuracy_and_score_for_programs() -> None:
    accuracy = json.loads(call("bestiary", "accuracy", "-n", 20, "--json").stdout)
    assert accuracy["single"] >= 0.9
    assert accuracy["scenes"] == 20
    document = json.loads(call("bestiary", "score", "--methods", "raw,complete", "-n", 2, "--json").stdout)
    labels = [(line["method"], line["gradient"]) for line in document["table"]]
    assert labels[2:] == [("raw", None), *(("complete", mode) for mode in ("full", "leaf", "libra", "compete"))]
    assert document["measures"]["pair sign"]["better"] == 1
    assert 0 <= document["table"][3]["pair sign"]["mean"] <= 1


@pytest.mark.slow
def test_label_errors_prints_both_models() -> None:
    found = json.loads(call("bestiary", "label-errors", "-n", 3, "--json").stdout)
    assert [line["model"] for line in found] == ["bestiary", "bestiary/label-errors"]


@pytest.mark.slow
def test_the_demo_is_a_whole_page_without_addresses_from_elsewhere(tmp_path) -> None:
    result = call("demo", "-o", tmp_path, "-n", 2)
    assert result.exit_code == 0, result.output
    assert f"Open {tmp_path / 'index.html'}" in result.stdout
    page = (tmp_path / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert named == {file.name for file in tmp_path.iterdir()} - {"index.html"}
    assert "http" not in page
    for info in (one.info for one in choose_methods("fast")):
        assert f"<b>{info.name}</b>" in page
        assert f"method-{info.name}.png" in named
    assert "http" not in (tmp_path / "words.html").read_text().replace("http://www.w3.org", "")
    for name in named - {"words.html"}:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300


def test_the_quick_demo_is_the_first_picture_alone(tmp_path) -> None:
    result = call("demo", "--quick", "-o", tmp_path)
    assert result.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "pair.png"]
    page = (tmp_path / "index.html").read_text()
    assert 'src="pair.png"' in page
    assert "<table>" not in page
    assert "without <code>--quick</code>" in page


def test_the_demo_says_where_it_cannot_write(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = call("demo", "-o", tmp_path / "file")
    assert result.exit_code == 2
    assert "file" in result.output


def test_the_demo_says_its_folder_without_commanding_the_terminal(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vitrail.demo.write_demo", lambda folder, **options: folder / "index.html")
    result = call("demo", "-o", tmp_path / "a\x1b]0;b\x07\x9b\u202e\nc")
    assert result.stdout == f"Open {tmp_path}/a\\x1b]0;b\\x07\\x9b\\u202e\\nc/index.html\n"
