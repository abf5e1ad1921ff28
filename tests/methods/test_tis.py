"""TIS: the map by hand, the authors' aggregation, and that a thousand halves cost what halves cost."""

import numpy as np
import perturbation_reference as literal
import pytest
import scipy.ndimage
import timm
import torch
from families import FAMILIES
from torch.utils.flop_counter import FlopCounterMode

import vitrail
from vitrail.errors import OptionError, UnsupportedOperationError
from vitrail.methods.derived import falling_curve
from vitrail.methods.masking import ITERATIONS, centroids, coverage_mean, highest_patches


def test_mda_equals_the_method_written_out():
    family = FAMILIES["user_non_square"]
    module, images = family.build().double(), family.images(1).double()
    prior = vitrail.explain(module, images, 2, method="gae", gradient="full").scores[0].flatten().numpy()
    rows, cols = family.grid
    high, wide = images.shape[2] // rows, images.shape[3] // cols
    cells = []
    for r, c in np.ndindex(rows, cols):
        cells.append(np.zeros(images.shape[2:], dtype=bool))
        cells[-1][r * high : (r + 1) * high, c * wide : (c + 1) * wide] = True
    blurred = scipy.ndimage.gaussian_filter(images[0].numpy(), 2.0, axes=(1, 2), mode="mirror", radius=6)

    def score(picture: np.ndarray) -> float:
        with torch.no_grad():
            return float(literal.softmax(module(torch.from_numpy(picture)[None])[0].numpy())[2])

    for tried, until in ((3, 0.9), (2, 0.3)):
        expected = literal.mda_map(score, blurred, images[0].numpy(), cells, prior, tried, until)
        ours = vitrail.explain(module, images, 2, method="mda", candidates=tried, until=until, blur=2.0).scores[0]
        assert np.abs(ours.numpy().flatten() - expected).max() < 1e-6 * expected.max()


def test_the_curve_of_mda_is_the_nearest_that_falls_ever_more_slowly():
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = np.minimum.accumulate(rng.random(9))
        ours = falling_curve(torch.from_numpy(values)).numpy()
        assert np.abs(ours - literal.falling_curve(values)).max() < 1e-6


@torch.no_grad()
def test_equal_to_the_method_written_out():
    module, images = FAMILIES["user_non_square"].build().double(), FAMILIES["user_non_square"].images(1).double()
    x = module.patches(images).flatten(2).transpose(1, 2)
    x = torch.cat([module.class_token, x], dim=1) + module.position
    tokens, outputs = x, []
    for block in module.blocks:
        x = block(x)
        outputs.append(x[0, 1:].T)
    maps = torch.cat(outputs)
    drawn = torch.randperm(len(maps), generator=torch.Generator().manual_seed(4))[:7]
    found = literal.k_means(maps.numpy(), maps[drawn].numpy(), ITERATIONS)
    masks = np.zeros(found.shape, dtype=bool)
    for mask, centroid in zip(masks, found, strict=True):
        mask[np.argsort(-centroid)[:3]] = True
    scores = []
    for mask in masks:
        kept = tokens[:, [0, *(1 + np.flatnonzero(mask)).tolist()]]
        logits = module.head(module.norm(module.blocks(kept))[:, 0])
        scores.append(literal.softmax(logits[0].numpy())[2])
    expected = literal.tis_map(masks, np.array(scores)).reshape(3, 2)
    ours = vitrail.explain(module, images, 2, method="tis", masks=7, seed=4).scores[0].numpy()
    assert np.abs(ours - expected).max() < 1e-12
    masked = vitrail.explain(module, images, 2, method="tis", masks=7, seed=4, drop="mask").scores[0].numpy()
    assert np.abs(masked - expected).max() < 1e-12


@pytest.mark.parametrize(("image", "targets"), [("catdog", (243, 282)), ("snail", (113, 112))])
def test_the_authors_aggregation(shared, image: str, targets: tuple[int, int]):
    with np.load(shared / "oracles" / "tis_seed0.npz") as file:
        masks = torch.from_numpy(np.unpackbits(file[f"{image}/masks_packed"], axis=1)[:, :196].astype(bool))
        for target in targets:
            ours = coverage_mean(masks, torch.from_numpy(file[f"{image}/{target}/scores"])[:, None])
            official = torch.from_numpy(file[f"{image}/{target}"]).flatten()
            assert (ours[0] - official).abs().max() < 1e-5 * official.max()


