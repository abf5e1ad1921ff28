"""Where one class dominates: the warning, and the gradient that is taken by itself."""

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import vitrail
from vitrail.guidance.dominance import (
    CONTRARY,
    INSTEAD,
    NEAR,
    RIVALS,
    UNLIKE,
    WARNING,
    contrary,
    dominates,
    rivals,
)
from vitrail.models.class_likeness import class_rows


@pytest.fixture(scope="module")
def module():
    return FAMILIES["timm_vit"].build()


class Scaled(torch.nn.Module):
    """A ViT whose logits are larger by a factor, so that its first class dominates."""

    def __init__(self, body: torch.nn.Module, factor: float):
        super().__init__()
        self.body, self.factor = body, factor

    def forward(self, images):
        return self.factor * self.body(images)


def test_the_logits_rule_at_its_edge():
    logits = torch.tensor([[NEAR + 0.001, 0.0, -1.0], [NEAR, 0.0, -1.0]])
    assert dominates(logits, torch.tensor([[0, 1], [0, 1]])).tolist() == [[True, False], [False, False]]
    assert dominates(torch.tensor([[-3.0]]), torch.tensor([[0]])).tolist() == [[True]]  # there is no other


def test_a_class_like_the_target_is_no_rival():
    rows = torch.tensor([[1.0, 0.0], [UNLIKE, (1 - UNLIKE**2) ** 0.5], [0.0, 1.0]])
    logits = torch.tensor([[6.0, 6.5, 0.0], [6.0, 0.0, 5.5]])
    assert dominates(logits, torch.tensor([[0], [0]]), rows).tolist() == [[True], [False]]


def test_the_best_rivals_and_no_more():
    logits = torch.tensor([[4.0, 0.0, 3.0, 1.0, 2.0, -9.0]])
    index, near = rivals(logits, torch.tensor([[0, 1]]))
    assert index.tolist() == [[[2, 4, 3], [0, 2, 4]]]
    assert near.tolist() == [[[True] * 3] * 2]
    assert RIVALS == 3


@given(arrays(np.float64, (2, 4, 5), elements=st.floats(-5, 5, allow_subnormal=False)))
def test_contrary_is_the_correlation_below_its_edge(pair: np.ndarray):
    one, other = pair.reshape(2, -1)
    assume(min(one.std(), other.std()) > 1e-3)
    expected = np.corrcoef(one, other)[0, 1]
    assume(abs(expected - CONTRARY) > 1e-6)
    assert bool(contrary(*torch.from_numpy(pair))) is bool(expected < CONTRARY)


def test_maps_without_signal_contradict_nothing():
    assert not contrary(torch.zeros(2, 2), torch.eye(2))


def by_the_rule(model: vitrail.VisionModel, image: torch.Tensor, target: int) -> str:
    """The rule written out once more for one image: a rival unlike, near, among the best three, with a contrary map."""
    logits = model.logits(image)[0].detach()
    rows = class_rows(model, len(logits))
    assert rows is not None
    unlike = [k for k in range(len(logits)) if k != target and float(rows[k] @ rows[target]) < UNLIKE]
    for rival in sorted(unlike, key=lambda k: -float(logits[k]))[:RIVALS]:
        maps = vitrail.explain(model, image, [[target, rival]]).scores[0].flatten(1).double().numpy()
        if float(logits[target] - logits[rival]) <= NEAR and np.corrcoef(maps)[0, 1] < CONTRARY:
            return "full"
    return "libra"


def test_auto_takes_full_where_a_rival_stands_against_the_target_and_libra_elsewhere(module):
    model = vitrail.wrap(Scaled(module, 4.0).eval())
    images = torch.cat([FAMILIES["timm_vit"].images(8), 3 * FAMILIES["timm_vit"].images(8).flip(0)])
    targets = model.logits(images).argmax(dim=1).tolist()
    expected = [by_the_rule(model, images[i : i + 1], targets[i]) for i in range(16)]
    assert 2 <= expected.count("full") <= 14
    ex = vitrail.explain(model, images, gradient="auto")
    both = {mode: vitrail.explain(model, images, gradient=mode) for mode in ("full", "libra")}
    assert ex.metadata["gradients"] == expected
    for i, mode in enumerate(expected):
        torch.testing.assert_close(ex.scores[i], both[mode].scores[i], rtol=1e-4, atol=1e-6)
        assert (INSTEAD in ex.metadata["image_notes"][i]) is (mode == "libra")
    assert ex.metadata["gradient"] == "auto"
    assert torch.equal(ex.target, both["full"].target)
    assert ex.metadata["difference_instead"] == both["full"].metadata["difference_instead"]
    assert ex[1].metadata["gradients"] == [expected[1]]
    parts = vitrail.explain(model, images, gradient="auto", batch_size=5)
    torch.testing.assert_close(parts.scores, ex.scores, rtol=1e-4, atol=1e-6)


def test_the_full_gradient_warns_where_the_logits_say_that_one_class_dominates(module):
    images = FAMILIES["timm_vit"].images(4)
    logits, rows = module(images).detach(), class_rows(vitrail.wrap(module), 7)
    first = logits.argmax(dim=1)
    unlike = (rows[first] @ rows.T) < UNLIKE
    gaps = logits.amax(dim=1) - logits.masked_fill(~unlike, -torch.inf).amax(dim=1)
    factor = float(NEAR / gaps.sort().values[1:3].mean())  # two images above the edge, two below
    model = vitrail.wrap(Scaled(module, factor).eval())
    alone = (factor * gaps > NEAR).tolist()
    assert sum(alone) == 2
    full, libra = (vitrail.explain(model, images, gradient=mode) for mode in ("full", "libra"))
    assert [WARNING in notes for notes in full.metadata["image_notes"]] == alone
    assert not any(WARNING in notes for notes in libra.metadata["image_notes"])
    auto = vitrail.explain(model, images, gradient="auto")
    assert all(mode == "libra" for mode, one in zip(auto.metadata["gradients"], alone, strict=True) if one)


def test_auto_is_full_for_every_other_question(module):
    images = FAMILIES["timm_vit"].images(1)
    model = vitrail.wrap(Scaled(module, 50.0).eval())
    first, second = module(images).argsort(descending=True)[0, :2].tolist()
    for question in ({"method": "gae"}, {"against": second, "objective": "difference"}, {"method": "rollout"}):
        target = None if question.get("method") == "rollout" else first
        auto = vitrail.explain(model, images, target, gradient="auto", **question)
        plain = vitrail.explain(model, images, target, **question)
        assert torch.equal(auto.scores, plain.scores)
        assert auto.metadata["gradient"] == "full"
        assert auto.notes() == []


def test_several_targets_of_one_image_share_a_gradient(module):
    images = FAMILIES["timm_vit"].images(2)
    model = vitrail.wrap(Scaled(module, 50.0).eval())
    first = module(images).argmax(dim=1).tolist()
    wanted = [[one, (one + 1) % 7] for one in first]
    ex = vitrail.explain(model, images, wanted, gradient="auto")
    expected = vitrail.explain(model, images, wanted, gradient="libra")
    torch.testing.assert_close(ex.scores, expected.scores)
    assert ex.metadata["gradient"] == "libra"
