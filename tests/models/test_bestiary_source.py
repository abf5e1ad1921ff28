"""The models inside the package: loaded without a network, and refused clearly where the weights are not sound."""

import shutil
from pathlib import Path

import pytest
import torch

import vitrail
from vitrail.bestiary.species import CLASS_NAMES
from vitrail.errors import CheckpointError, ModelError, UnknownModelError

WEIGHTS = Path(vitrail.__file__).parent / "bestiary" / "weights"


def test_the_shipped_models_load_by_name_and_know_their_classes() -> None:
    assert vitrail.list_models("bestiary*") == [
        *("bestiary", "bestiary/deletion", "bestiary/label-errors", "bestiary/pvt", "bestiary/swin")
    ]
    for name in vitrail.list_models("bestiary*"):
        model = vitrail.load(name)
        assert model.class_names == CLASS_NAMES
        assert not model.module.training
        assert model.name == name
        assert (WEIGHTS / model.metadata["weights"]).stat().st_size < 8e6
        assert (WEIGHTS / model.metadata["weights"]).with_suffix(".md").is_file()


def test_weights_from_a_file_and_random_ones() -> None:
    shipped = vitrail.load("bestiary")
    again = vitrail.load("bestiary", checkpoint=WEIGHTS / "bestiary.safetensors")
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shipped.logits(image), again.logits(image))
    random = vitrail.load("bestiary", pretrained=False)
    assert random.metadata["weights"] == "random"
    assert not torch.equal(shipped.logits(image), random.logits(image))


def test_a_larger_input_resamples_the_position_embeddings() -> None:
    wide = vitrail.load("bestiary", size=(96, 192))
    assert vitrail.explain(wide, torch.randn(1, 3, 96, 192), "tavel").scores.shape == (1, 12, 24)
    with pytest.raises(ModelError, match="size 100 x 96 is not a whole number of patches of 8 x 8 pixels"):
        vitrail.load("bestiary", size=(100, 96))


@pytest.mark.parametrize("name", ["pvt", "swin"])
def test_a_pyramid_has_a_map_on_its_finest_grid_at_any_size(name: str) -> None:
    for size, grid in (((96, 96), (24, 24)), ((96, 128), (24, 32))):
        pyramid = vitrail.load(f"bestiary/{name}", size=size)
        assert vitrail.explain(pyramid, torch.randn(1, 3, *size), "tavel").scores.shape == (1, *grid)
    with pytest.raises(ModelError, match="size 104 x 96 is not a whole number of patches of 16 x 16 pixels"):
        vitrail.load(f"bestiary/{name}", size=(104, 96))


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="no model bestiary/label-error;.*did you mean bestiary/label-errors"):
        vitrail.load("bestiary/label-error")
    with pytest.raises(ModelError, match="has no option depth"):
        vitrail.load("bestiary", depth=3)
    damaged = tmp_path / "damaged.safetensors"
    shutil.copy(WEIGHTS / "bestiary.safetensors", damaged)
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is no readable safetensors file.*train or copy it again"):
        vitrail.load("bestiary", checkpoint=damaged)
