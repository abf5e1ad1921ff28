"""`vitrail transfer` from the words on the command line to the files, on a tiny ViT with random weights."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from vitrail.cli.console import Reporter
from vitrail.counterfactual import Transfer

Run = Callable[..., Result]
QUICK = ("--film", "none", "--format", "svg")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (180, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "zoo.png")
    return tmp_path / "zoo.png"


@pytest.fixture
def run(command: Run) -> Run:
    return partial(command, "transfer")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_record_figure_film_and_lines(run: Run, photo: Path, tmp_path: Path):
    asked = ("--target", "zebra", "--against", "African elephant", "--also", "kite", "--steps", 3, "--lr", 0.01)
    result = run(photo, *asked, "--figure-step", 0, "--figure-step", 3)
    assert result.exit_code == 0
    stem = "zoo.transfer.zebra-to-african-elephant"
    assert files(tmp_path / "out") == [f"{stem}.gif", f"{stem}.png", f"{stem}.safetensors"]
    found = Transfer.load(tmp_path / "out" / f"{stem}.safetensors")
    assert found.classes == (340, 386, 21)
    assert (found.snapshots, found.lr, found.optimiser, found.constraint) == ((0, 1, 2, 3), 0.01, "sgd", "none")
    assert found.curve(340)[-1] < found.curve(340)[0]
    header, *lines = result.stdout.splitlines()
    assert header == "step\tzebra\tits probability\tAfrican elephant\tits probability\tkite\tits probability"
    assert [line.split("\t")[0] for line in lines] == ["0", "3"]
    assert result.stderr.count("written: out/zoo.transfer.") == 3
    with Image.open(tmp_path / "out" / f"{stem}.gif") as film:
        assert film.n_frames == 4  # type: ignore[attr-defined]


def test_one_json_document(run: Run, photo: Path):
    result = run(photo, *QUICK, "--steps", 2, "--optimiser", "adam", "--constraint", "softmax", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["optimiser"], document["constraint"], document["steps"]) == ("adam", "softmax", 2)
    assert [len(one["logits"]) for one in document["classes"]] == [3, 3]
    first, second = (one["logits"][0] for one in document["classes"])
    assert first > second, "by default the predicted class, and the strongest other"
    assert document["metadata"]["attention"]["highest_row_sum"] == pytest.approx(1, abs=1e-5)
    assert [Path(path).suffix for path in document["files"]] == [".safetensors", ".svg"]


def test_an_interrupt_leaves_a_state_and_the_same_command_goes_on(
    run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = (photo, *QUICK, "--target", "zebra", "--against", "kite", "--steps", 4, "--lr", 0.01)
    assert run(*words, "--output", "whole").exit_code == 0
    steps: list[int] = []

    def interrupted(self: Reporter, images: int = 1) -> None:
        steps.append(images)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "advance", interrupted)
        result = run(*words)
    assert result.exit_code == 130
    state = "zoo.transfer.zebra-to-kite.sgd-0.01-none.state.safetensors"
    assert f"of 4 steps: out/{state} is kept, and the same command resumes from it" in result.stderr
    assert files(tmp_path / "out") == [state]
    with monkeypatch.context() as patch:
        seen: list[int] = []
        patch.setattr(Reporter, "advance", lambda self, images=1: seen.append(images))
        assert run(*words).exit_code == 0
    assert sum(seen) == 4
    assert len(seen) == 1, "one step was left to take"
    name = "zoo.transfer.zebra-to-kite.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert state not in files(tmp_path / "out")


def test_a_restart_forgets_the_state(run: Run, photo: Path, tmp_path: Path):
    state = tmp_path / "out" / "zoo.transfer.zebra-to-kite.sgd-0.0004-none.state.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"half a file")
    words = (photo, *QUICK, "--target", "zebra", "--against", "kite", "--steps", 1)
    refused = run(*words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "cannot read out/zoo.transfer" in refused.stderr
    assert run(*words, "--restart").exit_code == 0
    assert not state.exists()


def test_questions_that_cannot_be_asked(run: Run, photo: Path, tmp_path: Path):
    def refused(match: str, *words: Any) -> None:
        result = run(photo, *QUICK, *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert match in result.stderr

    refused("--steps 0 moves nothing", "--steps", 0)
    refused("--lr -1 does not lower the logit", "--lr", -1)
    refused("both class 340 (zebra)", "--target", "zebra", "--against", 340)
    refused("unicorn", "--target", "unicorn")
    refused("unicorn", "--against", "unicorn")
    refused("there is no class 1000", "--also", 1000)
    refused("maps can be drawn after steps 0 to 4", "--steps", 4, "--figure-step", 9)
    refused("--frame-interval 2 is for a film", "--frame-interval", 2)
    result = run("nothing.png", *QUICK, "--steps", 1)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("nothing.png: ")
    folder = run(photo.parent, *QUICK, "--steps", 1)
    assert (folder.exit_code, folder.stdout) == (1, "")
    assert "is a folder, not an image file" in folder.stderr


@pytest.mark.slow
def test_resize_is_the_shorter_side_before_the_crop(run: Run, photo: Path):
    def zebra(*words: Any) -> float:
        return json.loads(run(photo, *QUICK, "--target", "zebra", "--steps", 1, "--json", *words).stdout)["classes"][0][
            "logits"
        ][0]

    assert zebra("--resize", 300) != zebra()
