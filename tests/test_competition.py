"""Class competition against its definition, written out in float64, and everything that it must refuse."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

import vitrail
from vitrail.errors import NonFiniteError, OptionError
from vitrail.methods import list_methods
from vitrail.objectives import MOST_RIVALS, class_rows, find_rivals, overlap, subtract

ABLE = [info.name for info in list_methods() if "compete" in info.accepts]
FEW = ("timm_vit", "hf_dinov2_registers", "timm_siglip")  # read at the class token, a mean, a pooling query
TARGETS = [[2, 5], [0, 2]]


def likeness(module: nn.Module) -> np.ndarray | None:
    """The cosines between the rows of the classifier, less what all share."""
    heads = [part for part in module.modules() if isinstance(part, nn.Linear) and part.out_features == 7]
    if not heads:
        return None
    rows = heads[-1].weight.detach().double().numpy()
    rows = rows - rows.mean(axis=0)
    return (rows @ rows.T) / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(rows, axis=1)[None]


def literal(name: str) -> torch.Tensor:
    """The competing maps of TARGETS, one class, one image and one patch at a time."""
    family = FAMILIES[name]
    module = family.build()
    alike = likeness(module)
    found = torch.zeros(2, 2, family.grid[0] * family.grid[1], dtype=torch.float64)
    for image in range(2):
        captured = reference.capture(family.build(), family.images(2)[image : image + 1], "libra")
        logits = captured.logits[0]

        def relevance(scalar: torch.Tensor, captured: reference.Captured = captured) -> list[float]:
            gradients = captured.gradients(scalar)
            used = max((index for index, g in enumerate(gradients) if g.abs().max() > 0), default=0) + 1
            a, g = [m.detach() for m in captured.maps[:used]], gradients[:used]
            row = reference.readout(family.readout, family.prefix, family.grid[0] * family.grid[1], a[-1].shape[-2])
            return reference.complete(a, g, family.prefix, row)[0].tolist()

        for column, target in enumerate(TARGETS[image]):
            unlike = [k for k in range(7) if k != target and (alike is None or alike[target, k] < 0.5)]
            said = logits.tolist()
            best = sorted(unlike, key=lambda k: -said[k])[:4]
            presence = {k: min(max(1 - (max(said) - said[k]) / 8, 0), 1) for k in best}
            first = max(presence.values())
            weight = {k: round(1024 * first * (p / first) ** 5) / 1024 if first else 0 for k, p in presence.items()}
            own = relevance(logits[target])
            competing = own
            if sum(weight.values()) > 0:
                together = sum(w * logits[k] for k, w in weight.items()) / max(1, sum(weight.values()))
                theirs = relevance(torch.as_tensor(together))
                mass = sum(max(s, 0) for s in own), sum(max(s, 0) for s in theirs)
                parts = [
                    [max(score, 0) / (whole or 1) for score in row]
                    for row, whole in zip((own, theirs), mass, strict=True)
                ]
                shared = sum(map(min, *parts))
                competing = [s - (1 - shared) * j for s, j in zip(own, theirs, strict=True)]
            found[image, column] = torch.tensor(competing)
    return found.unflatten(-1, family.grid)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in FAMILIES]
)
def test_competition_is_its_definition(name: str):
    expected = literal(name)
    ours = vitrail.explain(FAMILIES[name].model(), FAMILIES[name].images(2), TARGETS, gradient="libra", compete=True)
    assert float((ours.scores - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("method", ABLE)
def test_each_method_subtracts_the_map_of_its_rivals(method: str):
    family = FAMILIES["timm_vit"]
    model, images = family.model(), family.images(2)
    how = {"method": method, "gradient": "libra", **({"relu": False} if method == "attn_gradcam" else {})}
    ex = vitrail.explain(model, images, TARGETS, **how, compete=True)
    own = vitrail.explain(model, images, TARGETS, **how, compete=False)
    assert ex.signed
    assert ex.rivals is not None
    torch.testing.assert_close(ex.scores + ex.rivals.scores, own.scores, rtol=1e-4, atol=1e-6)
    weights, classes = ex.rivals.weights[1, 0], ex.rivals.classes[1, 0]

    def together(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, classes] * weights).sum(dim=1) / weights.sum().clamp(min=1)

    theirs = vitrail.explain(model, images[1:], **how, objective=together).scores[0]
    expected, _ = subtract(own.scores[1, 0], theirs)
    torch.testing.assert_close(ex.scores[1, 0], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", FEW)
def test_a_batch_and_several_targets_change_no_map(name: str):
    model, images = FAMILIES[name].model(), FAMILIES[name].images(3)
    whole = vitrail.explain(model, images, [[1, 4]] * 3, gradient="libra", compete=True)
    for image in range(3):
        for column, target in enumerate((1, 4)):
            alone = vitrail.explain(model, images[image : image + 1], target, gradient="libra", compete=True)
            torch.testing.assert_close(whole.scores[image, column], alone.scores[0], rtol=1e-5, atol=1e-6)
            assert whole.competitors(image, column)[0][0] == alone.competitors()[0][0]


class Classified(nn.Module):
    """A small ViT with a head of our own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.trunk = FAMILIES["timm_vit"].build()
        self.trunk.reset_classifier(0)  # pyright: ignore
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images))


