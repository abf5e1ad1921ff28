"""Maps finer than a patch, and means over views of the image, against literal float64 computations."""

from dataclasses import replace
from itertools import product

import matrix
import pytest
import reference
import torch
from families import FAMILIES
from graph_families import FAMILIES as MOVING
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vitrail
from vitrail import attribution, finer
from vitrail.attention.differentiate import DifferentiatedAttention
from vitrail.errors import ImageError, NoSignalError, OptionError
from vitrail.methods.within_patch import cell_contributions
from vitrail.views import CellMeans, View, moved, moved_back, views_of

TARGETS = [[2, 5], [0, 2]]
FINER = [info.name for info in vitrail.list_methods() if "resolution" in info.accepts]


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).abs().max() / expected.abs().max())


def literal(maps: Tensor, pixels: Tensor, cells: int, mixing: float = 0.5) -> Tensor:
    """One map's scores shared cell by cell: of (rows, cols) and pixels of (height, width)."""
    rows, cols = maps.shape
    high, wide = pixels.shape[0] // (rows * cells), pixels.shape[1] // (cols * cells)
    found = torch.zeros(rows * cells, cols * cells, dtype=torch.float64)
    for row, col in product(range(rows), range(cols)):
        score = maps[row, col]
        parts = {}
        for down, right in product(range(cells), range(cells)):
            y, x = row * cells + down, col * cells + right
            cell = pixels[y * high : (y + 1) * high, x * wide : (x + 1) * wide].sum()
            parts[y, x] = max(0.0, float(-cell if score < 0 else cell))
        mean = sum(parts.values()) / cells**2
        for (y, x), part in parts.items():
            found[y, x] = score * ((part + mixing * mean) / ((1 + mixing) * mean) if mean > 0 else 1)
    return found


def expected_cells(name: str, gradient: str, cells: int) -> Tensor:
    """The complete gradient's map at the cells, by the float64 reference: (2 images, 2 targets, rows, cols)."""
    family = FAMILIES[name]
    images = family.images(2).double().requires_grad_()
    captured = reference.capture(family.build(), images, gradient)
    maps, slopes = [], []
    for column in range(2):
        scalar = sum(captured.logits[image, TARGETS[image][column]] for image in range(2))
        gradients = captured.gradients(scalar)
        used = max(index for index, g in enumerate(gradients) if g.abs().max() > 0) + 1
        attention = [m.detach() for m in captured.maps[:used]]
        patches = family.grid[0] * family.grid[1]
        row = reference.readout(family.readout, family.prefix, patches, attention[-1].shape[-2])
        maps.append(reference.complete(attention, gradients[:used], family.prefix, row).unflatten(-1, family.grid))
        slopes += torch.autograd.grad(scalar, images, retain_graph=True)
    pixels = [(slope * images.detach()).sum(1) for slope in slopes]
    return torch.stack([torch.stack([literal(maps[t][i], pixels[t][i], cells) for t in range(2)]) for i in range(2)])


@pytest.mark.parametrize(
    ("gradient", "family"),
    [
        pytest.param(gradient, family, marks=matrix.slow_unless_varied(family) if quick else pytest.mark.slow)
        for gradient, family in product(["full", "leaf", "libra", "gim"], FAMILIES)
        for quick in [gradient == "libra" or family == "timm_vit"]
    ],
)
def test_cells_are_those_of_the_reference(family: str, gradient: str):
    expected = expected_cells(family, gradient, 2)
    for module, limit in ((FAMILIES[family].build(), 1e-4), (FAMILIES[family].build().double(), 1e-10)):
        images = FAMILIES[family].images(2).to(next(module.parameters()).dtype)
        ours = vitrail.explain(module, images, TARGETS, gradient=gradient, resolution=2, effort=1)
        assert relative(ours.scores, expected) < limit
        assert ours.spread is None


@pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, marks=matrix.slow_unless_varied(family) if quick else pytest.mark.slow)
        for method, family in product(FINER, FAMILIES)
        for quick in [method == "complete" or family == "timm_vit"]
    ],
)
def test_a_patch_is_the_mean_of_its_cells_and_a_batch_its_single_images(method: str, family: str):
    model, images = FAMILIES[family].model(), FAMILIES[family].images(2)
    whole = vitrail.explain(model, images, TARGETS, method=method).scores
    assert torch.equal(attribution.attribute(model, images, TARGETS, method=method, cells=1).scores, whole)
    finer = vitrail.explain(model, images, TARGETS, method=method, resolution=2, effort=1).scores
    assert relative(torch.nn.functional.avg_pool2d(finer, 2), whole) < 1e-5
    assert relative(finer, whole.repeat_interleave(2, -1).repeat_interleave(2, -2)) > 1e-2
    together = vitrail.explain(model, images, TARGETS, method=method, resolution=2, effort=2)
    for image, column in ((0, 0), (1, 1)):
        one = images[image : image + 1]
        alone = vitrail.explain(model, one, TARGETS[image][column], method=method, resolution=2, effort=2)
        assert relative(together.scores[image, column], alone.scores[0]) < 1e-4
        assert together.spread is not None
        assert alone.spread is not None
        assert torch.allclose(together.spread.answers[image, column], alone.spread.answers[0], atol=1e-4)


