"""`vitrail explain --text` from the words on the command line to the files, on a tiny CLIP with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import enliven
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import vitrail
from vitrail.cli import app
from vitrail.explanation import Explanation


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a tiny CLIP, its weights, and a picture."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {"image_size": 64, "layers": 2, "width": 24, "head_width": 12, "patch_size": 16},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    whole = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    enliven(whole)
    save_file({key: tensor.contiguous() for key, tensor in whole.state_dict().items()}, folder / "w.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(folder / "p.png")
    return folder


def explain(clip: Path, *words: str, model: str | None = None) -> Result:
    given = [str(clip / "p.png"), "--model", model or f"open_clip/local-dir:{clip}", *words, "-o", str(clip / "out")]
    given += [] if model else ["--checkpoint", str(clip / "w.safetensors")]
    result = CliRunner().invoke(app, ["explain", *given])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_text_against_another(clip: Path) -> None:
    result = explain(
        clip, "--text", "a dog, lying", "--against-text", "a cat", "-f", "safetensors", "--gradient", "full"
    )
    assert result.exit_code == 0, result.stderr
    assert "a dog, lying" in result.stdout
    found = Explanation.load(clip / "out" / "p.a-dog-lying.against-a-cat.safetensors")
    assert found.class_names == ("a dog, lying", "a cat")
    assert found.sides()[0][0] == "a dog, lying"
    assert found.objective == "difference"
    model = vitrail.load(
        f"open_clip/local-dir:{clip}", checkpoint=clip / "w.safetensors", texts=["a dog, lying", "a cat"]
    )
    expected = vitrail.explain(model, clip / "p.png", target="a dog, lying", against="a cat", gradient="full")
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.scores.min() < 0 < found.scores.max()


def test_several_texts_as_a_picture_and_json(clip: Path) -> None:
    result = explain(clip, "--text", "a dog", "--text", "a cat", "--method", "gradcam", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["results"]
    assert [row["target"] for row in rows] == ["a dog", "a cat"]
    assert sum(row["target_probability"] for row in rows) == pytest.approx(1, abs=1e-5)
    assert (clip / "out" / "p.a-dog+a-cat.png").is_file()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("--text", ""), "TextError", "a text must say something"),
        (("--text", "a dog", "--against-text", "A dog"), "SameClassError", "is given twice (as 'a dog' and 'A dog')"),
    ],
)
def test_texts_at_fault(clip: Path, words: tuple[str, ...], error: str, message: str) -> None:
    result = explain(clip, *words, "--json")
    assert result.exit_code == 2
    said = json.loads(result.stderr.strip().splitlines()[-1])
    assert said["error"] == error
    assert message in said["message"]


def test_a_classifier_reads_no_text(clip: Path) -> None:
    result = explain(clip, "--text", "a dog", model="timm/test_vit")
    assert result.exit_code == 2
    assert "has no text tower" not in result.stdout
    assert "without a text tower" in result.stderr
    assert "open_clip/ViT-B-32" in result.stderr
    assert "give --target" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", "a dog", "--target", "3"), "a text is a target of its own"),
        (("--against-text", "a dog"), "say what it is compared with"),
    ],
)
def test_words_that_do_not_go_together(clip: Path, words: tuple[str, ...], message: str) -> None:
    result = explain(clip, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()).replace("│ ", "").replace(" │", "")
