"""The recipe in miniature: it runs, resumes bit by bit, and refuses files that it cannot use."""

import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from training.bestiary import DELETION, SHIPPED, Recipe, Run, app, tokens_forward, train
from training.optimise import initialise, orthogonalised
from training.run import Progress
from training.scenes import augmented, deleted, kept_tokens, patch_labels
from vitrail.bestiary import UnknownNameError
from vitrail.bestiary import model as model_file
from vitrail.bestiary.model import build_model, load_weights, measure_accuracy, save_weights
from vitrail.errors import CheckpointError, CheckpointMismatchError

TINY = Recipe(scenes=20, steps=4, batch=4, warmup=1, interval=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    reports: list[Progress] = []
    weights = train(folder, recipe=TINY, progress=reports.append, workers=1)
    return folder, weights, reports


def test_a_run_reports_and_leaves_weights_of_a_plain_vit(finished):
    _, weights, reports = finished
    assert [(r.stage, r.done, r.total) for r in reports if r.stage == "train"] == [("train", 2, 4), ("train", 4, 4)]
    assert reports[-1].loss > 0
    model, card = load_weights(weights)
    assert type(model) is VisionTransformer
    assert not model.training
    assert card["recipe"]["steps"] == 4
    assert weights.stat().st_size < 8e6
    assert measure_accuracy(model, count=4).scenes == 4


def test_the_loss_is_the_mean_of_the_steps_since_the_last_report(finished, tmp_path):
    (tmp_path / "pool").symlink_to(finished[0] / "pool")

    def losses(interval):
        found: list[Progress] = []
        recipe = replace(TINY, steps=3, interval=interval)
        train(tmp_path, recipe=recipe, progress=found.append, workers=1, resume=False)
        return [report.loss for report in found if report.stage == "train"]

    first, second, third = losses(1)
    assert losses(2) == pytest.approx([(first + second) / 2, third])


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(finished, tmp_path):
    _, weights, _ = finished
    assert train(tmp_path, recipe=TINY, workers=1, minutes=0.0) is None  # stops at the first checkpoint
    resumed = train(tmp_path, recipe=TINY, workers=1)
    assert resumed.read_bytes() == weights.read_bytes()


def test_a_model_goes_on_from_the_shipped_one_on_images_that_lack_a_cell(tmp_path):
    recipe = replace(DELETION, scenes=20, steps=2, batch=4, warmup=1, interval=1)
    model, card = load_weights(train(tmp_path, recipe=recipe, workers=1, start=SHIPPED))
    assert (card["start"], card["recipe"]["deletion"]) == ("bestiary.safetensors", 0.5)
    shipped = load_weights(SHIPPED)[0].state_dict()
    far = max(float((value - shipped[name]).abs().max()) for name, value in model.state_dict().items())
    assert 0 < far < 0.1


def test_half_of_the_images_lack_one_cell_and_what_is_on_it():
    images, owners = torch.ones(400, 3, 8, 8), torch.ones(400, 8, 8, dtype=torch.long)
    found, owned = deleted(images, owners, 0.5, 4, torch.Generator().manual_seed(0))
    gone = (found == 0).all(dim=1)
    assert torch.equal(gone, owned == 0)
    assert set(gone.sum((1, 2)).tolist()) == {0, 4}
    assert 0.4 < gone.flatten(1).any(dim=1).float().mean() < 0.6
    assert gone[:, ::2, ::2].sum(0).min() > 3  # each of the sixteen cells in turn


def test_a_checkpoint_of_another_run_is_refused(finished):
    folder, _, _ = finished
    with pytest.raises(CheckpointError, match="is of a run with another seed; choose another folder or pass resume=F"):
        train(folder, recipe=TINY, workers=1, seed=5)


def test_damaged_files_are_refused(finished, tmp_path):
    _, weights, _ = finished
    (tmp_path / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="is damaged .*delete it or pass resume=False"):
        train(tmp_path, recipe=TINY, workers=1)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        load_weights(damaged)
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        load_weights(tmp_path / "missing.safetensors")
    other = tmp_path / "other.safetensors"
    save_weights({"head.weight": torch.zeros(2, 2)}, other, {"architecture": "mlp"})
    with pytest.raises(CheckpointMismatchError, match="of the architecture 'mlp'; known: vit"):
        load_weights(other)
    save_weights({"head.weight": torch.zeros(2, 2)}, other, {})
    with pytest.raises(CheckpointMismatchError, match="holds no bestiary model: the shape of cls_token is missing"):
        load_weights(other)
    save_weights({name: value * torch.nan for name, value in build_model().state_dict().items()}, other, {})
    with pytest.raises(CheckpointError, match="weights that are not finite"):
        load_weights(other)


def _swin():
    sizes = {"img_size": 96, "window_size": 6, "embed_dim": 16, "depths": (1, 2, 1), "num_heads": (1, 2, 4)}
    return SwinTransformer(num_classes=20, drop_path_rate=0.0, **sizes)


def _pvt():
    return PyramidVisionTransformerV2(
        num_classes=20, depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), drop_path_rate=0.0
    )


