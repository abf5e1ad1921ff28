"""`vitrail guide` from the words on the command line to the files; and what `vitrail explain` does by itself."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

import vitrail
from vitrail.explanation import Explanation
from vitrail.guidance import drawing

MODEL = "timm/test_vit"
HEADER = "image\ttarget\tits probability\tguide\tnext to it\tfiles"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "guide.png"):
        Image.fromarray(generator.integers(0, 256, (180, 200, 3), dtype=np.uint8)).save(folder / name)
    return folder


Run = Callable[..., Result]


@pytest.fixture
def run(command: Run) -> Run:
    return command


def test_a_picture_with_and_without_the_guide(run: Run, photos: Path, tmp_path: Path, checkpoint: Path) -> None:
    words = ("--guide", photos / "guide.png", "-t", "zebra", "-o", "out", "-f", "png", "-f", "safetensors")
    result = run("guide", photos / "a.png", *words, "--layout", "wide", "--side", "both")
    assert (result.exit_code, result.stderr) == (0, "")
    header, line = result.stdout.splitlines()
    assert header == HEADER
    assert line.split("\t")[1] == "zebra"
    with Image.open(tmp_path / "out" / "a.zebra.guided.png") as picture:
        assert picture.size[0] > 2000
    ex = Explanation.load(tmp_path / "out" / "a.zebra.guided.safetensors")
    model = vitrail.load(MODEL, checkpoint=checkpoint)
    guide = vitrail.Guide(photos / "guide.png", layout="wide", side="both")
    expected = vitrail.explain(model, photos / "a.png", "zebra", guide=guide)
    torch.testing.assert_close(ex.scores, expected.scores, rtol=1e-4, atol=1e-6)
    assert ex.metadata["sources"] == ["a.png"]
    assert [part.grid for part in ex.guided] == [(10, 20), (10, 20)]


def test_json_tells_the_guide(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"channels": 3, "seed": 0, "steps": 3, "progress": None}
    monkeypatch.setattr(drawing.draw_guide.__wrapped__, "__kwdefaults__", few)
    result = run("guide", photos / "a.png", "-t", "zebra", "--json", "-f", "safetensors", "--guide-class", "kite")
    document = json.loads(result.stdout)
    (row,) = document["results"]
    assert document["guide"]["pictures"] == "auto"
    assert [(one["drawn"], one["class_name"]) for one in row["guides"]] == [(True, "kite")]
    assert row["stitched"][0]["side"] == "left"
    assert row["beside_the_guide"][0] > 0
    assert "that the model drew itself (kite" in row["notes"][0]


def test_questions_at_fault(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        (("--guide", tmp_path / "empty"), "holds no image that could be a guide"),
        (("--guide", "nowhere.png"), "nowhere.png does not exist"),
        (("--method", "rollout"), "rollout is the same for every class, so a guide cannot steer it"),
        (("--side", "top"), "--side top is no place for the original in --layout side"),
        (("--guide-class", "unicorn"), "unicorn"),
    ):
        result = run("guide", photos / "a.png", "-t", "zebra", *words)
        assert result.exit_code == 2, words
        assert message in result.stderr


def test_a_guide_of_the_targets_class_fails_that_image_alone(run: Run, photos: Path, checkpoint: Path) -> None:
    model = vitrail.load(MODEL, checkpoint=checkpoint)
    seen = int(vitrail.explain(model, photos / "guide.png", method="raw").logits.argmax())
    result = run("guide", photos / "a.png", photos / "b.jpg", "-t", seen, "--guide", photos / "guide.png", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [failure["error"] for failure in document["failures"]] == ["GuideError", "GuideError"]
    assert "a guide must show another class" in document["failures"][0]["message"]
    drawn = run("guide", photos / "a.png", "-t", "zebra", "--guide-class", "zebra")
    assert drawn.exit_code == 1
    assert "a.png: --guide-class zebra is the target itself" in drawn.stderr


def test_a_folder_without_images(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("guide", "empty", "-t", "zebra")
    assert result.exit_code == 1
    assert result.stderr.startswith("empty: no image in this folder")
