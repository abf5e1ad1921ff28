"""`vitrail rewrite` from the words on the command line to the file that is classified again."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import vitrail
from vitrail.bestiary import render, sample_scene
from vitrail.cli import app
from vitrail.counterfactual import classify

MODEL = "timm/test_vit"

Run = Callable[..., Result]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (170, 190, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def run(command: Run) -> Run:
    return partial(command, "rewrite")


def test_picture_figure_and_lines(tmp_path, monkeypatch):
    """On a model that has learned something: a creature becomes its sibling, and the file says so too."""
    monkeypatch.chdir(tmp_path)
    photo = tmp_path / "creature.png"
    Image.fromarray(render(sample_scene("single", seed=23, species="tavel"), 180).image).save(photo)
    words = ["rewrite", str(photo), "--model", "bestiary", "--target", "borrin", "--until", "0.8"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "→ borrin" in result.stdout
    assert "read back, borrin" in result.stdout
    saved = tmp_path / "out" / "creature.rewritten.borrin.png"
    model = vitrail.load("bestiary")
    assert int(classify(model, saved).argmax()) == model.class_index("borrin")
    assert (tmp_path / "out" / "creature.rewritten.borrin.figure.png").stat().st_size > 10_000
    with Image.open(saved) as picture:
        assert picture.size == (180, 180)


def test_not_reached_is_exit_code_1(run, photo):
    words = ("--target", "zebra", "--until", 0.99, "--budget", "1/255", "--steps", 2, "-o", "new.webp", "--json")
    result = run(photo, *words, "--figure", "new.svg")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert not told["reached"]
    assert (told["file"], told["figure"], told["target_index"]) == ("new.webp", "new.svg", 340)
    assert told["linf"] <= 1 / 255 + 1e-9
    assert told["probability_of_file"] == told["target_probability"][1]
    assert len(told["curves"]["target"]) == 3
    assert (told["objective"], told["variant"]) == ("log_probability", "sign")
    plain = run(photo, "--target", "zebra", "--until", 0.99, "--steps", 1)
    assert plain.exit_code == 1
    assert "zebra not reached" in plain.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--target", "zebra", "-o", "new.jpg"),
            "--output new.jpg cannot be a single .jpg file; name a folder, or a file that ends in .png, .webp",
        ),
        (("--target", "zebra", "--figure", "new.gif"), "--figure new.gif cannot be a single .gif file"),
        (("--target", "zebrra"), "no class of the model's 1000 is called 'zebrra'"),
        (("--target", "zebra", "--source", 340), "which is the source as well"),
        (("--target", "zebra", "--budget", "0"), "--budget 0 allows no change"),
        (("--target", "zebra", "--budget", "0/255", "--norm", "l2"), "--budget 0 allows no change"),
        (("--target", "zebra", "--budget", "0.5/255"), "--budget 0.00196078 is below one level of 8 bits"),
        (("--target", "zebra", "--budget", "1/0"), "'1/0' is no number; write 0.03 or 8/255"),
        (("--target", "zebra", "--budget", "inf"), "'inf' is no number; write 0.03 or 8/255"),
        (("--target", "zebra", "--step-size", "nan"), "'nan' is no number; write 0.03 or 8/255"),
        (("--target", "zebra", "--until", "1.5"), "--until 1.5 is no probability"),
        (("--target", "zebra", "--budget", "much"), "write 0.03 or 8/255"),
    ],
)
def test_questions_at_fault_are_exit_code_2(run, photo, tmp_path, words, message):
    result = run(photo, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_at_the_input_with_another_resize(run, photo):
    words = ("--target", "zebra", "--steps", 1, "--json", "--resolution", "input")
    told = json.loads(run(photo, *words, "--resize", 161).stdout)
    assert told["at"] == "input"
    assert told["probability_of_file"] == max(told["curves"]["target"])
    with Image.open(told["file"]) as picture:
        assert picture.size == (160, 160)
    assert json.loads(run(photo, *words).stdout)["curves"]["source"][0] != told["curves"]["source"][0]


def test_what_is_no_picture_is_exit_code_2(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("no picture")
    for name, message in (("empty", "is a folder"), ("bad.png", "is no image"), ("nowhere.png", "does not exist")):
        result = run(name, "--target", "zebra")
        assert result.exit_code == 2
        assert f"{name} {message}" in result.stderr
        assert not (tmp_path / "out").exists()
