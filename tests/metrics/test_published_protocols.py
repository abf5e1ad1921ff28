"""GridPG, DiFull, IDSDS and FunnyBirds' protocols against numbers of the published functions on seeded arrays.

The numbers are those of Attribution-Evaluation (15f9118), idsds (8e84200) and funnybirds-framework (1350bbe), given
the arrays of the recipes below. What theory says of a random, a constant and a perfect map is tested next to them.
"""

import math
import re
from itertools import combinations

import families
import numpy as np
import pytest
import timm
import torch
from protocol_driver import by_measure, case_of, drive

import vitrail
from vitrail.errors import OptionError, UnsupportedAttentionError, UnsupportedOperationError
from vitrail.evaluate.run_reader import read_run
from vitrail.evaluate.runner import evaluate
from vitrail.metrics import find_protocol
from vitrail.metrics.aggregation import Curves
from vitrail.metrics.localisation.grid_pointing import disconnected
from vitrail.metrics.protocol import Parts
from vitrail.models.layout import layout_of
from vitrail.report import build_board, write_report

# -- recipes -----------------------------------------------------------------------------------------------------------

SIDE = 32
PARTS = ("beak", "eye", "foot", "tail", "wing")
THINGS = ("bg_000", "bg_001", "bg_002")
CLASSES = ((0, 0, 0, 0, 0), (0, 0, 1, 1, 1), (1, 1, 0, 0, 1), (1, 1, 1, 1, 0), (2, 2, 2, 2, 2))
BIRDS = tuple((index, index % 4) for index in range(8))  # image and class


def grid_maps(side: int) -> torch.Tensor:
    """Maps of two mosaics, of four classes each."""
    return torch.from_numpy(np.random.default_rng(side).normal(size=(2, 4, 1, side, side))).float()


def deletion_arrays() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Five images, a map of each, and the weights of two layers of a model."""
    rng = np.random.default_rng(7)
    images, maps = rng.normal(size=(5, 3, SIDE, SIDE)), rng.normal(size=(5, 1, SIDE, SIDE))
    weights = rng.normal(size=(2, 3, 3, SIDE, SIDE))
    return tuple(torch.from_numpy(array).float() for array in (images, maps, weights))


def deletion_model(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Logits of three classes, no cell of which works alone."""
    first, second = (torch.einsum("bchw,kchw->bk", images, one) / SIDE for one in weights)
    return first + torch.tanh(first * second)


