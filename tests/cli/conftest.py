"""What the tests of the commands share: a tiny model's weights, and the command as a person or a program calls it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from vitrail.cli import app

MODEL = "timm/test_vit"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for `timm/test_vit`; no test writes there."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture
def command(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`vitrail` with these words in an empty folder, on the tiny model where they name no other; it never crashes."""
    monkeypatch.chdir(tmp_path)

    def call(*words: Any) -> Result:
        given = [str(word) for word in words]
        given += [] if "--model" in given else ["--model", MODEL]
        given += [] if "--checkpoint" in given else ["--checkpoint", str(checkpoint)]
        result = CliRunner().invoke(app, given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call
