"""What a run will cost is what it does cost."""

import pytest
import timm
import torch
from pictures_on_disk import class_folders

import vitrail
from vitrail.evaluate.cost import Cost, cost_of, passes
from vitrail.evaluate.plan import make_plan
from vitrail.evaluate.runner import evaluate
from vitrail.metrics import PROTOCOLS
from vitrail.models import Preprocess


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_can_be_counted(name):
    found = cost_of(name)
    assert found.rows >= 0
    assert found.maps >= 0


def test_counts_known_from_the_papers():
    assert cost_of("perturbation") == Cost(18, 0)  # nine shares, both ways
    assert cost_of("perturbation", {"shares": [0.5], "unit": "token"}) == Cost(1, 0)  # two halves
    assert cost_of("max_sensitivity") == Cost(0, 10)
    assert cost_of("deletion", {"step": 224}) == Cost(225, 0)
    assert passes(make_plan("raw", preset="rise")) == {"insertion": Cost(225, 0), "deletion": Cost(225, 0)}


def test_a_run_makes_as_many_passes_as_were_counted(tmp_path):
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=4, img_size=64).eval()
    rows = []
    module.register_forward_hook(lambda *given: rows.append(len(given[1][0])))
    model = vitrail.wrap(module, preprocess=Preprocess(size=(64, 64)), class_names=("ant", "bee", "cat", "dog"))
    question = {"protocols": ["perturbation", "saco", "max_sensitivity"], "block": 4, "batch_size": 8}
    data = class_folders(tmp_path / "pictures", {"ant": 2, "bee": 1})
    evaluate(model, data, "raw", output=tmp_path / "run", **question)
    counted = passes(make_plan("raw", question["protocols"]), size=(64, 64), grid=(4, 4))
    maps = sum(cost.maps for cost in counted.values()) + 1  # its own; `raw` makes one in one pass
    expected = 3 * (1 + maps + sum(cost.rows for cost in counted.values()))
    assert expected <= sum(rows) <= expected + 4  # and a few of one row, to see how the tokens lie
