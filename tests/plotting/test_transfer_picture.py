"""The figure and the film of a transfer: what they say, and that they show the steps they claim to show."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from vitrail.counterfactual import Transfer
from vitrail.errors import OptionError, OutputFileError
from vitrail.plotting import draw_transfer, save_figure, save_film
from vitrail.plotting.film import _with_one_palette
from vitrail.plotting.overlay import colour
from vitrail.plotting.transfer import draw_frame


def make(*, steps: int = 6, snapshots: tuple[int, ...] | None = None, classes: int = 2, **changes: Any) -> Transfer:
    """Logits that fall by one a step for class 0, and stay for the others; maps that turn from red to blue."""
    snapshots = tuple(range(steps + 1)) if snapshots is None else snapshots
    logits = torch.zeros(steps + 1, 7)
    logits[:, 0] = 4 - torch.arange(steps + 1.0)
    logits[:, 1] = 2
    maps = torch.stack([torch.full((classes, 4, 4), 1 - 2 * step / steps) for step in snapshots])
    fields: dict[str, Any] = {
        "logits": logits,
        "maps": maps,
        "snapshots": snapshots,
        "classes": tuple(range(classes)),
        "lr": 4e-4,
        "optimiser": "sgd",
        "constraint": "none",
        "class_names": ("zebra", "African elephant, Loxodonta africana", "kite", "b", "c", "d", "e"),
        "image": torch.full((32, 32, 3), 255, dtype=torch.uint8),
        "metadata": {"model": "timm/tiny", "sources": ["zoo.jpg"]},
    }
    return Transfer(**(fields | changes))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def pictures(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_classes_are_rows_and_steps_are_columns():
    figure = draw_transfer(make(), steps=[0, 2, 6])
    said = words(figure)
    assert [word for word in said if word.startswith("step ")] == ["step 0", "step 2", "step 6"]
    assert said.count("zebra") == said.count("African elephant") == 3
    assert {"zoo.jpg", "timm/tiny", "what the model saw"} <= set(said)
    assert "logit 4 · 81.5 %" in said
    assert "logit −2 · 1.1 %" in said
    assert sum("plain SGD, step size 0.0004, down the logit of zebra" in word for word in said) == 1
    shown = pictures(figure)
    assert len(shown) == 1 + 2 * 6, "the photograph, and a map with its bar for each class and step"
    first, last = shown[1], shown[9]
    assert first[5, 5, 0] > first[5, 5, 2], "red before"
    assert last[5, 5, 0] < last[5, 5, 2], "blue after"
    wider, taller = draw_transfer(make(), steps=[0, 2, 4, 6]), draw_transfer(make(classes=3), steps=[0, 2, 6])
    assert wider.get_size_inches()[0] > figure.get_size_inches()[0]
    assert taller.get_size_inches()[1] > figure.get_size_inches()[1]


def test_the_curves_are_the_logits():
    result = make()
    curves = {line.get_color(): line for line in draw_transfer(result).axes[-1].lines if len(line.get_xdata()) == 7}  # type: ignore[arg-type]
    drawn = [np.asarray(line.get_ydata()).tolist() for line in curves.values()]
    assert sorted(drawn) == sorted(result.curve(index).tolist() for index in result.classes)


def test_the_figure_says_what_became_of_each_logit():
    logits = torch.tensor([[4.0, 2.0, 0.5], [1.0, 2.0, 0.75], [-2.0, 2.0, 1.5]])
    found = make(steps=2, logits=logits, classes=3, class_names=("zebra", "kite", "snail"))
    told = "Logits: zebra falls from 4 to −2; kite stays at 2; snail rises from 0.5 to 1.5."
    assert told in words(draw_transfer(found))
    assert told in words(draw_frame(found, 1))


def test_columns_by_themselves():
    def columns(**fields: Any) -> list[str]:
        return [word.removeprefix("step ") for word in words(draw_transfer(make(**fields))) if word.startswith("step ")]

    assert columns(steps=6) == ["0", "1", "2", "3", "4", "5", "6"]
    assert columns(steps=50, snapshots=tuple(range(51))) == ["0", "5", "10", "20", "50"]
    assert columns(steps=99, snapshots=tuple(range(1, 100, 7))) == ["1", "22", "43", "57", "78", "99"]


def test_names_at_the_ends_do_not_overlap():
    logits = torch.zeros(3, 7)
    logits[:, :3] = torch.tensor([[3.0, 2.0, 1.0], [2.0, 1.9, 1.8], [1.0, 1.0, 1.0]])
    figure = draw_transfer(make(steps=2, classes=3, logits=logits))
    ends = [text for text in figure.texts if text.get_text() in ("zebra 1", "African elephant 1", "kite 1")]
    heights = sorted(text.get_position()[1] * figure.get_size_inches()[1] for text in ends)
    assert len(ends) == 3
    assert min(np.diff(heights)) > 0.14


def test_one_scale_for_a_class_only_when_asked():
    own, shared = (pictures(draw_transfer(make(), steps=[0, 2], shared_scale=asked)) for asked in (False, True))
    assert (own[1] == own[5]).all(), "both maps are as strong as they can be"
    assert shared[5][5, 5].astype(int).sum() > shared[1][5, 5].astype(int).sum(), "the second is paler"


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_files_are_the_same_twice(tmp_path: Path, kind: str):
    first, second = (save_figure(make(steps=1).plot(), tmp_path / f"{name}.{kind}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_without_a_photograph_or_names():
    said = words(draw_transfer(make(steps=1, image=None, class_names=None)))
    assert "class 0" in said
    assert "what the model saw" not in said


def test_steps_without_maps_are_refused():
    with pytest.raises(OptionError, match="no maps were drawn after step 3; there are those of 0, 6"):
        draw_transfer(make(snapshots=(0, 6)), steps=[0, 3])
    with pytest.raises(OptionError, match="a picture of no steps"):
        draw_transfer(make(), steps=[])
    with pytest.raises(OptionError, match="no maps were drawn after step 3"):
        draw_frame(make(snapshots=(0, 6)), 3)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_film_has_a_frame_for_each_snapshot(tmp_path: Path, kind: str):
    path = make(steps=4).animate(tmp_path / f"film.{kind}", fps=5, width=301)
    with Image.open(path) as film:
        assert (film.format or "").lower() == kind
        assert film.n_frames == 5  # type: ignore[attr-defined]
        assert film.size[0] == 300, "an even number, as some players want"
        frames, times = [], []
        for number in range(5):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
            times.append(film.info["duration"])
    if kind == "gif":
        assert times == [1000, 200, 200, 200, 2000]
        assert (frames[0][0, 0] == 255).all(), "white stays white in 256 colours"
    # The middle of the target's map: red in the first frame, blue in the last.
    row, column = round(0.3 * frames[0].shape[0]), round(0.5 * frames[0].shape[1])
    assert frames[0][row, column, 0] > frames[0][row, column, 2] + 50
    assert frames[-1][row, column, 2] > frames[-1][row, column, 0] + 50


def test_a_film_says_how_far_it_has_come():
    assert "after 2 of 6 steps" in words(draw_frame(make(), 2))
    assert "zebra 2" in words(draw_frame(make(), 2)), "the curve's end has the logit of that step"
    axes = draw_frame(make(), 2).axes[-1]
    assert max(len(np.atleast_1d(line.get_xdata())) for line in axes.lines) == 3, "no look into the future"


def test_films_that_cannot_be_made(tmp_path: Path):
    with pytest.raises(OptionError, match=r"name it \.gif, \.webp or \.mp4"):
        save_film(make(), tmp_path / "film.avi")
    with pytest.raises(OptionError, match="a film needs maps at two steps or more"):
        save_film(make(snapshots=(6,)), tmp_path / "film.gif")
    with pytest.raises(OptionError, match="0 frames per second"):
        save_film(make(), tmp_path / "film.gif", fps=0)
    assert not list(tmp_path.iterdir())


def test_an_mp4_without_ffmpeg_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(OutputFileError, match="needs ffmpeg, which is not installed"):
        save_film(make(), tmp_path / "film.mp4")


def test_an_mp4(tmp_path: Path):
    if shutil.which("ffmpeg") is None:
        pytest.importorskip("imageio_ffmpeg", reason="needs ffmpeg")
    film = save_film(make(steps=2), tmp_path / "film.mp4", width=300).read_bytes()
    assert film[4:8] == b"ftyp"


def test_an_ffmpeg_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat > /dev/null\necho no such codec >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    with pytest.raises(OutputFileError, match=r"ffmpeg could not make the film \(no such codec\)"):
        save_film(make(steps=1), tmp_path / "film.mp4", width=200)
    assert not (tmp_path / "film.mp4").exists()


def test_a_gif_shows_the_scale_of_the_map_without_steps():
    """Beside a photograph of many greys, which would take most of the 256 colours."""
    generator = np.random.default_rng(0)
    frame = np.full((300, 400, 3), 255, dtype=np.uint8)
    greys = generator.normal(120, 50, (200, 360, 1)) + generator.normal(0, 12, (200, 360, 3))
    frame[20:220, 20:380] = greys.clip(0, 255).astype(np.uint8)
    frame[240:250, 20:380] = np.rint(255 * colour(np.linspace(-1, 1, 360))).astype(np.uint8)
    first, _ = _with_one_palette([Image.fromarray(frame)] * 2)
    off = np.abs(np.asarray(first.convert("RGB"), dtype=int) - frame)
    assert off[245, 20:380].max() <= 8
    assert off[20:220, 20:380].mean() < 6
    assert off[:20].max() == 0
