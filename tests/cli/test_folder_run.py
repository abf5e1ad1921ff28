"""A folder from its files to its results: what is written, in which order, and what an interrupt leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import Result

import vitrail
from vitrail.cli import inputs
from vitrail.explanation import Explanation
from vitrail.plotting import draw_light, overlay, save_light

Run = Callable[..., Result]
RIGHT = ("--target", "zebra", "--gradient", "full", "--output", "out")


@pytest.fixture
def run(command: Run) -> Run:
    return partial(command, "explain")


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 160)).save(folder / f"{number:03}.jpg")
    return folder


def written(folder: Path, kind: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*.{kind}"))


def test_many_images_become_overlays_and_maps(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MANY", 10)
    photos = photographs(tmp_path / "photos", 11)
    result = run(photos, *RIGHT)
    assert result.exit_code == 0
    assert result.stderr == (
        "11 images: small overlays (.jpg) and maps (.safetensors) are written; --format png draws each a figure\n"
    )
    names = [f"{number:03}.zebra" for number in range(11)]
    assert written(tmp_path / "out", "jpg") == [f"{name}.jpg" for name in names]
    assert written(tmp_path / "out", "safetensors") == [f"{name}.safetensors" for name in names]
    assert len(list((tmp_path / "out").iterdir())) == 22
    lines = result.stdout.splitlines()[1:]
    assert [Path(line.split("\t")[0]).name for line in lines] == [f"{number:03}.jpg" for number in range(11)]
    with Image.open(tmp_path / "out" / "003.zebra.jpg") as picture:
        drawn = np.asarray(picture).astype(int)
    ex = Explanation.load(tmp_path / "out" / "003.zebra.safetensors")
    # JPEG of quality 95 in full colour: no eye sees what it changes.
    assert np.abs(drawn - draw_light(ex)).mean() < 2
    few = run(*sorted(photos.iterdir())[:2], *RIGHT[:-1], "few", "-f", "png", "-f", "overlay")
    assert few.exit_code == 0
    assert written(tmp_path / "few", "png") == ["000.zebra.png", "001.zebra.png"]
    assert (tmp_path / "few" / "000.zebra.jpg").read_bytes() == (tmp_path / "out" / "000.zebra.jpg").read_bytes()


def test_damaged_files_are_told_in_their_place_and_cost_nothing_else(run: Run, tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", 9)
    for name in ("002.jpg", "008.jpg"):
        (photos / name).write_bytes((photos / name).read_bytes()[:500])
    result = run(photos, *RIGHT, "-f", "safetensors", "-b", "2")
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        str(photos / name) for name in ("002.jpg", "008.jpg")
    ]
    assert len(written(tmp_path / "out", "safetensors")) == 7


class Small(nn.Module):
    """For more than two images memory is asked for that no machine has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            torch.empty(2**60)
        return self.module(images)


