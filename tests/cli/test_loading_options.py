"""The options by which every command loads its model."""

import csv
from pathlib import Path

import pytest
import timm
import torch
import typer
from safetensors.torch import save_file

from vitrail.cli import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def options_of(name: str) -> set[str]:
    return {word for parameter in COMMANDS[name].params for word in parameter.opts}


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--checkpoint" in options_of(name)])
def test_every_command_that_loads_a_model_can_be_told_its_classes(name: str):
    assert {"--model", "--num-classes", "--class-names"} <= options_of(name)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("five") / "five.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", num_classes=5).state_dict(), path)
    return path


def test_a_checkpoint_of_five_classes_is_explained_by_their_names(command, five: Path, tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    with (tmp_path / "names.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("index", "name"), *enumerate(["ant", "bee", "cat", "dog", "elk\x1b[2J"])])
    words = ("explain", "red.png", "--checkpoint", five, "--class-names", "names.csv")
    result = command(*words, "--target", "cat")
    assert result.exit_code == 0, result.output
    assert "cat" in result.output
    result = command(*words, "--target", "zebra")
    assert result.exit_code == 2
    assert "no class of the model's 5 is called 'zebra'" in result.output
    result = command(*words, "--target", "4")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    result = command("explain", "red.png", "--checkpoint", five, "--num-classes", "7")
    assert result.exit_code == 2
    assert "made for 5 classes" in result.output
    assert "--num-classes" in result.output
