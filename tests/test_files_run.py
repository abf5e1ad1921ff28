"""How many of Vitrail's files one warm call runs through: what a reader opens who follows it."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import vitrail
from vitrail.cli import app

EXPLAIN = 18
COMMAND = 43
HERE = Path(vitrail.__file__).parent


def files_of(call: Callable[[], object]) -> list[str]:
    """The files of the package that a second call runs through, on all its threads."""
    call()
    seen: set[str] = set()

    def note(frame, event, argument) -> None:
        seen.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return sorted(str(Path(file).relative_to(HERE)) for file in seen if HERE in Path(file).parents)


def test_explain() -> None:
    model = vitrail.wrap(timm.create_model("test_vit").eval())
    images = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    found = files_of(lambda: vitrail.explain(model, images))
    assert "attention/tap.py" in found
    assert len(found) <= EXPLAIN, found


def test_the_command(tmp_path: Path) -> None:
    weights, picture = tmp_path / "tiny.safetensors", tmp_path / "a.png"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    words = ["explain", picture, "--model", "timm/test_vit", "--checkpoint", weights, "--output", tmp_path / "out"]

    def run() -> None:
        assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0

    found = files_of(run)
    assert "cli/explain.py" in found
    assert len(found) <= COMMAND, found