@pytest.mark.parametrize("family", ["swin", "pvt"])
def test_tokens_that_move(family: str):
    family = family if family in MOVING else next(name for name in MOVING if name.startswith(family))
    module, images = MOVING[family].build(), MOVING[family].images(1)
    whole = vitrail.explain(module, images, 2).scores
    finer = vitrail.explain(module, images, 2, resolution="pixel", effort=1).scores
    assert finer.shape[-2:] == images.shape[-2:]
    cells = finer.shape[-1] // whole.shape[-1]
    assert relative(torch.nn.functional.avg_pool2d(finer, cells), whole) < 1e-5


@pytest.mark.parametrize("gradient", ["full", "libra", "gim"])
@pytest.mark.parametrize("family", ["timm_vit", "user_written_out"])
def test_layers_before_the_first_pass_the_gradient_on(family: str, gradient: str, monkeypatch: pytest.MonkeyPatch):
    """The cells hang on the whole model, also where the map is of the last layers alone."""
    found = []

    def noted(*args):
        found.append(cell_contributions(*args))
        return found[-1]

    monkeypatch.setattr(attribution, "cell_contributions", noted)
    model, images = FAMILIES[family].model(), FAMILIES[family].images(1)
    for start in (0, 1, -1):
        vitrail.explain(model, images, 1, gradient=gradient, start_layer=start, resolution=2, effort=1)
    assert relative(found[1], found[0]) < 1e-5
    assert relative(found[2], found[0]) < 1e-5


# --- views ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30))
def test_shifts_are_different_parts_of_a_patch(high: int, wide: int, effort: int):
    if effort > high * wide:
        with pytest.raises(OptionError, match=f"effort={effort}"):
            views_of("shift", effort, (high, wide))
        return
    views = views_of("shift", effort, (high, wide))
    assert views[0] == View()
    assert len({(view.down % high, view.right % wide) for view in views}) == effort
    assert all(abs(view.down) < high and abs(view.right) < wide for view in views)


shifts = st.builds(View, down=st.integers(-5, 5), right=st.integers(-5, 5), mirrored=st.booleans())


@settings(deadline=None)
@given(shifts, st.integers(6, 12), st.integers(6, 12))
def test_what_a_view_shows_is_moved_back_exactly(view: View, high: int, wide: int):
    if view.mirrored:
        view = View(mirrored=True)
    numbers = torch.arange(2.0 * high * wide).reshape(1, 2, high, wide)
    back, seen = moved_back(moved(numbers, view), view)
    assert torch.equal(back, numbers * seen)
    assert int(seen.sum()) == (high - abs(view.down)) * (wide - abs(view.right))


@pytest.mark.parametrize("scale", [1.2, 1 / 1.2])
def test_a_scaled_view_is_moved_back_nearly(scale: float):
    rows = torch.linspace(0, 1, 64)
    smooth = (rows[:, None] + 2 * rows)[None, None]
    back, seen = moved_back(moved(smooth, View(scale=scale)), View(scale=scale))
    shown = seen[0, 0] > 0
    shown[:4] = shown[-4:] = shown[:, :4] = shown[:, -4:] = False  # beside the border it is reflected
    assert (back - smooth)[0, 0][shown].abs().max() < 0.06
    assert seen.mean() == pytest.approx(min(1, scale**-2), abs=0.05)


def test_a_whole_patch_moves_the_map_exactly():
    maps = torch.randn(1, 1, 5, 5)
    means = CellMeans((40, 40))
    means.add(maps, View(down=8, right=-8))
    assert torch.equal(means.mean()[0, 0, :4, 1:], maps[0, 0, 1:, :4].double())
    assert bool(means.mean()[0, 0, 4].isnan().all())  # which the view hides