def bird_masks() -> dict[str, torch.Tensor]:
    """Rectangles that do not touch, for each part and each thing."""
    masks = {}
    for number, name in enumerate((*PARTS, *THINGS)):
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        row, col = 1 + 8 * (number // 3) + number % 2, 2 + 10 * (number % 3)
        mask[row : row + 3 + number % 3, col : col + 5] = True
        masks[name] = mask
    return masks


def bird_maps(index: int) -> torch.Tensor:
    """A map for each class: more on the parts, something on the things, noise."""
    rng = np.random.default_rng(100 + index)
    maps = torch.from_numpy(rng.normal(size=(len(CLASSES), SIDE, SIDE)) * 0.3)
    for mask in bird_masks().values():
        maps += torch.from_numpy(rng.normal(size=(len(CLASSES), 1, 1)) + 0.8) * mask
    return maps.float()


def bird_logits(index: int, missing: frozenset[str]) -> np.ndarray:
    """What the model says to a bird without some parts or things."""
    rng = np.random.default_rng(200 + index)
    label = BIRDS[index][1]
    logits = rng.normal(size=len(CLASSES)) + 4
    logits[label] = logits.max() + 0.6
    effects = rng.normal(size=(len(PARTS), len(CLASSES))) * 0.5
    for other, variants in enumerate(CLASSES):  # a part speaks for the classes that have it
        effects[:, other] += [0.4 * (one == two) for one, two in zip(variants, CLASSES[label], strict=True)]
    things = rng.normal(size=(len(THINGS), len(CLASSES))) * 0.25
    for name in sorted(missing):
        logits = logits - (effects[PARTS.index(name)] if name in PARTS else things[THINGS.index(name)])
    return logits


def bird_image(index: int, missing: frozenset[str] = frozenset()) -> torch.Tensor:
    """A picture that is told by its first two numbers alone."""
    image = torch.zeros(3, SIDE, SIDE)
    image[0, 0, 0] = index
    image[0, 0, 1] = sum(2**number for number, name in enumerate((*PARTS, *THINGS)) if name in missing)
    return image


def bird_model(images: torch.Tensor) -> torch.Tensor:
    """Reads the picture's numbers, and answers."""
    rows = []
    for image in images:
        bits = int(image[0, 0, 1])
        missing = frozenset(name for number, name in enumerate((*PARTS, *THINGS)) if bits >> number & 1)
        rows.append(torch.from_numpy(bird_logits(int(image[0, 0, 0]), missing)))
    return torch.stack(rows)


# -- the published numbers ---------------------------------------------------------------------------------------------

QUARTERS = [torch.zeros(16, 16, dtype=torch.bool) for _ in range(4)]
for number, quarter in enumerate(QUARTERS):
    quarter[8 * (number // 2) :][:8, 8 * (number % 2) :][:, :8] = True


def mosaic(cells=range(4), target=0):
    """A mosaic of 16 × 16 pixels and 8 × 8 patches, of which some cells are asked about."""
    regions = {cell: QUARTERS[cell] for cell in cells}
    return case_of(torch.zeros(3, 16, 16), torch.zeros(4), regions=regions, target=target, grid=(8, 8))


# Of each cell, for two mosaics: maps of 8 × 8, enlarged bilinearly, and maps of 16 × 16 pixels.
GRID = {
    8: ((0.19003151, 0.22511855), (0.26976603, 0.14448103), (0.40997216, 0.26241261), (0.23536442, 0.23661494)),
    16: ((0.21254109, 0.24621622), (0.20978962, 0.25281253), (0.24886806, 0.28684953), (0.24432632, 0.2459164)),
}


@pytest.mark.parametrize("side", GRID)
def test_gridpg_and_difull_give_the_published_shares(side):
    for number, maps in enumerate(grid_maps(side)[:, :, 0]):
        shares = [cell[number] for cell in GRID[side]]
        asked = {"maps": lambda _, targets, maps=maps: maps[targets], "enlarge": "bilinear"}
        found = by_measure(drive("gridpg", mosaic(), maps[0], **asked))
        assert found == {"share": [pytest.approx(np.mean(shares), abs=1e-6)], "area": [0.25]}
        for target in range(4):
            alone = drive("gridpg", mosaic([target], target), maps[target], **asked)
            assert alone[0].value == pytest.approx(shares[target], abs=1e-6)
        # As published, DiFull asks about the cells of two corners.
        corners = drive("difull", mosaic([0, 3]), torch.zeros(8, 8), **asked)
        assert corners[0].value == pytest.approx((shares[0] + shares[3]) / 2, abs=1e-6)


IDSDS = (0.39117647, -0.56176471, 0.13823529, 0.32941176, -0.27058824)


def test_idsds_gives_the_published_correlations():
    images, maps, weights = deletion_arrays()
    for number, (image, scores) in enumerate(zip(images, maps[:, 0], strict=True)):
        logits = deletion_model(image[None], weights)[0]
        case = case_of(image, logits, target=number % 3, grid=(4, 4))
        (found,) = drive("idsds", case, scores, lambda some: deletion_model(some, weights), batch=5)
        assert found.value == pytest.approx(IDSDS[number], abs=1e-6)


def bird_case(index: int):
    """A bird with its parts, as data give them."""
    masks, label = bird_masks(), BIRDS[index][1]
    shared = {
        other: frozenset(name for name, one, two in zip(PARTS, variants, CLASSES[label], strict=True) if one == two)
        for other, variants in enumerate(CLASSES)
        if other != label
    }
    own = set(zip(PARTS, CLASSES[label], strict=True))
    sets = [set(some) for count in range(1, 6) for some in combinations(sorted(own), count)]
    telling = [one for one in sets if sum(one <= set(zip(PARTS, other, strict=True)) for other in CLASSES) == 1]
    parts = Parts(
        masks={name: masks[name] for name in PARTS},
        things={name: masks[name] for name in THINGS},
        draw=lambda names: bird_image(index, names),
        shared=shared,
        sufficient=tuple(
            frozenset(name for name, _ in one) for one in telling if not any(two < one for two in telling)
        ),
    )
    logits = bird_model(bird_image(index)[None])[0]
    return case_of(bird_image(index), logits, target=label, label=label, parts=lambda: parts, grid=(8, 8))


def birds(maps_of, count=8, **options):
    """What FunnyBirds' protocols measure of birds, and the summary; `maps_of(index)` gives a map for each class."""
    found = []
    for index in range(count):
        maps = maps_of(index)
        found.append(
            drive(
                "funnybirds",
                bird_case(index),
                maps[BIRDS[index][1]],
                bird_model,
                maps=lambda _, targets, maps=maps: maps[targets],
                **options,
            )
        )
    rows = [by_measure(one) for one in found]
    steps = {name: tuple(one.step for one in found[0] if one.measure == name) for name in rows[0]}
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    table = find_protocol("funnybirds").summarise(Curves(np.arange(count), steps, values), **options)
    return values, {name: one.value() for name, one in table.items()}


def test_funnybirds_protocols_give_the_published_numbers():
    values, table = birds(bird_maps)
    # At five of the thresholds, and the mean over all 80.
    curves = {
        "synthetic data check": (0.875, 0.8125, 0.4375, 0.0625, 0.0, 0.4484375),
        "preservation check": (0.625, 0.375, 0.125, 0.25, 0.25, 0.25625),
        "deletion check": (0.875, 0.875, 0.625, 0.125, 0.0, 0.4765625),
        "distractibility": (0.18541667, 0.42291667, 0.75625, 0.89583333, 0.96875, 0.64234375),
    }
    for name, expected in curves.items():
        means = np.nanmean(values[name], axis=0)
        assert [*means[[0, 20, 40, 60, 79]], means.mean()] == pytest.approx(expected, abs=1e-6)
    assert table == {
        "single deletion (correctness)": pytest.approx(0.51875, abs=1e-6),
        "preservation check": pytest.approx(0.125, abs=1e-6),
        "deletion check": pytest.approx(0.625, abs=1e-6),
        "target sensitivity (contrastivity)": pytest.approx(0.5, abs=1e-6),
        "distractibility": pytest.approx(0.75625, abs=1e-6),
        "synthetic data check": pytest.approx(0.5, abs=1e-6),
        "completeness": pytest.approx(0.5864583333, abs=1e-6),
        "background independence": pytest.approx(0.875, abs=1e-6),
        "threshold": pytest.approx(round(0.2518987342, 3)),
    }
    assert int(np.isnan(values["target sensitivity"]).sum()) == 3  # where the outputs do not do as the parts say


# -- what theory says --------------------------------------------------------------------------------------------------


def test_shares_of_a_perfect_a_constant_a_random_and_a_blind_map():
    inside = torch.stack([quarter[::2, ::2].float() for quarter in QUARTERS])
    noise = torch.rand(100, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def share(maps, protocol="gridpg"):
        return drive(protocol, mosaic(), maps[0], maps=lambda _, targets: maps[targets])[0].value

    for protocol in ("gridpg", "difull"):
        assert share(inside, protocol) == 1
        assert share(torch.ones(4, 8, 8), protocol) == 0.25
        assert share(-inside, protocol) == 0  # nothing positive
        assert share(2 * inside - 1, protocol) == 1  # what is negative elsewhere does not count
    assert share(noise[0, :1].expand(4, -1, -1)) == pytest.approx(0.25)  # the same map for every class
    assert np.mean([share(maps) for maps in noise]) == pytest.approx(0.25, abs=0.02)


def test_correlations_of_a_perfect_a_constant_and_a_random_map():
    images, _, weights = deletion_arrays()
    model = lambda some: deletion_model(some, weights)  # noqa: E731
    case = case_of(images[0], model(images[:1])[0], target=1, grid=(4, 4))
    cells = [images[0].clone() for _ in range(16)]
    for number, cell in enumerate(cells):
        cell[:, 8 * (number // 4) :][:, :8, 8 * (number % 4) :][..., :8] = 0
    drops = (case.logits - model(torch.stack(cells)))[:, 1].view(4, 4)

    def rank(scores):
        return drive("idsds", case, scores, model)[0].value

    assert rank(drops) == 1
    assert rank(-3 * drops) == -1
    assert rank(drops.repeat_interleave(2, 0).repeat_interleave(2, 1)) == 1  # finer maps are summed
    assert math.isnan(rank(torch.ones(4, 4)))
    noise = torch.randn(60, 4, 4, generator=torch.Generator().manual_seed(0))
    assert np.mean([rank(scores) for scores in noise]) == pytest.approx(0, abs=0.1)


def test_parts_of_a_perfect_a_constant_an_empty_and_a_random_map():
    def oracle(index):
        logits, masks = bird_logits(index, frozenset()), bird_masks()
        maps = torch.zeros(len(CLASSES), SIDE, SIDE)
        for name, mask in masks.items():
            drop = logits - bird_logits(index, frozenset({name}))
            maps += torch.from_numpy(drop / int(mask.sum()))[:, None, None] * mask
        return maps

    _, perfect = birds(oracle)
    assert perfect["single deletion (correctness)"] == 1
    # As published, a bird counts where each class falls further without its own parts; the maps are compared otherwise.
    assert perfect["target sensitivity (contrastivity)"] >= 0.8
    values, empty = birds(lambda _: torch.zeros(len(CLASSES), SIDE, SIDE))  # nothing is important
    assert np.isnan(values["single deletion"]).all()
    assert (values["deletion check"] == 0).all()
    assert (values["synthetic data check"] == 0).all()
    assert np.nanmin(values["distractibility"]) == 1
    assert empty["target sensitivity (contrastivity)"] == 0  # neither map gives a part more than the other
    values, even = birds(lambda _: torch.ones(len(CLASSES), SIDE, SIDE))
    assert even["target sensitivity (contrastivity)"] == 0
    assert (values["preservation check"][:, 0] == 1).all()  # every part is important at 1 %
    assert (values["synthetic data check"][:, 0] == 1).all()
    generator = torch.Generator().manual_seed(0)
    found = [birds(lambda _: torch.randn(len(CLASSES), SIDE, SIDE, generator=generator))[0] for _ in range(4)]
    assert np.mean([one["single deletion"] for one in found]) == pytest.approx(0.5, abs=0.12)
    assert np.nanmean([one["target sensitivity"] for one in found]) == pytest.approx(0.5, abs=0.2)


def test_words_and_numbers_that_make_no_sense_are_refused():
    for protocol, options, message in (
        ("gridpg", {"enlarge": "sharp"}, "enlarge='sharp' is unknown; choose one of patch, bilinear"),
        ("difull", {"enlarge": "sharp"}, "enlarge='sharp' is unknown"),
        ("idsds", {"cells": 1}, "cells=1 must be a whole number, 2 or more"),
        ("idsds", {"cells": 17}, "cells=17 a side of an image of 16×16 pixels have no pixel"),
        ("idsds", {"fill": "red"}, "fill='red' is unknown"),
    ):
        with pytest.raises(OptionError, match=re.escape(message)):
            drive(protocol, mosaic(), torch.zeros(8, 8), **options)
    with pytest.raises(OptionError, match="dilation=4 must be odd"):
        birds(bird_maps, 1, dilation=4)


# -- a model whose cells are disconnected ------------------------------------------------------------------------------


def test_a_disconnected_cell_holds_all_that_counts_and_cams_leak():
    """The other cells' pixels do not reach the logits, and methods that follow the model know it."""
    model = vitrail.load("bestiary")
    groups = [(place // 12 > 5) * 2 + (place % 12 > 5) for place in range(144)]
    apart = disconnected(model, groups)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[1, :, :48, :48] = images[0, :, :48, :48]
    first, second = apart.logits(images)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    assert not torch.allclose(*model.logits(images), atol=0.1)
    assert not torch.allclose(first, model.logits(images)[0], atol=0.1)

    def share(method):
        scores = vitrail.explain(apart, images[:1], 3, method=method).scores[0].clamp(min=0)
        return float(scores[: len(scores) // 2, : len(scores) // 2].sum() / scores.sum())

    for method in ("raw", "rollout", "gae", "complete", "attn_lrp"):
        assert share(method) == pytest.approx(1, abs=1e-5)
    assert share("gradcam") < 0.8


def test_heads_that_read_patches_and_moving_tokens_are_refused():
    with pytest.raises(UnsupportedAttentionError):
        disconnected(vitrail.load("bestiary/pvt"), [0] * 36)
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=4, img_size=64, global_pool="avg", class_token=False).eval()
    with pytest.raises(UnsupportedOperationError, match="only those of a model that reads a class token"):
        disconnected(vitrail.wrap(module, preprocess=vitrail.Preprocess(size=(64, 64))), [0, 1] * 8)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "preset", "columns"),
    [
        ("mosaic:bestiary:single:12?grid=2&confidence=0.9", "gridpg", ["gridpg: GridPG", "difull: DiFull"]),
        ("bestiary:single:4", "idsds", ["idsds: IDSDS"]),
        ("bestiary:single:4", "funnybirds", ["funnybirds: completeness", "funnybirds: background independence"]),
    ],
)
def test_each_preset_resumes_and_is_in_the_report(data, preset, columns, tmp_path):
    model = vitrail.load("bestiary")
    question = {"methods": ["rollout", "gradcam"], "preset": preset, "block": 1, "batch_size": 8, "limit": 2}

    def interrupt(done: int, total: int) -> None:
        if done >= 1:
            raise KeyboardInterrupt

    whole = evaluate(model, data, output=tmp_path / "whole", **question).folder
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, output=tmp_path / "run", progress=interrupt, **question)
    resumed = evaluate(model, data, output=tmp_path / "run", **question)
    assert resumed.measured == 1

    def found(folder):
        return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("*/block-*"))}

    assert found(resumed.folder) == found(whole)
    run = read_run(whole)
    assert not run.failures
    board = build_board([run], resamples=50)
    page = write_report([whole], tmp_path / "report", resamples=100).page.read_text()
    for column in columns:
        assert board.column(column) is not None
        assert column.partition(": ")[2] in page


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_models_of_a_class_token_are_disconnected_and_others_refused(name):
    """What is disconnected holds all of a map that follows the attention; a mean of patches or pooling is refused."""
    family = families.FAMILIES[name]
    torch.manual_seed(0)
    model = vitrail.wrap(family.build(), preprocess=vitrail.Preprocess(family.image_size))
    layout = layout_of(model, model.blank())
    groups = torch.arange(layout.patches) // layout.cols >= layout.rows // 2
    if layout.reads_patches or layout.pools:
        with pytest.raises(UnsupportedOperationError, match=f"reads {layout.reads}, which connects all cells"):
            disconnected(model, groups.long().tolist())
        return
    apart = disconnected(model, groups.long().tolist())
    image = torch.randn(1, *model.blank().shape[1:])
    scores = vitrail.explain(apart, image, 0, method="gae").scores[0]
    assert float(scores[: layout.rows // 2].sum()) == pytest.approx(float(scores.sum()), rel=1e-5)
    assert float(scores.sum()) > 0