def test_memory_that_runs_out_loses_nothing(
    run: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photographs(tmp_path / "photos", 7)
    whole = vitrail.load("timm/test_vit", checkpoint=checkpoint)
    small = vitrail.wrap(
        Small(whole.module).eval(), preprocess=whole.preprocess, class_names=whole.class_names, name=whole.name
    )
    monkeypatch.setattr("vitrail.cli.explain.load_model", lambda request: small)
    result = run(photos, *RIGHT, "-f", "safetensors")
    assert result.exit_code == 0
    assert "warning: memory ran out" in result.stderr
    assert "2 images at a time from here on" in result.stderr or "1 image at a time" in result.stderr
    found = [Explanation.load(path) for path in sorted((tmp_path / "out").iterdir())]
    expected = vitrail.explain(whole, sorted(photos.iterdir()), "zebra", gradient="full")
    assert [ex.metadata["sources"] for ex in found] == [[name] for name in expected.metadata["sources"]]
    torch.testing.assert_close(torch.cat([ex.scores for ex in found]), expected.scores, rtol=1e-4, atol=1e-6)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_side_by_side_images_have_the_maps_that_each_has_alone(
    run: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    model = vitrail.load("timm/test_vit", checkpoint=checkpoint)
    threads: list[int] = []
    logits = vitrail.VisionModel.logits

    def watched(self: vitrail.VisionModel, images: torch.Tensor) -> torch.Tensor:
        threads.append(threading.get_ident())
        return logits(self, images)

    monkeypatch.setattr(vitrail.VisionModel, "logits", watched)
    photos = photographs(tmp_path / "photos", 11)
    result = run(photos, *RIGHT, "-f", "safetensors", "-b", "2")
    assert result.exit_code == 0
    assert len(set(threads)) == 3  # this one for the first batch, and one for each of two passes
    threads.clear()
    seeded = run(photos, *RIGHT[:-1], "seeded", "-f", "safetensors", "-b", "2", "--seed", "1")
    assert seeded.exit_code == 0
    assert set(threads) == {threading.get_ident()}
    for photo in sorted(photos.iterdir()):
        expected = vitrail.explain(model, photo, "zebra", gradient="full").scores
        for folder in ("out", "seeded"):
            found = Explanation.load(tmp_path / folder / f"{photo.stem}.zebra.safetensors").scores
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_an_interrupt_leaves_whole_files_only(tmp_path: Path, checkpoint: Path, threads: str) -> None:
    photos = photographs(tmp_path / "photos", 400)
    words = [
        str(photos),
        "--model",
        "timm/test_vit",
        "--checkpoint",
        str(checkpoint),
        "--output",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(vitrail.__file__).parents[1]), "OMP_NUM_THREADS": threads}
    running = subprocess.Popen(
        [sys.executable, "-m", "vitrail.cli", "explain", *words, "-f", "safetensors", "--gradient", "full"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("out/*.safetensors"))) < 5 and running.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert re.fullmatch(r"interrupted after \d+ of 400 images: every file in .*out is whole\n", stderr)
    files = list((tmp_path / "out").iterdir())
    assert 5 <= len(files) < 400
    assert all(path.suffix == ".safetensors" for path in files)
    for path in files:
        Explanation.load(path)


def test_the_plan_explains_nothing(run: Run, tmp_path: Path, two_threads: None) -> None:
    photos = photographs(tmp_path / "photos", 3)
    result = run(photos, "--plan", "-o", "out")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = dict(line.split("\t") for line in result.stdout.splitlines())
    assert rows["images per pass"] == "3 (auto)"
    assert rows["question"] == "complete, libra gradient, class competition, 1 target an image"
    assert rows["peak memory"].endswith("for each more")
    assert " s an image with drawing and writing, " in rows["time"]
    assert "passes side by side" not in rows  # all three are one batch
    assert not (tmp_path / "out").exists()
    refused = run(photos, "--plan", "--method", "nope")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "no method is called 'nope'" in refused.stderr


@pytest.mark.slow
def test_the_plan_of_several_passes(run: Run, tmp_path: Path, two_threads: None) -> None:
    photos = photographs(tmp_path / "photos", 3)
    words = ("-t", "zebra", "-t", "kite", "--against", "tench", "--method", "gae", "-b", "2", "--json")
    document = json.loads(run(photos, "*.gif", "--plan", *words).stdout)
    assert (document["batch"], document["targets"], document["images"], document["gradient"]) == (2, 2, 3, "full")
    assert document["peak"] == document["first"] + document["each"]
    assert document["seconds_in_all"] > document["seconds_before"] > 0
    assert not document["seconds_at_most"]
    assert [failure["image"] for failure in document["failures"]] == ["*.gif"]
    assert document["passes_at_once"] == 2
    rows = dict(line.split("\t") for line in run(photos, "--plan", *words[:-1]).stdout.splitlines())
    assert rows["passes side by side"].startswith("2 after the first, the processor's threads shared out: ")


@pytest.mark.parametrize("words", ["0", "some", "-1"])
def test_a_batch_is_a_number_or_auto(run: Run, tmp_path: Path, words: str) -> None:
    result = run(tmp_path, "--batch-size", words)
    assert result.exit_code == 2


def test_the_light_picture_shows_all_targets(tmp_path: Path) -> None:
    scores = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    picture = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ex = Explanation(
        scores=scores,
        logits=torch.zeros(1, 3),
        target=torch.tensor([[0, 2]]),
        method="complete",
        objective="logit",
        images=picture,
    )
    drawn = draw_light(ex)
    assert drawn.shape == (256, 2 * 384 + 4, 3)  # in whole steps, so that the shorter side has 224 at least
    assert (drawn[:, 384:388] == 255).all()
    second = overlay(scores[0, 1].numpy(), picture[0].numpy(), size=(256, 384))
    assert np.array_equal(drawn[:, 388:], second)
    first, again = save_light(ex, tmp_path / "a.jpg"), save_light(ex, tmp_path / "b.jpg")
    assert first.read_bytes() == again.read_bytes()