def classified(*rows: torch.Tensor, bias: tuple[float, ...] = ()) -> nn.Module:
    head = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        head.weight.copy_(torch.stack(rows))
        head.bias.copy_(torch.tensor(bias or (0.0,) * len(rows)))
    return Classified(head).eval()


def drawn(count: int) -> list[torch.Tensor]:
    width = FAMILIES["timm_vit"].build().num_features  # pyright: ignore
    return list(torch.randn(count, width, generator=torch.Generator().manual_seed(1)) / width**0.5)  # pyright: ignore


def explained(module: nn.Module, target: int | None = 0, **more: object) -> vitrail.Explanation:
    images = FAMILIES["timm_vit"].images(1)
    return vitrail.explain(module, images, target, gradient="libra", compete=True, **more)  # pyright: ignore


def test_an_absent_rival_takes_no_part_and_costs_no_backward_pass(monkeypatch: pytest.MonkeyPatch):
    from vitrail.attention.differentiate import DifferentiatedAttention

    passes: list[bool] = []
    backward = DifferentiatedAttention.backward

    def counted(self: DifferentiatedAttention, scalar: torch.Tensor, keep: bool, **rest: object) -> object:
        passes.append(keep)
        return backward(self, scalar, keep, **rest)

    monkeypatch.setattr(DifferentiatedAttention, "backward", counted)
    lonely = classified(*drawn(3), bias=(30.0, 0.0, 0.0))
    ex = explained(lonely)
    assert len(passes) == 1
    assert ex.competitors() == []
    assert ex.competition_words() == "no rival class is present"
    plain = vitrail.explain(lonely, FAMILIES["timm_vit"].images(1), 0, gradient="libra", compete=False)
    assert torch.equal(ex.scores, plain.scores)
    passes.clear()
    explained(classified(*drawn(3)))
    assert passes == [True, False]


def test_a_synonym_is_no_rival():
    one, two, far = drawn(3)
    ex = explained(classified(one, one + 0.01 * two, far, -two, bias=(1.0, 1.5, 0.0, 0.0)))
    assert {name for name, _ in ex.competitors()} == {"class 2", "class 3"}


def test_two_classes_are_rivals_and_one_has_none():
    assert [name for name, _ in explained(classified(*drawn(2))).competitors()] == ["class 1"]
    alone = explained(classified(*drawn(1)))
    assert alone.rivals is None
    assert alone.competition_words() == ""


def test_labels_that_do_not_exclude_each_other_do_not_compete():
    module = classified(*drawn(3))
    model = vitrail.wrap(module, output="multilabel")
    images = FAMILIES["timm_vit"].images(1)
    ex = vitrail.explain(model, images, 0, gradient="libra", compete=True)
    assert ex.rivals is None
    assert any("do not compete" in note for note in ex.notes())
    assert torch.equal(ex.scores, vitrail.explain(model, images, 0, gradient="libra", compete=False).scores)