def test_means_and_errors_are_those_of_the_views():
    maps = torch.randn(4, 2, 3, 4, 4, dtype=torch.float64)
    means = CellMeans((16, 16))
    for one in maps:
        means.add(one, View())
    assert torch.allclose(means.mean(), maps.mean(0))
    assert torch.allclose(means.error(), maps.std(0) / 2)
    halves = CellMeans((16, 16))
    halves.add(maps[0], View())
    halves.add(maps[1], View(down=2))  # half a cell: the mean of two below each other
    shown = (maps[1] + maps[1].roll(-1, -2)) / 2
    assert torch.allclose(halves.mean()[..., :3, :], ((maps[0] + shown) / 2)[..., :3, :])
    assert torch.allclose(halves.mean()[..., 3, :], ((maps[0] + maps[1] / 2) / 1.5)[..., 3, :])


def test_one_view_tells_of_no_error():
    means = CellMeans((8, 8))
    means.add(torch.randn(1, 1, 2, 2), View())
    means.add(torch.randn(1, 1, 2, 2), View(right=4))
    assert means.error().isinf().tolist() == [[[[False, True], [False, True]]]]


def test_the_result_tells_of_its_views(tmp_path):
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(2)
    ex = vitrail.explain(model, images, [1, 2], against=[3, 4], resolution=2)
    assert ex.spread is not None
    assert (ex.scores.shape, ex.spread.error.shape) == (ex.spread.error.shape, ex.scores.shape)
    assert ex.spread.answers.shape == (2, 4)
    given = ex.logits[torch.arange(2), ex.target] - ex.logits[torch.arange(2), torch.tensor([3, 4])]
    assert torch.allclose(ex.spread.answers[:, 0], given)
    finer = ex.metadata["finer"]
    assert {name: finer[name] for name in ("resolution", "smooth", "passes")} == {
        "resolution": 2, "smooth": "shift", "passes": 4,
    }  # fmt: skip
    assert [finer["views"][0], len(finer["views"])] == [{}, 4]
    assert "Mean over 4 views of the image, moved by parts of a patch; the difference of the logits" in ex.notes()[-1]
    assert "cells" in repr(ex)
    again = vitrail.Explanation.load(ex[1].save(tmp_path / "one.safetensors"))
    assert again.spread is not None
    assert torch.equal(again.spread.error, ex.spread.error[1:])
    assert torch.equal(again.spread.answers, ex.spread.answers[1:])
    assert again.metadata["finer"] == ex.metadata["finer"]
    with pytest.raises(ValueError, match=r"spread\.error"):
        replace(ex, spread=ex.spread[:1])


