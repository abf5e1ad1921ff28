"""Causal truth: the logits of the scene drawn again without each part, nothing else."""

import pytest
import torch

from training.optimise import initialise
from vitrail.bestiary import UnknownNameError, render, sample_scene
from vitrail.bestiary.causal import causal_truth, cell_truth
from vitrail.bestiary.model import build_model, predict
from vitrail.bestiary.species import CLASS_NAMES


def picture(scene):
    return torch.from_numpy(render(scene).image).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def model():
    model = build_model().eval().requires_grad_(False)
    initialise(model, torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module", autouse=True)
def _speaking_head(model):
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))  # it starts at zero


def test_importance_is_the_change_of_the_logit_and_of_the_difference(model):
    scene = sample_scene("pair", seed=3, species=("tavel", "murlo"))
    (truth,) = causal_truth(model, [scene], batch=3)
    assert {number for number, _ in truth.parts} == {0, 1}
    whole = predict(model, picture(scene))[0]
    tavel, murlo = CLASS_NAMES.index("tavel"), CLASS_NAMES.index("murlo")
    for (number, slot), worth, duel in zip(
        truth.parts, truth.importance("tavel"), truth.importance("tavel", "murlo"), strict=True
    ):
        without = predict(model, picture(scene.without(number, slot)))[0]
        torch.testing.assert_close(worth, whole[tavel] - without[tavel], atol=1e-5, rtol=0)
        expected = (whole[tavel] - whole[murlo]) - (without[tavel] - without[murlo])
        torch.testing.assert_close(duel, expected, atol=1e-5, rtol=0)
    assert truth.importance("tavel").abs().max() > 0


def test_only_visible_parts_are_asked_about_and_masks_do_not_overlap(model):
    for truth in causal_truth(model, [sample_scene("single", seed=k) for k in range(4)]):
        assert truth.masks.flatten(1).any(dim=1).all()
        assert int(truth.masks.sum(0).max()) == 1
        assert torch.equal(truth.masks.any(0), truth.creatures[0])
        assert truth.without.shape == (len(truth.parts), len(CLASS_NAMES))


def test_an_unknown_class_is_refused(model):
    (truth,) = causal_truth(model, [sample_scene("single", seed=0)])
    with pytest.raises(UnknownNameError, match="unknown species 'tavle'.*Did you mean 'tavel'"):
        truth.importance("tavle")


def test_the_worth_of_cells_is_that_of_a_model_that_adds_them_up():
    """Logits that are linear in the picture have effects that one can compute cell by cell."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.randn(len(CLASS_NAMES), 3, 96, 96, generator=torch.Generator().manual_seed(0)) / 100
            self.weight = torch.nn.Parameter(weight, requires_grad=False)

        def forward(self, images):
            return torch.einsum("bchw,kchw->bk", images, self.weight)

    model, scene = Linear(), sample_scene("pair", seed=3)
    (truth,) = cell_truth(model, [scene], side=8, creature=1, samples=400)
    full, gone = picture(scene), picture(scene.without(1))
    assert torch.equal(truth.image, full[0])
    difference = ((full - gone) * 2 * model.weight).sum(dim=1)  # the model sees pixels from -1 to 1
    expected = torch.nn.functional.avg_pool2d(difference, 8) * 64
    expected = expected[:, truth.cells[:, 0], truth.cells[:, 1]].T.double()
    assert (truth.effects - expected).abs().max() < 0.15 * expected.abs().max()
    assert all(half.shape == truth.effects.shape and not torch.equal(half, truth.effects) for half in truth.halves)
    assert torch.corrcoef(torch.stack([truth.effects.flatten(), expected.flatten()]))[0, 1] > 0.995
    changed = (full - gone).abs().sum(dim=1)[0]
    seen = torch.zeros_like(changed, dtype=torch.bool).reshape(12, 8, 12, 8)
    seen[truth.cells[:, 0], :, truth.cells[:, 1]] = True
    assert changed[~seen.reshape(96, 96)].sum() < 0.05 * changed.sum()
