"""Every method on every family equals the slow float64 reference, in every gradient mode."""

import re
from functools import cache
from itertools import product
from pathlib import Path

import matrix
import pytest
import reference
import torch
from families import FAMILIES

import vitrail
from vitrail.errors import NoSignalError, UnsupportedOperationError

TARGETS = [[2, 5], [0, 2]]
GRADIENT_METHODS = ("gae", "complete", "absolute", "gmar_l1", "gmar_l2")


@cache
def references(name: str, gradient: str) -> dict[str, torch.Tensor]:
    """All methods' maps by the reference: (2 images, 2 targets, patches)."""
    family = FAMILIES[name]
    captured = reference.capture(family.build(), family.images(2), gradient)
    maps = list(captured.maps)
    shared: dict[str, list[torch.Tensor]] = {method: [] for method in (*GRADIENT_METHODS, "centred", "raw", "rollout")}
    for column in range(2):
        scalar = sum(captured.logits[image, TARGETS[image][column]] for image in range(2))
        gradients = captured.gradients(scalar)
        used = max(index for index, g in enumerate(gradients) if g.abs().max() > 0) + 1
        a, g = [m.detach() for m in maps[:used]], gradients[:used]
        # Several learned queries pool the tokens, but only those that the head reads count.
        row = reference.readout(family.readout, family.prefix, family.grid[0] * family.grid[1], a[-1].shape[-2])
        p = family.prefix
        shared["gae"].append(reference.gae(a, g, p, row))
        shared["complete"].append(reference.complete(a, g, p, row))
        shared["absolute"].append(reference.absolute(a, g, p, row))
        shared["centred"].append(reference.centred(a, g, p, row))
        shared["gmar_l1"].append(reference.gmar(a, g, p, row, 1))
        shared["gmar_l2"].append(reference.gmar(a, g, p, row, 2))
        shared["raw"].append(reference.raw(a, p, row))
        shared["rollout"].append(reference.rollout(a, p, row))
    return {method: torch.stack(rows, 1).unflatten(-1, family.grid) for method, rows in shared.items()}


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["raw", "rollout"])
def test_attention_methods(family: str, method: str):
    images = FAMILIES[family].images(2)
    ours = vitrail.explain(FAMILIES[family].model(), images, TARGETS, method=method)
    assert relative(ours.scores, references(family, "full")[method]) < 1e-5


@pytest.mark.parametrize(
    ("gradient", "family"),
    [
        *product(["full", "libra"], FAMILIES),
        *(pytest.param("leaf", family, marks=matrix.slow_unless_varied(family)) for family in FAMILIES),
    ],
)
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradient_methods(family: str, method: str, gradient: str):
    images = FAMILIES[family].images(2)
    ours = vitrail.explain(FAMILIES[family].model(), images, TARGETS, method=method, gradient=gradient)
    assert ours.scores.dtype == torch.float32
    assert relative(ours.scores, references(family, gradient)[method]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_is_exact(family: str):
    images = FAMILIES[family].images(2).double()
    module = FAMILIES[family].build().double()
    ours = vitrail.explain(module, images, TARGETS, gradient="libra")
    assert ours.scores.dtype == torch.float64
    assert relative(ours.scores, references(family, "libra")["complete"]) < 1e-12


@pytest.mark.parametrize("family", matrix.varied(FAMILIES))
def test_the_gradient_mode_against_self_repair(family: str):
    expected = references(family, "gim")["complete"]
    assert relative(expected, references(family, "full")["complete"]) > 1e-2
    images = FAMILIES[family].images(2)
    ours = vitrail.explain(FAMILIES[family].build().double(), images.double(), TARGETS, gradient="gim")
    assert relative(ours.scores, expected) < 1e-11
    single = vitrail.explain(FAMILIES[family].model(), images, TARGETS, gradient="gim")
    assert relative(single.scores, expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_centred(family: str):
    ours = vitrail.explain(FAMILIES[family].model(), FAMILIES[family].images(2), TARGETS, gradient="full", centred=True)
    assert relative(ours.scores, references(family, "full")["centred"]) < 1e-5


@pytest.mark.parametrize(
    ("method", "family"), matrix.pairs([info.name for info in vitrail.list_methods()], list(FAMILIES))
)
def test_batches_of_mixed_targets_equal_single_calls(method: str, family: str):
    model, images = FAMILIES[family].model(), FAMILIES[family].images(2)
    options = matrix.OPTIONS.get(method, {})
    if (method, family) in matrix.UNSERVED:
        with pytest.raises((UnsupportedOperationError, NoSignalError), match=matrix.UNSERVED[method, family]):
            vitrail.explain(model, images, [[1, 4], [3, 0]], method=method, **options)
        return
    together = vitrail.explain(model, images, [[1, 4], [3, 0]], method=method, **options).scores
    for image, column, target in [(0, 0, 1), (1, 1, 0)]:
        alone = vitrail.explain(model, images[image : image + 1], target, method=method, **options).scores[0]
        assert relative(together[image, column], alone.double()) < matrix.TOLERANCE.get(method, 1e-5)


def test_every_method_has_its_card():
    cards = Path(__file__).parents[2] / "docs" / "methods"
    index = (cards / "README.md").read_text()
    for info in vitrail.list_methods():
        assert (cards / f"{info.name}.md").read_text().startswith("# ")
        assert f"]({info.name}.md)" in index


def test_every_method_has_its_reference():
    """A test module that asks for the method calls its reference, too."""
    here = Path(__file__).parent
    tests = {path: path.read_text() for path in here.glob("test_*.py")}
    registered = {info.name for info in vitrail.list_methods() if info.function.__module__.startswith("vitrail.")}
    assert registered == set(matrix.REFERENCES), "add a slow float64 reference, and its line in tests/matrix.py"
    for method, function in matrix.REFERENCES.items():
        naming = [path.name for path, text in tests.items() if re.search(rf"\b{function.__name__}\b", text)]
        assert any(f'"{method}"' in tests[here / name] for name in naming), f"no test holds {method} to its reference"
