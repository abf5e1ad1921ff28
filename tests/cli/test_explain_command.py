"""`vitrail explain` from the words on the command line to the files, on a tiny ViT with random weights."""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import vitrail
from vitrail.cli import app
from vitrail.errors import NoSignalError
from vitrail.explanation import Explanation
from vitrail.inputs import Prepared

MODEL = "timm/test_vit"
NUMBERS = ("--format", "safetensors")  # without the drawing, which takes the time
HEADER = "image\ttarget\tits probability\tagainst\tand its\tlowest\thighest\tfiles"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "deep/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (180, 200, 3), dtype=np.uint8)).save(folder / name)
    return folder


Run = Callable[..., Result]


@pytest.fixture
def run(command: Run) -> Run:
    return partial(command, "explain")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_becomes_pictures_and_lines(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run(photos, "--target", "zebra", "--gradient", "full", "--output", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert files(tmp_path / "out") == ["a.zebra.png", "b.zebra.png", "deep/a.zebra.png"]
    header, *lines = result.stdout.splitlines()
    assert header == HEADER
    assert [line.split("\t")[:2] for line in lines] == [
        [str(photos / name), "zebra"] for name in ("a.png", "b.jpg", "deep/a.png")
    ]
    assert lines[0].split("\t")[2].endswith(" %")
    with Image.open(tmp_path / "out" / "a.zebra.png") as picture:
        assert picture.size[0] == 1360


def test_the_file_holds_what_python_gives(run: Run, photos: Path, tmp_path: Path, checkpoint: Path) -> None:
    words = (
        "--target",
        "African elephant",
        "--against",
        340,
        "--objective",
        "difference",
        "--gradient",
        "leaf",
        "--batch-size",
        2,
    )
    assert run(photos, *words, "--centred", "--start-layer", 1, "-f", "safetensors", "-o", "out").exit_code == 0
    assert files(tmp_path / "out")[0] == "a.african-elephant.against-zebra.safetensors"
    ex = Explanation.load(tmp_path / "out" / "b.african-elephant.against-zebra.safetensors")
    expected = vitrail.explain(
        vitrail.load(MODEL, checkpoint=checkpoint),
        photos / "b.jpg",
        "African elephant",
        against="zebra",
        objective="difference",
        gradient="leaf",
        centred=True,
        start_layer=1,
    )
    torch.testing.assert_close(ex.scores, expected.scores, rtol=1e-4, atol=1e-6)
    assert expected.images is not None
    assert torch.equal(ex.images if ex.images is not None else torch.zeros(0), expected.images)
    assert (ex.target.tolist(), ex.objective) == ([386], "difference")
    assert ex.metadata["sources"] == ["b.jpg"]
    assert ex.metadata["checkpoint_sha256"] == expected.metadata["checkpoint_sha256"]


def test_several_targets_are_one_picture(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run(photos / "a.png", "-t", "zebra", "-t", "386", "--against", "tench", "-f", "all", "-o", "out")
    assert result.exit_code == 0
    stem = "a.zebra+african-elephant.against-tench"
    assert files(tmp_path / "out") == sorted(f"{stem}.{kind}" for kind in ("jpg", "pdf", "png", "safetensors", "svg"))
    assert [line.split("\t")[1] for line in result.stdout.splitlines()[1:]] == ["zebra", "African elephant"]
    assert Explanation.load(tmp_path / "out" / f"{stem}.safetensors").scores.shape == (1, 2, 10, 10)


def test_without_a_target_each_image_gets_its_predicted_class(run: Run, photos: Path, tmp_path: Path) -> None:
    document = json.loads(run(photos, "--json", "-o", "out", "-f", "safetensors").stdout)
    for row, name in zip(document["results"], ("a.png", "b.jpg", "deep/a.png"), strict=True):
        ex = Explanation.load(row["files"][0])
        assert row["image"] == str(photos / name)
        assert row["target_index"] == ex.logits.argmax().item()
        assert (row["lowest"], row["highest"]) == (ex.scores.min().item(), ex.scores.max().item())


def test_json_is_one_document_with_the_failures_in_it(run: Run, photos: Path) -> None:
    (photos / "c.png").write_text("not a picture")
    result = run(
        photos, "nowhere.png", "-t", "zebra", "--against", "kite", "--json", "-o", "out", "--seed", 3, *NUMBERS
    )
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["model"] == MODEL
    assert (document["method"], document["objective"], document["gradient"]) == (
        "complete",
        "difference",
        None,  # as asked: the method's own
    )
    assert {row["gradient"] for row in document["results"]} == {"libra"}
    assert [row["target"] for row in document["results"]] == ["zebra"] * 3
    assert 0 <= document["results"][0]["against_probability"] <= 1
    assert [Path(failure["image"]).name for failure in document["failures"]] == ["c.png", "nowhere.png"]
    assert [json.loads(line) for line in result.stderr.splitlines()] == document["failures"]


def test_a_bad_image_costs_its_line_and_the_exit_code_only(run: Run, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "a.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    result = run(photos, "*.gif", "-t", "zebra", "--gradient", "full", "-o", "out", *NUMBERS)
    assert result.exit_code == 1
    assert files(tmp_path / "out") == [f"{stem}.zebra.safetensors" for stem in ("a", "b", "deep/a")]
    pattern, cut = result.stderr.splitlines()
    assert pattern == "*.gif: no file matches this pattern"
    assert cut.startswith(f"{photos / 'cut.png'}: ends before its pixels do")
    assert "Traceback" not in result.output


def test_a_folder_without_images_is_its_line_and_the_exit_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    result = run("empty", "-t", "zebra", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("empty: no image in this folder")
    assert files(tmp_path / "out") == []


def test_a_prediction_held_against_itself_fails_for_that_image_alone(
    run: Run, photos: Path, tmp_path: Path, checkpoint: Path
) -> None:
    model = vitrail.load(MODEL, checkpoint=checkpoint)
    Image.new("RGB", (200, 200), "red").save(photos / "red.png")
    own = {path: int(vitrail.explain(model, path, method="raw").logits.argmax()) for path in photos.rglob("*.*")}
    against = own[photos / "red.png"]
    guilty = {path for path, index in own.items() if index == against}
    assert len(guilty) < len(own)
    result = run(photos, "--against", against, "-o", "out", *NUMBERS)
    assert result.exit_code == 1
    failures = [line for line in result.stderr.splitlines() if "is held against itself" in line]
    assert {Path(line.split(": ")[0]) for line in failures} == guilty
    assert all(f"({against}) (the predicted class) is held against itself" in line for line in failures)
    assert len(files(tmp_path / "out")) == len(own) - len(guilty)


def test_a_quotient_of_logits_below_zero_is_told(run: Run, photos: Path, checkpoint: Path) -> None:
    logits = vitrail.explain(vitrail.load(MODEL, checkpoint=checkpoint), photos / "a.png", method="raw").logits[0]
    lowest, best = int(logits.argmin()), int(logits.argmax())
    assert logits[lowest] < 0
    for objective in ("ratio", "normalized_difference"):
        words = ("-t", best, "--against", lowest, "--objective", objective, "-o", "out", *NUMBERS)
        result = run(photos / "a.png", *words)
        assert result.exit_code == 0
        assert f"A logit is zero or negative, where {objective} means nothing: the logits' diff" in result.stderr


def test_only_the_guilty_of_a_batch_fails(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map without signal shows only in the engine, when the whole batch has been run."""
    module = importlib.import_module("vitrail.explain")  # vitrail.explain itself is the function
    honest, sizes = vitrail.explain, []

    def explain(model: Any, images: list[Prepared], *args: Any, **kwargs: Any) -> Explanation:
        sizes.append(len(images))
        if any(image.tensor.std() == 0 for image in images):
            raise NoSignalError("the map is the same everywhere")
        return honest(model, images, *args, **kwargs)

    monkeypatch.setattr(module, "explain", explain)
    Image.new("RGB", (200, 200), "grey").save(photos / "empty.png")
    result = run(photos, "-t", "zebra", "-o", "out", "--gradient", "full", *NUMBERS)
    assert (result.exit_code, result.stderr) == (1, f"{photos / 'empty.png'}: the map is the same everywhere\n")
    assert len(files(tmp_path / "out")) == 3
    assert sizes == [4, 1, 1, 1, 1]


def test_a_result_that_cannot_be_written_fails_alone(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "a.zebra.png").mkdir(parents=True)
    result = run(photos / "a.png", photos / "b.jpg", "-t", "zebra", "-o", "out")
    assert result.exit_code == 1
    assert "a.zebra.png: it is a folder" in result.stderr
    assert files(tmp_path / "out") == ["b.zebra.png"]


def test_size_dtype_and_readout_reach_the_model(run: Run, photos: Path, tmp_path: Path) -> None:
    words = (
        "--size",
        "96x128",
        "--dtype",
        "float64",
        "--readout",
        "2,3",
        "--option",
        "identity=true",
        "-f",
        "safetensors",
    )
    result = run(photos / "a.png", "-t", 7, "--gradient", "full", *words, "-o", "out")
    assert (result.exit_code, result.stderr) == (0, "")
    ex = Explanation.load(next((tmp_path / "out").iterdir()))
    assert (ex.scores.shape, ex.scores.dtype) == ((1, 6, 8), torch.float64)
    assert ex.images is not None
    assert ex.images.shape == (1, 96, 128, 3)
    assert ex.metadata["options"]["identity"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "zebar"), "no class of the model's 1000 is called 'zebar'"),
        (("--target", "elephant"), "'elephant' is the name of 2 classes"),
        (("--target", "5000"), "no class 5000"),
        (("--against", "nobody"), "'nobody'"),
        (("--method", "nope"), "no method is called 'nope'; there are raw, rollout"),
        (("--method", "complete", "--option", "colour=red"), "method 'complete' does not know colour"),
        (("--objective", "nope"), "no objective is called 'nope'"),
        (("--objective", "ratio"), "--objective ratio compares two classes"),
        (("-t", "zebra", "-t", "kite", *("--against", "1") * 3), "2 targets against 3 classes"),
        (("-t", "zebra", "--against", "340"), "zebra (340) is held against itself: give two different classes"),
        (("-t", "kite", "-t", "zebra", "--against", "zebra"), "zebra (340) is held against itself"),
        (("--start-layer", "99"), "--start-layer 99"),
        (("--readout", "500"), "--readout 500"),
        (("--model", "nope/vit"), "no model 'nope/vit'"),
        (("--model", "timm/nope"), "timm has no model 'nope'"),
        (("--checkpoint", "missing.safetensors"), "missing.safetensors"),
        (("--device", "toaster"), "device 'toaster' cannot be used"),
        (("--output", "/dev/null/out"), "cannot write into /dev/null/out"),
    ],
)
def test_a_question_that_cannot_be_asked_is_exit_code_two(
    run: Run, photos: Path, tmp_path: Path, words: Any, message: str
) -> None:
    result = run(photos, *([] if "--output" in words else ["--output", "out"]), *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert not (tmp_path / "out").exists() or files(tmp_path / "out") == []


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "axb"),
        ("--size", "0x3"),
        ("--option", "novalue"),
        ("--batch-size", "0"),
        ("--format", "bmp"),
        ("--gradient", "half"),
        ("--nothing",),
    ],
)
def test_words_that_make_no_sense_are_exit_code_two(run: Run, photos: Path, words: tuple[str, ...]) -> None:
    result = run(photos, *words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_the_real_thing(shared: Path, tmp_path: Path) -> None:
    """The zebra is red and the elephant is blue."""
    weights = shared / "models" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    words = [
        "explain",
        str(shared / "images/pairs/el2.png"),
        "--model",
        "timm/vit_tiny_patch16_224",
        "--checkpoint",
        str(weights),
    ]
    words += ["--target", "zebra", "--method", "complete", "--output", str(tmp_path), "-f", "png", "-f", "safetensors"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert files(tmp_path) == ["el2.zebra.png", "el2.zebra.safetensors"]
    scores = Explanation.load(tmp_path / "el2.zebra.safetensors").map()
    zebra, elephant = scores[8:10, 6:10], scores[2:6, 3:9]
    assert zebra.mean() > 0.3 * scores.abs().max()
    assert -elephant.clamp(max=0).sum() > 3 * elephant.clamp(min=0).sum()