@pytest.mark.parametrize(
    ("method", "smooth"),
    [("rollout", "flip"), ("attn_lrp", "shift"), ("gradcam", "scale"), ("complete", "flip"), ("complete", "shift")],
)
def test_every_method_can_be_made_steadier(method: str, smooth):
    """The mean over views is that of the maps moved back one by one."""
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(1)
    options = matrix.OPTIONS.get(method, {})
    ex = vitrail.explain(model, images, 3, method=method, smooth=smooth, **options)
    size = (images.shape[-2], images.shape[-1])
    total, weight = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    patch = tuple(side // part for side, part in zip(size, FAMILIES["timm_vit"].grid, strict=True))
    parts = (16, 16) if method == "attn_lrp" else patch
    for view in views_of(smooth, {"shift": 4, "flip": 2, "scale": 3}[smooth], parts):
        scores = vitrail.explain(model, moved(images, view), 3, method=method, **options).scores[0].double()
        for side in range(2):
            scores = scores.repeat_interleave(size[side] // scores.shape[side], dim=side)
        back, seen = moved_back(scores[None, None], view)
        total, weight = total + back[0, 0], weight + seen[0, 0]
    pool = torch.nn.AdaptiveAvgPool2d(ex.grid)
    assert relative(ex.scores[0], (pool(total[None]) / pool(weight[None]))[0]) < 1e-5


def test_views_that_disagree_are_told():
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(1)
    patch = (images.shape[-2] // FAMILIES["timm_vit"].grid[0], images.shape[-1] // FAMILIES["timm_vit"].grid[1])
    logits = torch.stack([model.logits(moved(images, view))[0] for view in views_of("shift", 4, patch)]).detach()
    pairs = [(one, other) for one, other in product(range(7), range(7)) if one != other]
    gaps = {pair: logits[:, pair[0]] - logits[:, pair[1]] for pair in pairs}
    turning = [pair for pair in pairs if gaps[pair].min() < 0 < gaps[pair].max()]
    for target, against in (turning[0], next(pair for pair in pairs if pair not in turning)):
        ex = vitrail.explain(model, images, target, against=against, smooth="shift")
        assert ex.spread is not None
        assert torch.allclose(ex.spread.answers[0], gaps[target, against], atol=1e-5)
        assert any("views disagree" in note for note in ex.notes()) == ((target, against) in turning)


def test_views_go_together_as_a_batch_size_allows(monkeypatch: pytest.MonkeyPatch):
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(2)
    asked = []
    forward = type(model).logits

    def counted(self, batch, **rest):
        asked.append(len(batch))
        return forward(self, batch, **rest)

    one_by_one = vitrail.explain(model, images, TARGETS, resolution=2, effort=6)
    monkeypatch.setattr(type(model), "logits", counted)
    together = vitrail.explain(model, images, TARGETS, resolution=2, effort=6, batch_size=5)
    assert asked == [2, 4, 4, 2]
    assert relative(together.scores, one_by_one.scores) < 1e-5
    assert one_by_one.spread is not None
    assert together.spread is not None
    assert torch.allclose(together.spread.answers, one_by_one.spread.answers, atol=1e-5)
    asked.clear()
    vitrail.explain(model, images, lambda numbers: numbers[1] ** 2, smooth="shift", batch_size=8)
    assert asked == [2, 6]


def test_a_function_is_asked_in_every_view():
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(1)
    ex = vitrail.explain(model, images, lambda numbers: numbers[1] - numbers[2], smooth="flip")
    known = vitrail.explain(model, images, 1, against=2, smooth="flip")
    assert ex.spread is not None
    assert known.spread is not None
    assert torch.allclose(ex.spread.answers, known.spread.answers, atol=1e-5)
    assert relative(ex.scores, known.scores) < 1e-5


def test_images_at_fault_are_left_out(tmp_path):
    model = vitrail.load("bestiary")
    images = [torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    ex = vitrail.explain(model, [images[0], broken, images[1]], 3, smooth="flip", on_error="skip")
    assert [one["image"] for one in ex.failures] == [1]
    expected = vitrail.explain(model, torch.stack(images), 3, smooth="flip")
    assert relative(ex.scores, expected.scores) < 1e-5
    with pytest.raises(ImageError):
        vitrail.explain(model, broken, smooth="flip")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"resolution": 3}, "resolution=3 does not cut patches of 8×8 pixels"),
        ({"resolution": "cell"}, 'choose one of 1, 2, 4, 8, or "pixel"'),
        (
            {"resolution": 2, "method": "rollout"},
            "resolution=2 is not defined for rollout; these take it: gae, complete",
        ),
        ({"smooth": "blur"}, "smooth='blur' is unknown: choose one of shift, flip, scale"),
        ({"smooth": "flip", "effort": 3}, 'smooth="flip" has 1 to 2 different views'),
        ({"effort": 3}, "give resolution= or smooth=, too"),
        ({"resolution": 2, "guide": "auto"}, "leave it out, or resolution= and smooth="),
    ],
)
def test_what_means_nothing_is_refused(words, message):
    with pytest.raises(OptionError) as refused:
        vitrail.explain(vitrail.load("bestiary"), torch.randn(1, 3, 96, 96), **words)
    assert message in str(refused.value)


def test_every_kernel_passes_the_gradient_on_to_the_pixels(monkeypatch: pytest.MonkeyPatch):
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(1)
    init = DifferentiatedAttention.__init__
    for gradient in ("full", "libra"):
        question = {"gradient": gradient, "compete": False, "resolution": "pixel", "effort": 1}
        found = {}
        for kernel in ("blocks", "fused"):

            def with_kernel(self, *given, kernel=kernel):
                init(self, *given)
                self.kernel = kernel

            monkeypatch.setattr(DifferentiatedAttention, "__init__", with_kernel)
            found[kernel] = vitrail.explain(model, images, 1, **question).scores
        assert relative(found["fused"], found["blocks"]) < 1e-5


def test_an_image_whose_view_fails_is_named(monkeypatch: pytest.MonkeyPatch):
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(2)
    attribute = finer.attribute

    def failing(model, images, *args, **words):
        if len(images) == 4:  # two views of two images
            error = NoSignalError("the map of image 3 is the same everywhere")
            error.images, error.cause = (3,), "the map of the image is the same everywhere"
            raise error
        return attribute(model, images, *args, **words)

    monkeypatch.setattr(finer, "attribute", failing)
    with pytest.raises(NoSignalError, match="in a view of image 1: the map of the image is the same everywhere"):
        vitrail.explain(model, images, 1, smooth="shift", batch_size=4)
    ex = vitrail.explain(model, images, 1, smooth="shift", batch_size=4, on_error="skip")
    assert [one["image"] for one in ex.failures] == [1]
