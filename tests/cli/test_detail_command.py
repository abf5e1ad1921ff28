"""`vitrail detail` from the words on the command line to the sheets, on a tiny ViT with random weights."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

import vitrail
from vitrail.cli.options import one_by_one
from vitrail.explanation import Explanation

MODEL = "timm/test_vit"
NUMBERS = ("--format", "safetensors")  # without the drawing, which takes the time

Run = Callable[..., Result]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (180, 200, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def run(command: Run) -> Run:
    return partial(command, "detail")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_sheet_for_each_pair(run: Run, photo: Path, tmp_path: Path) -> None:
    result = run(photo, "--target", "snail", "--against", "conch", "slug", "--loss", "difference", "-o", "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert files(tmp_path / "out") == ["a.detail.snail-and-conch.png", "a.detail.snail-and-slug.png"]
    header, *lines = result.stdout.splitlines()
    assert header.split("\t") == ["image", "target", "its probability", "against", "and its", "both ways", "files"]
    assert [line.split("\t")[1:4:2] for line in lines] == [["snail", "conch"], ["snail", "slug"]]


def test_the_files_hold_what_python_gives(run: Run, photo: Path, tmp_path: Path, checkpoint: Path) -> None:
    result = run(photo, "-t", 113, "--against", 112, *NUMBERS, "--gradient", "libra", "-o", "out", "--json")
    assert result.exit_code == 0
    names = ["difference", "logit", "normalized_difference", "ratio"]
    assert files(tmp_path / "out") == [f"a.detail.{name}.safetensors" for name in names]
    (row,) = json.loads(result.stdout)["results"]
    assert (row["target"], row["against"], list(row["losses"])) == ("snail", "conch", list(vitrail.guidance.LOSSES))
    ex = Explanation.load(tmp_path / "out" / "a.detail.difference.safetensors")
    model = vitrail.load(MODEL, checkpoint=checkpoint)
    for at, (one, other) in enumerate([(113, 112), (112, 113)]):
        expected = vitrail.explain(model, photo, one, against=other, objective="difference", gradient="libra")
        torch.testing.assert_close(ex.scores[:, at], expected.scores, rtol=1e-4, atol=1e-7)
    way = row["losses"]["difference"]["forward"]
    assert way["value"] == pytest.approx(row["target_logit"] - row["against_logit"], abs=1e-5)
    assert way["highest"] == pytest.approx(float(ex.scores[0, 0].max()), rel=1e-5)
    assert row["losses"]["difference"]["correlation"] == pytest.approx(
        float(torch.corrcoef(ex.scores[0].flatten(1).double())[0, 1]), abs=1e-9
    )


def test_quotients_that_mean_nothing_are_reported(run: Run, photo: Path) -> None:
    """Random weights give logits of either sign; class pairs with a negative one fall back to the difference."""
    result = run(photo, "--top", 2, *NUMBERS, "--json")
    best = json.loads(result.stdout)["results"][0]
    assert not best["losses"]["ratio"]["forward"]["difference_instead"]
    words = (photo, "-t", best["target_index"], "--against")
    lowest = next(
        row
        for index in range(40)
        if index != best["target_index"]
        for row in json.loads(run(*words, index, *NUMBERS, "--loss", "ratio", "--json").stdout)["results"]
        if row["against_logit"] < 0
    )
    ways = lowest["losses"]["ratio"]
    assert ways["forward"]["difference_instead"]
    assert ways["reverse"]["difference_instead"]
    assert ways["forward"]["value"] == pytest.approx(lowest["target_logit"] - lowest["against_logit"], abs=1e-5)


def test_typical_pictures_are_counted(run: Run, photo: Path, tmp_path: Path) -> None:
    for name in ("kite", "bald eagle"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        Image.new("RGB", (160, 160), "brown").save(tmp_path / "birds" / name / "1.png")
    words = ("-t", "bald eagle", "--against", "kite", "--typical", tmp_path / "birds", *NUMBERS, "--json")
    (row,) = json.loads(run(photo, *words).stdout)["results"]
    assert {name: found["pictures"] for name, found in row["typical"].items()} == {"bald eagle": 1, "kite": 1}
    assert row["typical"]["kite"]["predicted"].keys() == {"bald eagle", "kite"}


def test_a_folder_without_the_classes_is_a_warning(run: Run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "birds" / "ostrich").mkdir(parents=True)
    Image.new("RGB", (160, 160)).save(tmp_path / "birds" / "ostrich" / "1.png")
    result = run(photo, "-t", "kite", "--against", "hen", "--typical", tmp_path / "birds", *NUMBERS)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert "no subfolder of pictures named by one of: kite, hen" in result.stderr


def test_the_words_after_against_are_classes_up_to_the_next_option() -> None:
    written = one_by_one(
        ["a", "--against", "x", "y", "z", "-t", "w", "--against=v", "b", "--", "--against", "p", "q"], "--against"
    )
    assert written == [
        *("a", "--against", "x", "--against", "y", "--against", "z", "-t", "w", "--against=v", "b"),
        *("--", "--against", "p", "q"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-t", "zebar", "--against", "kite"), "no class of the model's 1000 is called 'zebar'"),
        (("-t", "kite", "--against", "hen", "nobody"), "'nobody'"),
        (("-t", "kite", "--against", "kite"), "kite (21) is held against itself: give two different classes"),
        (("--top", "1001"), "at most the model's 1000 classes"),
        (("--method", "nope"), "no method is called 'nope'"),
        (("--method", "raw"), "raw is the same for every class"),
        (("--typical", "nowhere"), "--typical nowhere is no folder"),
        (("--typical", "empty"), "there is no picture in this folder or its subfolders"),
        (("-t", "kite", "--against", "hen", "slug", "--typical", "photos"), "could be of 2 classes (hen, slug)"),
    ],
)
def test_a_question_that_cannot_be_asked_is_exit_code_two(
    run: Run, photo: Path, tmp_path: Path, words: Any, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    result = run(photo, *words, *NUMBERS, "-o", "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert files(tmp_path / "out") == []


def test_a_bad_image_costs_its_line_and_the_exit_code_only(run: Run, photo: Path, tmp_path: Path) -> None:
    (photo.parent / "cut.png").write_bytes(photo.read_bytes()[:2000])
    result = run(photo.parent, "*.gif", "-t", "kite", "--against", "hen", *NUMBERS, "--loss", "logit", "-o", "out")
    assert result.exit_code == 1
    assert files(tmp_path / "out") == ["a.detail.logit.safetensors"]
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == ["*.gif", str(photo.parent / "cut.png")]


def test_a_prediction_held_against_itself_fails_for_that_image_alone(run: Run, photo: Path, checkpoint: Path) -> None:
    best = int(vitrail.explain(vitrail.load(MODEL, checkpoint=checkpoint), photo).target)
    result = run(photo, "--against", best, *NUMBERS)
    assert result.exit_code == 1
    assert "(the predicted class) is held against itself" in result.stderr