@pytest.mark.parametrize(("build", "tokens", "patch"), [(_swin, 36, 16), (_pvt, 9, 32)])
def test_any_architecture_of_timm_is_trained_resumed_and_loaded(build, tokens, patch, tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "ARCHITECTURES", MappingProxyType({"other": build}))
    run = Run("other", TINY, 0)
    assert run.patch == patch
    model = run.model.eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    images = torch.randn(2, 3, 96, 96)
    logits, found = tokens_forward(model, images, None)
    torch.testing.assert_close(logits, model(images))
    assert found.shape == (2, tokens, model.num_features)
    assert train(tmp_path / "a", architecture="other", recipe=TINY, workers=1, minutes=0.0) is None
    resumed = train(tmp_path / "a", architecture="other", recipe=TINY, workers=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "pool").symlink_to(tmp_path / "a" / "pool")
    assert train(tmp_path / "b", architecture="other", recipe=TINY, workers=1).read_bytes() == resumed.read_bytes()
    loaded, card = load_weights(resumed)
    assert type(loaded) is type(model)
    assert card["architecture"] == "other"


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown architecture 'vti'; known: vit, swin, pvt. Did you mean 'vit'"):
        train(tmp_path, architecture="vti", recipe=TINY)


def test_the_command_resumes_and_refuses_another_run(tmp_path):
    def call(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    tiny = [tmp_path, "--scenes", 4, "--steps", 2, "--threads", 1]
    first = call(*tiny)
    assert first.exit_code == 0, first.output
    assert "training, loss" in first.output
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    assert call(*tiny).exit_code == 0
    assert weights.read_bytes() == whole
    refused = call(*tiny, "--seed", 3)
    assert refused.exit_code == 2
    assert "of a run with another seed" in refused.output
    assert "--restart" in refused.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--error-share", 0.1], "say which errors --label-errors plants: add it"),
        (["--label-errors", "--error-pair", "borrin", "zelk"], "borrin and zelk do not differ in exactly one part"),
        (["--label-errors", "--error-share", 2], "a share of images must lie in [0, 1], not 2.0"),
        (["--deletion", "--small"], "choose one"),
    ],
)
def test_the_command_refuses_errors_that_it_cannot_plant(words, said, tmp_path):
    found = CliRunner().invoke(app, [str(tmp_path), *map(str, words)])
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())
    assert list(tmp_path.iterdir()) == []


def test_the_command_plants_errors_of_a_pair(tmp_path):
    words = "--small --scenes 4 --steps 1 --threads 1 --label-errors --error-pair vesk lindle --error-share 0.1 "
    found = CliRunner().invoke(app, [str(tmp_path), *words.split(), "--error-hidden", "0"])
    assert found.exit_code == 0, found.output
    card = load_weights(tmp_path / "weights.safetensors")[1]
    assert card["label_errors"] == {"label": "vesk", "shows": "lindle", "share": 0.1, "hidden": 0.0}
    assert (card["recipe"]["kinds"], card["recipe"]["parts"]) == (["single"], 0.0)


def test_the_package_does_not_need_the_recipes():
    source = Path(__file__).parents[2] / "src" / "vitrail"
    needing = [
        path for path in source.rglob("*.py") if re.search(r"^\s*(from|import) training\b", path.read_text(), re.M)
    ]
    assert needing == []


def test_with_all_tokens_the_training_forward_is_the_models_own():
    model = build_model().eval()
    initialise(model, torch.Generator().manual_seed(1))
    model.head.weight.data.normal_()
    images = torch.randn(2, 3, 96, 96)
    logits, tokens = tokens_forward(model, images, None)
    torch.testing.assert_close(logits, model(images), rtol=1e-5, atol=1e-5)
    assert tokens.shape == (2, 144, 128)


def test_patch_labels_are_shares_of_pixels():
    owners = torch.zeros(1, 16, 16, dtype=torch.long)
    owners[0, :4, :8] = 3
    owners[0, 8:, 8:] = 64 + 5
    creatures = torch.eye(20)[None, [4, 7]]
    parts, classes = patch_labels(owners, creatures, 8)
    torch.testing.assert_close(parts.sum(2), torch.ones(1, 4), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(classes.sum(2), torch.ones(1, 4), rtol=1e-5, atol=1e-8)
    assert parts[0, 0, 3] == 0.5
    assert classes[0, 0, 1 + 4] == 0.5
    assert parts[0, 3, 5] == 1
    assert classes[0, 3, 1 + 7] == 1


def test_kept_tokens_prefer_creatures():
    ground = torch.ones(1, 144)
    ground[0, 10:20] = 0.3
    kept = kept_tokens(ground, 72, torch.Generator().manual_seed(0))
    assert set(range(10, 20)) <= set(kept[0].tolist())
    assert len(set(kept[0].tolist())) == 72


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.5
    torch.testing.assert_close(orthogonalised(matrices.mT), orthogonalised(matrices).mT, rtol=1e-5, atol=1e-8)


def test_augmentation_moves_owners_with_their_pixels():
    images = torch.zeros(4, 3, 96, 96, dtype=torch.uint8)
    owners = torch.zeros(4, 96, 96, dtype=torch.uint8)
    images[:, :, 40:60, 20:50] = 200
    owners[:, 40:60, 20:50] = 7
    moved, owned = augmented(images, owners, torch.Generator().manual_seed(3))
    bright = moved.mean(dim=1) > -0.2
    assert ((owned == 7) == bright).float().mean() > 0.97
    assert torch.equal(moved, augmented(images, owners, torch.Generator().manual_seed(3))[0])