def test_the_authors_masks_and_scores(vit_tiny, shared):
    """From the stored centroids the stored masks follow, and from the masks the stored scores."""
    from vitrail.methods.context import AttributionContext
    from vitrail.methods.dropped_tokens import TokenDropper
    from vitrail.models.layout import layout_of

    with np.load(shared / "oracles" / "inputs.npz") as file:
        image = torch.from_numpy(file["catdog/x"])
    with np.load(shared / "oracles" / "tis_seed0.npz") as file:
        masks = torch.from_numpy(np.unpackbits(file["catdog/masks_packed"], axis=1)[:, :196].astype(bool))
        scores = torch.from_numpy(file["catdog/243/scores"])
        found = torch.from_numpy(file["catdog/centroids_f16"]).float()
    chosen = highest_patches(found, 98)
    ours = torch.zeros_like(masks).scatter(1, chosen, True)
    assert (ours == masks).float().mean() > 0.999  # the stored centroids are rounded to half precision
    layout = layout_of(vit_tiny, image)
    run = AttributionContext(vit_tiny, image, layout, None, None, "probability", layout.readout)
    patches = masks[:4].nonzero()[:, 1].reshape(4, 98)
    logits = TokenDropper(run, run.watch(), "auto").logits(0, patches)
    assert (logits.softmax(1)[:, 243] - scores[:4]).abs().max() < 1e-5


def test_patches_that_no_mask_keeps_get_the_mean_score():
    masks = torch.tensor([[True, False, False], [True, True, False]])
    assert coverage_mean(masks, torch.tensor([[0.1], [0.5]])).tolist() == [pytest.approx([0.3, 0.5, 0.3])]


def test_centroids_are_the_same_for_a_seed_and_survive_twins():
    maps = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    one, other = centroids(maps, 10, seed=2), centroids(maps, 10, seed=2)
    assert torch.equal(one, other)
    assert one.isfinite().all()


def test_more_masks_than_channels_are_as_many_as_channels():
    family = FAMILIES["timm_vit"]
    told = []
    vitrail.explain(
        family.build(), family.images(1), 1, method="tis", masks=10**6, progress=lambda *step: told.append(step)
    )
    doing, done, total = told[-1]
    assert doing == "sampling tokens"
    assert 0 < done == total <= 3 * 48


def test_an_objective_of_ones_own_is_heeded():
    family = FAMILIES["timm_vit"]
    question = {"method": "tis", "masks": 6}
    module, images = family.build(), family.images(1)
    probability = vitrail.explain(module, images, 1, **question)
    assert probability.objective == "probability"
    assert 0 <= probability.scores.min() <= probability.scores.max() <= 1
    logit = vitrail.explain(module, images, 1, objective="logit", **question)
    assert not torch.allclose(logit.scores, probability.scores)
    assert vitrail.explain(module, images, 1, against=2, **question).objective == "difference"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 0}, "masks=0 and masks_per_pass=32 must be 1 or more"),
        ({"keep": 1.5}, "keep=1.5 must be a share of the patches"),
        ({"keep": 0.01}, "keep=0.01 of 16 patches keeps none; keep at least 0.062"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    family = FAMILIES["timm_vit"]
    with pytest.raises(OptionError, match=message):
        vitrail.explain(family.build(), family.images(1), 1, method="tis", **options)


def test_window_models_are_refused():
    from timm.models.swin_transformer import SwinTransformer

    swin = SwinTransformer(img_size=64, patch_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4)
    with pytest.raises(vitrail.errors.VitrailError):
        vitrail.explain(swin.eval(), torch.randn(1, 3, 64, 64), 1, method="tis")


class _NoNorm(torch.nn.Module):
    """Blocks without residuals: no sum of two streams."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 12, 16, 16)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(12, 36) for _ in range(2))
        self.head = torch.nn.Linear(12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            q, k, v = (t[:, None] for t in block(x).chunk(3, dim=-1))
            x = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.head(x.mean(dim=1))


@pytest.mark.parametrize(
    ("method", "message"),
    [("tis", "no sum of two token streams.*vit_cx"), ("vit_cx", "no layer_norm or rms_norm.*tis")],
)
def test_models_without_the_places_are_told_so(method: str, message: str):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedOperationError, match=message):
        vitrail.explain(_NoNorm().eval(), torch.randn(1, 3, 64, 64), 1, method=method)


@pytest.mark.slow
@torch.no_grad()
def test_half_the_tokens_are_half_the_work():
    """The masks' passes alone, counted in floating-point operations, not in seconds."""
    model, image = vitrail.wrap(timm.create_model("vit_tiny_patch16_224").eval()), torch.randn(1, 3, 224, 224)

    def work(masks: int) -> int:
        with FlopCounterMode(display=False) as counter:
            vitrail.explain(model, image, 0, method="tis", masks=masks)
        return counter.get_total_flops()

    model.logits(image)  # which learns the kind of output, once
    with FlopCounterMode(display=False) as whole:
        model.logits(image.repeat(8, 1, 1, 1))
    work(8)  # the first time, what the model looks like is found out too
    eight_masks = work(16) - work(8)
    assert 0.4 < eight_masks / whole.get_total_flops() < 0.6
