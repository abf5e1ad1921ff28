"""The stitched protocol gives the numbers of the stitched experiment, map by map and region by region."""

from dataclasses import replace
from itertools import product

import families
import numpy as np
import pytest
import torch
from PIL import Image
from protocol_driver import by_measure, case_of, drive

import vitrail
from vitrail.errors import DataError, OptionError
from vitrail.experiments.stitched_perturbation import CONTROL, Curve, curves_of, stitch_pictures
from vitrail.metrics import find_protocol
from vitrail.metrics.aggregation import Curves
from vitrail.metrics.faithfulness.perturbation import SHARES, WAYS, area
from vitrail.metrics.faithfulness.stitched_perturbation import REGIONS, stitched_removal

GUIDE = 2


@pytest.fixture(scope="module")
def model() -> vitrail.VisionModel:
    family = families.FAMILIES["timm_vit"]
    preprocess = vitrail.Preprocess(size=family.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.wrap(family.build(), preprocess=preprocess)


def stitched_case(model, seed: int, label: int):
    """Two pictures of noise side by side, and the same as a case with its two regions on pixels."""
    generator = np.random.default_rng(seed)
    pictures = [Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)) for _ in range(2)]
    stitched = stitch_pictures(model, *pictures)
    with torch.no_grad():
        logits = model.logits(stitched.normalised[None])[0]
    patch = stitched.normalised.shape[-1] // stitched.plan.grid[1]
    grown = [half.repeat_interleave(patch, 0).repeat_interleave(patch, 1) for half in (stitched.own, stitched.far)]
    regions = {label: grown[0], GUIDE: grown[1]}
    case = case_of(stitched.normalised, logits, target=label, label=label, grid=stitched.plan.grid, regions=regions)
    return stitched, case


def test_its_numbers_are_those_of_the_experiment(model):
    seen = []
    for seed, label in product(range(3), (0, 3, 5)):
        stitched, case = stitched_case(model, seed, label)
        maps = vitrail.explain(model, case.image[None], [[label, GUIDE]], method="gae").scores[0]

        def again(images, targets, maps=maps, case=case):
            assert targets == [GUIDE]
            assert torch.equal(images[0], case.image)
            return maps[1][None]

        measured = drive("stitched_perturbation", case, maps[0], model.logits, maps=again, batch=50)
        found = by_measure(measured)
        both = {"gae": maps[0], CONTROL: maps[0] - maps[1]}
        expected = curves_of(model, stitched, label, both, generator=torch.Generator())
        assert len(found) == 12
        for (name, ours), way, region in product((("gae", "map"), (CONTROL, "less guide")), WAYS, REGIONS):
            row = found[f"{ours}.{way}.{region}.hit"]
            assert row == expected[Curve(name, way, region)].tolist()
            seen += row
        assert [one.step for one in measured[:10]] == [0.0, *SHARES]
    assert 0.05 < np.mean(seen) < 0.95  # both answers are there to be told apart


def test_the_summary_names_map_way_and_region(model):
    _, case = stitched_case(model, 0, 3)
    scores = torch.randn(case.grid, generator=torch.Generator().manual_seed(0))
    measured = drive("stitched_perturbation", case, scores, model.logits, maps=lambda *_: -scores[None], auc="mean9")
    found = by_measure(measured)
    values = {measure: np.array([row]) for measure, row in found.items()}
    curves = Curves(np.arange(1), dict.fromkeys(values, (0.0, *SHARES)), values)
    summary = find_protocol("stitched_perturbation").summarise(curves, auc="mean9", fill="black")
    assert list(summary) == [
        f"{way} AUC, {which}{region}" for which, way, region in product(("", "less guide, "), WAYS, REGIONS)
    ]
    row = found["less guide.negative.own half.hit"]
    statistic = summary["negative AUC, less guide, own half"]
    assert statistic.value() == pytest.approx(float(area(torch.tensor([row]), "mean9")))
    assert statistic.better == 1
    assert summary["positive AUC, anywhere"].better == -1


def test_patches_go_only_where_they_may():
    own, far = torch.tensor([[1, 0, 0], [1, 0, 0]]) > 0, torch.tensor([[0, 0, 1], [0, 0, 1]]) > 0
    scores, image = torch.tensor([[0.0, 9.0, 5.0], [1.0, 7.0, 8.0]]), torch.ones(1, 2, 3)
    found = {
        region: stitched_removal(
            image, scores, "positive", region, own=own, far=far, ground=torch.zeros(1, 2, 3), shares=(0.5,)
        ).images(range(1))[0, 0]
        for region in REGIONS
    }
    assert found["anywhere"].tolist() == [[1, 0, 1], [1, 0, 0]]
    assert found["own half"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert found["alone"].tolist() == [[1, 1, 0], [0, 1, 0]]


def test_what_is_no_stitched_image_is_refused(model):
    _, case = stitched_case(model, 0, 3)
    scores = torch.zeros(case.grid)
    three = replace(case, regions={**case.regions, 6: case.regions[3]})
    with pytest.raises(DataError, match=r"one has regions of the classes \[2, 3, 6\] and the label 3: a stitched"):
        drive("stitched_perturbation", three, scores)
    with pytest.raises(DataError, match=r"classes \[2, 3\] and the label 1"):
        drive("stitched_perturbation", replace(case, label=1), scores)
    with pytest.raises(OptionError, match="fill='red' is unknown"):
        drive("stitched_perturbation", case, scores, fill="red")
    with pytest.raises(OptionError, match="auc='all' is unknown"):
        drive("stitched_perturbation", case, scores, auc="all")
    own = torch.ones(2, 2) > 0
    with pytest.raises(OptionError, match="'up', 'anywhere': ways are positive, negative"):
        stitched_removal(
            torch.ones(1, 2, 2), torch.ones(2, 2), "up", "anywhere", own=own, far=~own, ground=torch.ones(1, 2, 2)
        )
    assert find_protocol("stitched_perturbation").needs == ("label", "regions")