class Cosines(nn.Module):
    """Logits without a linear layer."""

    def __init__(self, rows: list[torch.Tensor]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.stack(rows))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.rows.T


def test_without_a_linear_classifier_all_classes_are_unlike_and_the_notes_say_so():
    one, two = drawn(2)
    module = Classified(Cosines([one, one, two])).eval()
    assert class_rows(vitrail.wrap(module), 3) is None
    ex = explained(module)
    assert {name for name, _ in ex.competitors()} == {"class 1", "class 2"}
    assert any("No linear classifier" in note for note in ex.notes())


def test_nan_is_refused():
    one, two = drawn(2)
    with pytest.raises(NonFiniteError):
        explained(classified(one, two * torch.nan))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "rollout"}, "not defined for rollout"),
        ({"against": 1}, "leave compete="),
        ({"objective": "probability"}, "of probability"),
        ({"target": lambda output: output[0] + output[1]}, "is a function"),
        ({"identity": True}, "adds the same"),
        ({"guide": "auto"}, "leave one of them out"),
    ],
)
def test_what_cannot_compete_is_refused(more: dict[str, object], said: str):
    family = FAMILIES["timm_vit"]
    with pytest.raises(OptionError, match=said):
        vitrail.explain(family.model(), family.images(1), **({"target": 0, "compete": True} | more))  # pyright: ignore


def test_the_rivals_go_with_the_result(tmp_path: Path):
    family = FAMILIES["timm_vit"]
    ex = vitrail.explain(family.model(), family.images(2), TARGETS, gradient="libra", compete=True)
    back = vitrail.Explanation.load(ex.save(tmp_path / "two.safetensors"))
    assert ex.rivals is not None
    assert back.rivals is not None
    for name in ("classes", "weights", "scores"):
        assert torch.equal(getattr(back.rivals, name), getattr(ex.rivals, name))
    assert back.competition_words(1, 1) == ex.competition_words(1, 1) == ex[1].competition_words(0, 1) != ""
    assert "less what argues for" in repr(ex[1:2]) or ex.targets > 1


def test_a_file_with_rivals_of_no_class_is_refused(tmp_path: Path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    family = FAMILIES["timm_vit"]
    ex = vitrail.explain(family.model(), family.images(1), 0, gradient="libra", compete=True)
    path = ex.save(tmp_path / "one.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors["rivals.classes"] = tensors["rivals.classes"] + 99
    save_file(tensors, path, header)
    with pytest.raises(vitrail.errors.VitrailError, match=r"rivals\.classes"):
        vitrail.Explanation.load(path)


# -- the pure functions ------------------------------------------------------------------------------------------------


@given(arrays(np.float32, (2, 6), elements=st.floats(-20, 20, width=32)), st.integers(0, 5))
def test_weights_lie_between_nothing_and_the_first_rivals_presence(logits: np.ndarray, target: int):
    tensor = torch.from_numpy(logits)
    classes, weights = find_rivals(tensor, torch.full((2, 1), target))
    assert classes.shape == weights.shape == (2, 1, MOST_RIVALS)
    assert bool(((weights >= 0) & (weights <= 1)).all())
    assert not bool((classes == target).any())
    for image in range(2):
        present = [max(1 - float(logits[image].max() - logits[image, k]) / 8, 0) for k in classes[image, 0].tolist()]
        for p, w in zip(present, weights[image, 0].tolist(), strict=True):
            assert w == pytest.approx(present[0] * (p / present[0]) ** 5 if p else 0, abs=1e-3)
    assert bool((weights.diff(dim=2) <= 0).all())


@given(arrays(np.float64, (2, 3, 4), elements=st.floats(-5, 5, allow_subnormal=False)))
def test_overlap_is_a_symmetric_share(pair: np.ndarray):
    one, other = torch.from_numpy(pair)
    shared = float(overlap(one, other))
    assert 0 <= shared <= 1 + 1e-12
    assert shared == pytest.approx(float(overlap(other, one)))
    if bool((one > 0).any()):
        assert float(overlap(one, one)) == pytest.approx(1)
    assert float(overlap(one.clamp(min=0), -one.clamp(min=0))) == 0
