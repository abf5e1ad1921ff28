"""Maps over the token graph: against dense matrices written by hand, and what must hold whatever the model is."""

import dataclasses
from collections.abc import Callable

import families
import graph_families
import pytest
import torch
import torch.nn.functional as F
from dense_relevance import reference_maps
from families import enliven
from graph_families import FAMILIES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vitrail
from vitrail.attention.trace_graph import trace_graph
from vitrail.errors import MovingTokensError, PackedBatchError, UnsupportedAttentionError
from vitrail.explanation import Explanation
from vitrail.guidance.stitching import crop_map, plan_stitch, stitch, to_grid
from vitrail.models.layout import TokenLayout, layout_of
from vitrail.models.observation import noise_like
from vitrail.models.vision_model import VisionModel

SIGNED = ("complete", "gae", "absolute")
METHODS = (*SIGNED, "rollout", "raw")


def slow(*values):
    return [pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow) for one in values]


EVERY = [
    *(name for name in FAMILIES if not FAMILIES[name].slow),
    *slow(*(name for name in FAMILIES if FAMILIES[name].slow)),
]


def explained(model, images, target=3, method="complete", **options) -> Explanation:
    if method in SIGNED:
        options = {"gradient": "full", **options}
    if method == "complete":
        options = {"compete": False, **options}
    return vitrail.explain(model, images, target, method=method, **options)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    assert found.shape == right.shape
    return float((found - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("name", EVERY)
def test_maps_are_those_of_dense_matrices(name):
    family = FAMILIES[name]
    module, images = family.build(), family.images()
    right = reference_maps(family, module, images, target=3)
    model = vitrail.wrap(module)
    found = {method: explained(model, images, method=method).scores for method in right}
    errors = {method: error(found[method], right[method]) for method in right}
    assert errors == pytest.approx(dict.fromkeys(right, 0), abs=1e-8)


@pytest.mark.parametrize("name", ["swin", *slow(*(name for name in FAMILIES if name != "swin"))])
def test_single_precision_is_as_good_as_it_can_be(name):
    family = FAMILIES[name]
    module, images = family.build(), family.images()
    model = vitrail.wrap(module)
    found = {method: explained(model, images.float(), method=method).scores for method in ("complete", "rollout")}
    right = reference_maps(family, module, images, target=3)
    for method, scores in found.items():
        assert scores.dtype == torch.float32
        assert error(scores, right[method]) < 1e-5


# --- what must hold of any model --------------------------------------------------------------------------------------


def graph_layout(model: VisionModel, images: torch.Tensor) -> TokenLayout:
    """The layout that a model would have if its tokens were followed, also where they stay in place."""
    layout = layout_of(model, images)
    assert layout.graph is None
    graph = trace_graph(model.logits, noise_like(images, 2, seed=0)).graph
    return dataclasses.replace(layout, prefix=0, order=None, readout=torch.ones(1), graph=graph)


def one_window() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    module = SwinTransformer(**{**graph_families.SWIN, "depths": (2,), "num_heads": (2,)}, window_size=8)
    enliven(module)
    return module.eval()


@pytest.mark.parametrize("name", ["timm_vit", "one window", *slow("timm_vit_average", "timm_dinov2_registers")])
def test_on_a_chain_the_graph_gives_the_chains_map(name, monkeypatch):
    if name == "one window":
        model, images = vitrail.wrap(one_window().double()), FAMILIES["swin"].images()
    else:
        family = families.FAMILIES[name]
        model, images = vitrail.wrap(family.build().double()), family.images(2, dtype=torch.float64)
    layout = graph_layout(model, images)
    for method, options in (
        *((method, {}) for method in METHODS),
        ("complete", {"start_layer": 1}),
        ("rollout", {"start_layer": 1}),
        ("rollout", {"row_normalise": False}),
        ("complete", {"centred": True}),
        ("gae", {"clamp": "mean"}),
    ):
        chain = explained(model, images, method=method, **options).scores
        with monkeypatch.context() as patch:
            patch.setattr("vitrail.attribution.layout_of", lambda *_, **__: layout)
            graph = explained(model, images, method=method, **options).scores
        assert error(graph, chain) < 1e-12, (method, options)


def test_no_graph_is_made_where_tokens_stay_in_place(monkeypatch):
    monkeypatch.setattr("vitrail.models.layout.trace_graph", lambda *_: pytest.fail("the tokens were followed"))
    family = families.FAMILIES["timm_vit"]
    model = vitrail.wrap(family.build())
    explained(model, family.images(1))
    assert layout_of(model, family.images(1), follow=True).graph is None


def test_rolling_the_image_by_whole_windows_rolls_the_map():
    from timm.models.swin_transformer import SwinTransformer

    # Without shifts, and with windows of two tokens in both stages.
    module = SwinTransformer(**{**graph_families.SWIN, "depths": (1, 1)}, window_size=2)
    enliven(module)
    model, images = vitrail.wrap(module.eval().double()), FAMILIES["swin"].images()
    scores = explained(model, images).scores
    rolled = explained(model, images.roll((16, 16), (2, 3))).scores
    assert error(rolled, scores.roll((4, 4), (1, 2))) < 1e-12
    assert error(rolled, scores) > 0.1


@pytest.mark.parametrize("name", ["swin", *slow("twins", "cait")])
def test_neither_batch_nor_other_targets_change_a_map(name):
    model, images = vitrail.wrap(FAMILIES[name].build().double()), FAMILIES[name].images(3)
    several = explained(model, images, [[3, 1], [2, 5], [0, 6]]).scores
    for number, targets in enumerate(([3, 1], [2, 5], [0, 6])):
        for place, target in enumerate(targets):
            alone = explained(model, images[number : number + 1], target).scores
            assert error(several[number, place], alone[0]) < 1e-12


class Windows(nn.Module):
    """Attention in four windows of a grid of 4×4 tokens, with the images first or the windows first."""

    def __init__(self, windows_first: bool) -> None:
        super().__init__()
        self.windows_first = windows_first
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.attention = families.FusedAttention(8, 2)
        self.across = families.FusedAttention(8, 2)
        self.head = nn.Linear(8, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images)  # images, 8, 4, 4
        x = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        x = x.transpose(0, 1) if self.windows_first else x  # images, windows, tokens, 8
        x = x + self.attention(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        x = x.transpose(0, 1) if self.windows_first else x
        x = x.mean(2)
        return self.head((x + self.across(x)).mean(1))


def test_windows_of_a_batch_may_come_before_its_images():
    module, images = Windows(windows_first=True), FAMILIES["swin"].images(3)[..., :16, :16]
    enliven(module)
    other = Windows(windows_first=False)
    other.load_state_dict(module.state_dict())
    first, last = vitrail.wrap(module.eval().double()), vitrail.wrap(other.eval().double())
    scores = explained(first, images).scores
    assert error(scores, explained(last, images).scores) < 1e-12
    assert error(scores[1], explained(first, images[1:2]).scores[0]) < 1e-12
    assert scores.shape == (3, 4, 4)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // one.element_size())
        return result


def test_steps_and_memory_grow_with_the_number_of_tokens():
    from timm.models.swin_transformer import SwinTransformer

    counts, largest = [], []
    for size in (32, 64):
        module = SwinTransformer(**{**graph_families.SWIN, "img_size": size, "depths": (2, 2)}, window_size=2).eval()
        enliven(module)
        model, images = vitrail.wrap(module), torch.randn(1, 3, size, size)
        graph = layout_of(model, images, follow=True).graph
        assert graph is not None
        numbers = (getattr(step, one.name) for step in graph.steps for one in dataclasses.fields(step))
        counts.append(sum(one.numel() for one in numbers if isinstance(one, torch.Tensor)))
        with Largest() as memory:
            explained(model, images)
        largest.append(memory.elements)
    for grown in (counts, largest):
        assert grown[1] <= 4.1 * grown[0]


# --- questions, modes and guides --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swin", *slow("levit")])
def test_attentions_before_the_first_layer_move_nothing(name):
    family = FAMILIES[name]
    module, images = family.build(), family.images()
    right = reference_maps(family, module, images, target=3, first=1)
    model = vitrail.wrap(module)
    for method in ("complete", "rollout") if name == "swin" else ("rollout",):
        assert error(explained(model, images, method=method, start_layer=1).scores, right[method]) < 1e-10


@pytest.mark.parametrize("gradient", ["leaf", "libra"])
@pytest.mark.parametrize("name", ["swin", *slow("pvt_v2", "twins")])
def test_gradient_modes_are_those_of_dense_matrices(name, gradient):
    family = FAMILIES[name]
    images = family.images()
    right = reference_maps(family, family.build(), images, target=3, gradient=gradient)["complete"]
    found = explained(vitrail.wrap(family.build().double()), images, gradient=gradient).scores
    assert error(found, right) < 1e-9


def test_a_class_against_another_and_its_rivals():
    family = FAMILIES["swin"]
    module, images = family.build(), family.images()
    right = reference_maps(family, module, images, target=3, against=5)
    model = vitrail.wrap(module)
    assert error(explained(model, images, against=5).scores, right["complete"]) < 1e-10
    own = vitrail.explain(model, images, 3, compete=False, gradient="libra").scores
    found = vitrail.explain(model, images, 3)
    assert found.rivals is not None
    assert error(found.scores, own - found.rivals.scores) < 1e-12
    assert float(found.rivals.scores.abs().max()) > 0


@pytest.mark.parametrize(("name", "layout"), [("swin", "side"), *slow(("pvt_v2", "wide"), ("swin", "stack"))])
def test_a_guide_lies_beside_the_image(name, layout):
    family = FAMILIES[name]
    model, images = vitrail.wrap(family.build().double()), family.images()
    picture = images[1]
    target = int(model.logits(picture[None]).argmin())
    found = vitrail.explain(model, images[:1], target, guide=vitrail.Guide(picture, layout=layout))
    plan = plan_stitch(layout, {"stack": "top"}.get(layout, "left"), "squash", grid=family.grid, patch=(4, 4))
    whole = explained(model, stitch(images[:1], picture[None], plan), target).scores
    right = crop_map(whole, plan)
    assert error(to_grid(right, family.grid) if found.scores.shape != right.shape else found.scores, right) < 1e-12


def test_attention_among_channels_is_said_to_move_nothing():
    model, images = vitrail.wrap(FAMILIES["davit"].build()), FAMILIES["davit"].images().float()
    notes = explained(model, images).notes()
    assert any("among channels moves nothing between tokens" in note for note in notes)
    assert any("Convolutions mix neighbouring tokens" in note for note in notes)


# --- refusals ---------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Two blocks of attention over a grid of 4×4 tokens, `between` them something else."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.patches, self.between = nn.Conv2d(3, 8, 4, 4), between
        self.first, self.second = (families.Block(8, families.FusedAttention(8, 2)) for _ in range(2))
        self.head = nn.Linear(8, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(self.patches(images).flatten(2).transpose(1, 2))
        return self.head(self.second(self.between(x)).mean(1))


def sorted_by_content(x: torch.Tensor) -> torch.Tensor:
    return x.gather(1, x.norm(dim=-1).argsort(1)[:, :8, None].expand(-1, -1, 8))


def largest_first(x: torch.Tensor) -> torch.Tensor:
    return x.sort(1, descending=True).values[:, :8]


def linear_attention(x: torch.Tensor) -> torch.Tensor:
    return x + x.relu() @ (x.relu().transpose(1, 2) @ x)


def each_with_those_before(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(1)


def added_up(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)[:, :8].index_put((torch.tensor(0), torch.arange(16) // 2), x[0], accumulate=True)


def blurred_scores(x: torch.Tensor) -> torch.Tensor:
    scores = F.avg_pool2d((x @ x.transpose(1, 2))[:, None], 3, 1, 1)
    return x + (scores.softmax(-1) @ x[:, None])[:, 0]


def read_by_columns(x: torch.Tensor) -> torch.Tensor:
    attention = (x @ x.transpose(1, 2))[:, None].softmax(-1)
    return x + (x.transpose(1, 2)[:, None] @ attention)[:, 0].transpose(1, 2)


def read_twice(x: torch.Tensor) -> torch.Tensor:
    attention = x[:, None].softmax(-1)  # of queries alone: what it looks at is told by what it is multiplied with
    return x + (attention @ x[:, None, :8] + attention @ x[:, None, 8:])[:, 0]


def product(x: torch.Tensor) -> torch.Tensor:
    return torch.cumprod(x, 1)


def in_one_sequence(x: torch.Tensor) -> torch.Tensor:
    return x + x.flatten(0, 1).mean(0)


@pytest.mark.parametrize(
    ("between", "kind", "message"),
    [
        (sorted_by_content, UnsupportedAttentionError, "gather moves tokens to places that depend on the image"),
        (largest_first, UnsupportedAttentionError, "attention 1 looks at mixtures of all tokens"),
        (linear_attention, UnsupportedAttentionError, "linear attention.*no attention matrix"),
        (each_with_those_before, UnsupportedAttentionError, "cumsum joins every token with those before it"),
        (added_up, UnsupportedAttentionError, "index_put adds tokens up"),
        (blurred_scores, UnsupportedAttentionError, "attention scores are joined by avg_pool2d"),
        (read_by_columns, UnsupportedAttentionError, "reads its values from other tokens than its keys"),
        (read_twice, UnsupportedAttentionError, "attention 1 reads values of several sets of tokens"),
        (product, UnsupportedAttentionError, "the operation cumprod, which has no rule"),
        (in_one_sequence, PackedBatchError, "joins tokens of several images of a batch"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(between, kind, message):
    module = Mixed(between).eval()
    enliven(module)
    with pytest.raises(kind, match=message):
        trace_graph(module, FAMILIES["swin"].images()[..., :16, :16].float())


@pytest.mark.parametrize("method", ["complete", "rollout", "raw"])
def test_a_softmax_over_no_tokens_is_refused_by_every_method(method):
    def shared_out(x: torch.Tensor) -> torch.Tensor:
        return (x + x.reshape(len(x), 1, 4, 32).softmax(-1).reshape(x.shape))[:, ::2]

    module = Mixed(shared_out).eval()
    enliven(module)
    with pytest.raises(UnsupportedAttentionError, match="attention 1, a softmax over scores that are not made of"):
        explained(vitrail.wrap(module), FAMILIES["swin"].images()[..., :16, :16].float(), method=method)


def test_a_choice_between_tokens_is_of_both():
    images = FAMILIES["swin"].images()[..., :16, :16]
    scores = []
    for between in (
        lambda x: torch.maximum(x[:, ::2], x[:, 1::2]),
        lambda x: torch.where(x[:, ::2] > x[:, 1::2], x[:, ::2], x[:, 1::2]),
    ):
        module = Mixed(between).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            enliven(module)
        scores.append(explained(vitrail.wrap(module.double()), images).scores)
    assert error(scores[1], scores[0]) < 1e-12


class TalkingHeads(families.WrittenOutAttention):
    """Mixes the heads' probabilities, by a convolution of 1×1 or by a product."""

    by_convolution = True

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.mix = nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        if self.by_convolution:
            weights = self.mix(weights)
        else:
            weights = F.linear(weights.permute(0, 2, 3, 1), self.mix.weight[:, :, 0, 0], self.mix.bias)
            weights = weights.permute(0, 3, 1, 2)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def test_heads_may_be_mixed_by_a_convolution():
    module, images = Mixed(lambda x: x[:, ::2]), FAMILIES["swin"].images()[..., :16, :16]
    module.first.attention = TalkingHeads()
    enliven(module)
    found = explained(vitrail.wrap(module.eval().double()), images).scores
    module.first.attention.by_convolution = False
    assert error(found, explained(vitrail.wrap(module), images).scores) < 1e-12


def test_a_refusal_says_what_was_in_the_way():
    module = Mixed(lambda x: torch.cumprod(x, 1)[:, ::2]).eval()
    enliven(module)
    with pytest.raises(MovingTokensError, match=r"nor can its tokens be followed: .* cumprod"):
        explained(vitrail.wrap(module), FAMILIES["swin"].images()[..., :16, :16].float())


def test_linear_attention_has_no_softmax_to_soften():
    with pytest.raises(UnsupportedAttentionError, match='"gim" softens the softmax of attention, and attention 0 is'):
        explained(
            vitrail.wrap(FAMILIES["efficientvit"].build()), FAMILIES["efficientvit"].images(1).float(), gradient="gim"
        )


def test_a_method_that_follows_no_tokens_names_those_that_do():
    with pytest.raises(MovingTokensError, match=r"legrad follows no tokens that move, as raw, rollout, gae.* do$"):
        explained(vitrail.wrap(FAMILIES["swin"].build()), FAMILIES["swin"].images(1).float(), method="legrad")
