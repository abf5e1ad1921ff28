"""ViT-CX: the map by hand, and the authors' clusters, masks and aggregation."""

import numpy as np
import perturbation_reference as literal
import pytest
import torch
from families import FAMILIES

import vitrail
from vitrail.errors import NoSignalError, OptionError
from vitrail.methods.masking import causal_map, feature_masks, merge_masks, similar_masks

IMAGES = ["catdog", "snail"]


@torch.no_grad()
def test_equal_to_the_method_written_out():
    module, images = FAMILIES["user_patch_14"].build().double(), FAMILIES["user_patch_14"].images(1).double()
    x = module.patches(images).flatten(2).transpose(1, 2)
    x = torch.cat([module.class_token, x], dim=1) + module.position
    for block in list(module.blocks)[:-1]:
        x = block(x)
    features = module.blocks[-1].norm1(x)[0, 1:].T.reshape(48, 3, 4)
    resized = torch.nn.functional.interpolate(features[None], size=(42, 56), mode="bilinear")[0]  # larger: no antialias
    masks = np.stack([literal.scaled(one) for one in resized.numpy()])
    clusters = literal.complete_linkage(masks.reshape(48, -1), 0.2)
    merged = np.stack([literal.scaled(masks[sorted(cluster)].sum(0)) for cluster in clusters])
    assert 1 < len(merged) < 48

    def probability(picture: np.ndarray) -> float:
        return literal.softmax(module(torch.from_numpy(picture)[None])[0].numpy())[3]

    # The noise is drawn mask by mask in the order of the clusters, so the reference takes that order as given.
    ours = vitrail.explain(module, images, 3, method="vit_cx", threshold=0.2, seed=6, masks_per_pass=5).scores[0]
    labels = similar_masks(torch.from_numpy(masks).flatten(1), 0.2).tolist()
    assert {frozenset(c) for c in clusters} == {
        frozenset(i for i, label in enumerate(labels) if label == k) for k in set(labels)
    }
    order = [labels[min(cluster)] for cluster in clusters]
    merged = merged[np.argsort(order)]
    generator = torch.Generator().manual_seed(6)
    noise = [0.1 * torch.randn(len(part), 3, 42, 56, generator=generator) for part in torch.zeros(len(merged)).split(5)]
    picture, weighted = images[0].numpy(), 0
    for mask, n in zip(merged, torch.cat(noise).double().numpy(), strict=True):
        score = probability(picture * mask + n * (1 - mask)) - probability(picture + n * (1 - mask))
        weighted = weighted + (score + probability(picture)) * mask
    coverage = merged.sum(0)
    expected = np.divide(weighted, coverage, out=np.zeros_like(coverage), where=coverage > 0) / len(merged)
    assert np.abs(ours.numpy() - expected).max() < 1e-10 * np.abs(expected).max()


def partition(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, label in enumerate(labels) if label == k) for k in set(labels)}


@pytest.mark.parametrize("image", IMAGES)
def test_the_authors_clusters_and_masks(vit_tiny, shared, image: str):
    from vitrail.methods.context import AttributionContext
    from vitrail.methods.masking import _features
    from vitrail.models.layout import layout_of

    with np.load(shared / "oracles" / "inputs.npz") as file:
        picture = torch.from_numpy(file[f"{image}/x"])
    with np.load(shared / "oracles" / "vitcx_seed0.npz") as file:
        labels, blocks = file[f"{image}/labels"].tolist(), torch.from_numpy(file[f"{image}/masks_blockmean"])
    layout = layout_of(vit_tiny, picture)
    run = AttributionContext(vit_tiny, picture, layout, None, None, "probability", layout.readout)
    features = feature_masks(_features(run, run.watch()[0]), (224, 224))
    ours = similar_masks(features.flatten(1), 0.1)
    assert partition(ours.tolist()) == partition(labels)
    merged = torch.nn.functional.avg_pool2d(merge_masks(features, torch.tensor(labels))[None], 16)[0]
    assert (merged - blocks).abs().max() < 1e-5


@pytest.mark.parametrize(("image", "targets"), [("catdog", (243, 282)), ("snail", (113, 112))])
def test_the_authors_aggregation(vit_tiny, shared, image: str, targets: tuple[int, int]):
    from vitrail.methods.context import AttributionContext
    from vitrail.methods.masking import _features
    from vitrail.models.layout import layout_of

    with np.load(shared / "oracles" / "inputs.npz") as file:
        picture = torch.from_numpy(file[f"{image}/x"])
    layout = layout_of(vit_tiny, picture)
    run = AttributionContext(vit_tiny, picture, layout, None, None, "probability", layout.readout)
    features = feature_masks(_features(run, run.watch()[0]), (224, 224))
    with np.load(shared / "oracles" / "vitcx_seed0.npz") as file:
        masks = merge_masks(features, torch.from_numpy(file[f"{image}/labels"]).long())
        for target in targets:
            p = {key: torch.from_numpy(file[f"{image}/{target}/{key}"]) for key in ("p_masked_noise", "p_orig_noise")}
            scores = p["p_masked_noise"] - p["p_orig_noise"] + float(file[f"{image}/{target}/class_p"])
            official = torch.from_numpy(file[f"{image}/{target}/map224"])
            ours = causal_map(masks, scores[:, None])[0]
            assert (ours - official).abs().max() < 1e-4 * official.abs().max()


def test_the_same_seed_gives_the_same_map_and_another_another():
    family = FAMILIES["timm_vit"]
    module, images = family.build(), family.images(1)
    one, same, other = (vitrail.explain(module, images, 1, method="vit_cx", seed=seed).scores for seed in (0, 0, 1))
    assert one.shape == (1, 64, 64)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_constant_maps_make_no_mask():
    features = torch.stack([torch.full((2, 2), 3.0), torch.arange(4.0).reshape(2, 2)])
    assert feature_masks(features, (4, 4)).shape == (1, 4, 4)
    with pytest.raises(NoSignalError, match="the same everywhere"):
        feature_masks(features[:1], (4, 4))


def test_bad_options_are_refused():
    family = FAMILIES["timm_vit"]
    with pytest.raises(OptionError, match="threshold=0.0 must be above 0"):
        vitrail.explain(family.build(), family.images(1), 1, method="vit_cx", threshold=0.0)
