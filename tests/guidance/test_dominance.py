"""Where one class dominates: the warning, and the gradient that is taken by itself."""

import pytest
import torch
from families import FAMILIES

import vitrail
from vitrail.guidance.dominance import INSTEAD, MARGIN, UNLIKE, WARNING, dominates
from vitrail.guidance.far_class import class_rows


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


def test_the_rule_at_its_edge():
    logits = torch.tensor([[MARGIN, 0.0, -1.0], [MARGIN - 1e-4, 0.0, -1.0]])
    assert dominates(logits, torch.tensor([[0, 1], [0, 1]])).tolist() == [[True, False], [False, False]]
    assert dominates(torch.tensor([[-3.0]]), torch.tensor([[0]])).tolist() == [[True]]  # there is no other


def test_a_class_like_the_target_is_no_rival():
    rows = torch.tensor([[1.0, 0.0], [UNLIKE, (1 - UNLIKE**2) ** 0.5], [0.0, 1.0]])
    logits = torch.tensor([[3.0, 3.5, 0.0], [3.0, 0.0, 2.5]])
    assert dominates(logits, torch.tensor([[0], [0]]), rows).tolist() == [[True], [False]]


def test_auto_takes_libra_where_one_class_dominates_and_full_elsewhere(module):
    images = FAMILIES["timm_vit"].images(4)
    logits, rows = module(images).detach(), class_rows(vitrail.wrap(module), 7)
    first = logits.argmax(dim=1)
    unlike = (rows[first] @ rows.T) < UNLIKE
    gaps = logits.amax(dim=1) - logits.masked_fill(~unlike, -torch.inf).amax(dim=1)
    factor = float(MARGIN / gaps.sort().values[1:3].mean())  # two images above the margin, two below
    model = vitrail.wrap(Scaled(module, factor).eval())
    libra = (factor * gaps >= MARGIN).tolist()
    assert sum(libra) == 2
    ex = vitrail.explain(model, images, gradient="auto")
    both = {mode: vitrail.explain(model, images, gradient=mode) for mode in ("full", "libra")}
    for i, by_libra in enumerate(libra):
        mode = "libra" if by_libra else "full"
        torch.testing.assert_close(ex.scores[i], both[mode].scores[i])
        assert ex.metadata["gradients"][i] == mode
        assert (INSTEAD in ex.metadata["image_notes"][i]) is by_libra
        assert (WARNING in both["full"].metadata["image_notes"][i]) is by_libra
        assert WARNING not in both["libra"].metadata["image_notes"][i]
    assert ex.metadata["gradient"] == "auto"
    assert torch.equal(ex.target, both["full"].target)
    assert ex[1].metadata["gradients"] == [ex.metadata["gradients"][1]]


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
