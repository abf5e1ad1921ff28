"""`vitrail compare` from the words on the command line to the sheets, on a tiny ViT with random weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from vitrail.cli import app
from vitrail.errors import UnsupportedOperationError
from vitrail.explanation import Explanation
from vitrail.methods import METHODS

MODEL = "timm/test_vit"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (180, 200, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: Any, command: str = "compare") -> Result:
        given = [command, *map(str, words), "--model", MODEL, "--checkpoint", str(checkpoint)]
        result = CliRunner().invoke(app, given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.fixture
def _broken(monkeypatch):
    def broken(run):
        """A method without a rule."""
        raise UnsupportedOperationError("no rule for Conv2d in stem.conv; use complete")

    monkeypatch.setitem(METHODS, "broken", replace(METHODS["complete"], name="broken", aliases=(), function=broken))


@pytest.mark.usefixtures("_broken")
def test_a_sheet_a_table_and_a_line_for_what_failed(run: Run, photo: Path, tmp_path: Path) -> None:
    words = ("-t", "zebra", "-t", 386, "--methods", "raw", "broken,complete", "--option", "complete.gradient=libra")
    result = run(photo, *words, "-f", "png", "-f", "safetensors", "-o", "out")
    assert result.exit_code == 1
    assert f"{photo}: broken: no rule for Conv2d in stem.conv; use complete" in result.stderr
    header, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert header[1:4] == ["method", "passes", "seconds"]
    assert [line[1] for line in lines] == ["raw", "broken", "complete"]
    assert [line[2] for line in lines] == ["1F", "1F 1B", "1F 1B"]
    assert lines[1][5] == "failed"
    stem = "a.compare.zebra+african-elephant"
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == [f"{stem}.complete.safetensors", f"{stem}.png", f"{stem}.raw.safetensors"]
    ex = Explanation.load(tmp_path / "out" / f"{stem}.complete.safetensors")
    assert ex.scores.shape[:2] == (1, 2)
    assert ex.metadata["gradient"] == "libra"


def test_json_tells_everything(run: Run, photo: Path) -> None:
    words = ("-t", "zebra", "--against", "African elephant", "--methods", "gae,complete", "--json")
    result = run(photo, *words, "--option", "gae.identity=true", "-f", "safetensors")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["options"] == {"gae": {"identity": True}}
    (one,) = document["results"]
    assert one["objective"] == "difference"
    assert one["questions"][0]["target_index"] == 340
    assert one["questions"][0]["against_index"] == 386
    assert [method["method"] for method in one["methods"]] == ["gae", "complete"]
    for method in one["methods"]:
        assert method["seconds"] > 0
        assert method["maps"][0]["lowest"] <= method["maps"][0]["highest"]
    assert not document["failures"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "nope"), "no method is called 'nope'"),
        (("--methods", "raw", "--option", "gae.identity=true"), "not among the methods compared: raw"),
        (("--methods", "gae", "--option", "gae.identity=perhaps"), "identity is true or false"),
        (("--methods", "gae", "--option", "gae.samples=3"), "does not know samples; it takes identity"),
        (("--methods", "gae", "--option", "gae.start_layer=two"), "start_layer is a whole number"),
        (("--methods", "gae", "--option", "identity=true"), "write METHOD.NAME=VALUE"),
        (("--methods", "gae", "--gradient", "auto"), "is not one of"),
        (("--methods", "gae", "-t", "unicorn"), "unicorn"),
    ],
)
def test_a_question_at_fault_is_exit_code_two(run: Run, photo: Path, words, message) -> None:
    result = run(photo, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_file_that_is_no_image_takes_no_other_down(run: Run, photo: Path) -> None:
    bad = photo.with_name("b.png")
    bad.write_bytes(b"no picture")
    result = run(photo.parent, "--methods", "raw", "-f", "safetensors")
    assert result.exit_code == 1
    assert "b.png" in result.stderr
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("identity=perhaps", "identity=perhaps of method 'gae': identity is true or false (default False)"),
        ("samples=3", "method 'gae' does not know samples; it takes identity"),
        ("identity", "write NAME=VALUE"),
    ],
)
def test_options_of_explain_are_typed_too(run: Run, photo: Path, option: str, message: str) -> None:
    result = run(photo, "--method", "gae", "--option", option, command="explain")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_explain_heeds_a_typed_option(run: Run, photo: Path, tmp_path: Path) -> None:
    words = ("--method", "rollout", "-f", "safetensors", "--json")
    assert run(photo, *words, "--option", "row_normalise=no", "-o", "out", command="explain").exit_code == 0
    (file,) = (tmp_path / "out").iterdir()
    assert Explanation.load(file).metadata["options"] == {"row_normalise": False, "heads": "mean"}
