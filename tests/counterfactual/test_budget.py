"""Budgets hold to the last level, after rounding too."""

import pytest
import torch

from vitrail.counterfactual.step_rule import check_budget, project, to_levels
from vitrail.errors import OptionError


def picture_and_change(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (3, 20, 30), generator=generator, dtype=torch.uint8)
    return levels, levels / 255 + scale * torch.randn(3, 20, 30, generator=generator)


@pytest.mark.parametrize("limit", [1 / 255, 2.6 / 255, 8 / 255, 20 / 255])
def test_linf_holds_after_rounding(limit):
    levels, pixels = picture_and_change(0.1)
    rounded = to_levels(project(pixels, levels / 255, limit, "linf"), levels, limit, "linf")
    change = (rounded.int() - levels.int()).abs().max().item()
    assert change == int(limit * 255 + 1e-6)  # used to the full, and never beyond


@pytest.mark.parametrize("limit", [1.4 / 255, 0.05, 0.1, 0.3, 3.0])
def test_l2_holds_after_rounding(limit):
    levels, pixels = picture_and_change(0.02)
    within = project(pixels, levels / 255, limit, "l2")
    assert (within - levels / 255).norm() <= limit * (1 + 1e-5)
    rounded = to_levels(within, levels, limit, "l2")
    assert (rounded.double() - levels.double()).norm() <= 255 * limit + 1e-6


def test_l2_turns_only_the_narrowest_roundings():
    levels = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    change = torch.tensor([1.9, 0.6, -0.55, 0.2, 0.0, 0.0]).view(3, 1, 2)
    limit = change.double().norm().item() / 255
    rounded = to_levels(levels / 255 + change / 255, levels, limit, "l2")
    assert (rounded.int() - 100).flatten().tolist() == [2, 0, 0, 0, 0, 0]  # 4 of 4.31: one more would be 5
    free = to_levels(levels / 255 + change / 255, levels)
    assert (free.int() - 100).flatten().tolist() == [2, 1, -1, 0, 0, 0]


def test_pixels_stay_pixels():
    levels = torch.tensor([0, 255, 128], dtype=torch.uint8).view(3, 1, 1)
    pixels = project(torch.tensor([-1.0, 2.0, 0.5]).view(3, 1, 1), levels / 255, None, "linf")
    assert to_levels(pixels, levels).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    ("budget", "norm", "message"),
    [
        (0, "linf", "budget=0 allows no change"),
        (-0.1, "l2", "budget=-0.1 allows no change"),
        (float("nan"), "l2", "budget=nan allows no change"),
        (float("inf"), "linf", "budget=inf limits nothing"),
        (0.003, "linf", r"budget=0.003 is below one level of 8 bits \(1/255 = 0.0039\)"),
        (0.1, "l1", "norm='l1' is not one of linf, l2"),
    ],
)
def test_refusals(budget, norm, message):
    with pytest.raises(OptionError, match=message):
        check_budget(budget, norm)


def test_one_level_is_enough():
    check_budget(1 / 255, "linf")
    check_budget(None, "l2")
