"""`vitrail methods`, `vitrail models`, and the command around them."""

import json

import timm
from safetensors.torch import save_file
from typer.testing import CliRunner

import vitrail
from vitrail.cli import app


def test_methods_lists_all_of_them() -> None:
    result = CliRunner().invoke(app, ["methods"])
    header, *lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert header.split("\t")[:3] == ["method", "signed", "by class"]
    assert [line.split("\t")[0] for line in lines] == [info.name for info in vitrail.list_methods()]
    rows = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [row["name"] for row in rows if row["signed"]] == [
        info.name for info in vitrail.list_methods() if info.signed
    ]


def test_describe_lists_how_tokens_move() -> None:
    plain = CliRunner().invoke(app, ["describe", "--model", "bestiary"])
    assert plain.exit_code == 0
    assert "1 token(s) before 12 x 12 patches" in plain.stdout
    assert "attention 0:" not in plain.stdout  # a chain needs no list


def test_describe_lists_how_the_tokens_of_a_pyramid_move(tmp_path) -> None:
    weights = tmp_path / "maxvit.safetensors"
    save_file(timm.create_model("test_maxvit", num_classes=5).state_dict(), weights)
    asked = [
        "describe",
        "--model",
        "timm/test_maxvit",
        "--checkpoint",
        str(weights),
        "--num-classes",
        "5",
        "--size",
        "160x160",
    ]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.stderr
    assert "attention 0: " in result.stdout
    assert "residual: " in result.stdout
    assert "merge: 1 token(s) made of " in result.stdout
    assert "raw, rollout, gae, complete, absolute follow these steps" in result.stdout


def test_models_takes_a_pattern() -> None:
    result = CliRunner().invoke(app, ["models", "timm/vit_tiny_patch16_*"])
    assert result.exit_code == 0
    assert "timm/vit_tiny_patch16_224" in result.stdout.splitlines()
    assert json.loads(CliRunner().invoke(app, ["models", "vit_tiny_patch16_384", "--json"]).stdout) == [
        "timm/vit_tiny_patch16_384"
    ]


def test_no_model_of_that_name() -> None:
    result = CliRunner().invoke(app, ["models", "zebra"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: no model matches 'zebra'; * stands for anything, as in '*zebra*'\n"


def test_version_and_help() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"vitrail {vitrail.__version__}\n"
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in ("explain", "models", "methods"))
    assert CliRunner().invoke(app, ["explain", "--help"]).exit_code == 0
