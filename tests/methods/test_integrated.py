"""TAM, Beyond Intuition, DIX, IIA and TokenTM against their formulas written out, and what they refuse."""

import copy

import integrated_reference as literal
import pytest
import reference
import torch
import torch.nn.functional as F
from families import FAMILIES, Block, FusedAttention, UserViT
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vitrail
from vitrail.errors import NoSignalError, OptionError, UnsupportedOperationError
from vitrail.methods import integrated_gradients

TARGETS = [[2, 5], [0, 2]]


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.double() - expected).abs().max() / expected.abs().max())


def setting(name: str):
    """A family's module and images in float64, and the row that its head reads."""
    family = FAMILIES[name]
    patches = family.grid[0] * family.grid[1]
    queries = 1 if family.readout == "pool" else family.tokens
    row = reference.readout(family.readout, family.prefix, patches, queries)
    return family, family.build().double(), family.images(2).double(), row


def by_formula(family, images, formula) -> torch.Tensor:
    """The formula's map of each image and target, as (images, targets, rows, columns)."""
    maps = [
        torch.stack([formula(image[None], t) for t in wanted]) for image, wanted in zip(images, TARGETS, strict=True)
    ]
    patches = torch.stack(maps)[..., family.prefix :]
    return patches.unflatten(-1, family.grid)


FORMULAS = {
    "tam": (literal.tam, {"samples": 3, "start": 0}, {"samples": 3, "start_layer": 0}),
    "tam from 1": (literal.tam, {"samples": 2, "start": 1}, {"samples": 2}),
    "bi_head": (literal.bi_head, {"samples": 3, "start": 1}, {"samples": 3, "start_layer": 1}),
    "dix": (literal.dix, {"samples": 2}, {"samples": 2}),
    "iia": (literal.iia, {"samples": 2}, {"samples": 2}),
}


@pytest.mark.parametrize(
    "name", ["timm_vit_average", "timm_deit_distilled", "timm_siglip", "user_written_out", "torchvision_vit"]
)
@pytest.mark.parametrize("case", FORMULAS)
def test_maps_are_their_formulas(name, case):
    family, module, images, row = setting(name)
    if case == "tam from 1" and name == "timm_siglip":
        case = "tam"
    formula, arguments, options = FORMULAS[case]
    expected = by_formula(family, images, lambda image, t: formula(module, image, t, row, **arguments))
    ours = vitrail.explain(copy.deepcopy(module), images, TARGETS, method=case.split()[0], **options)
    assert relative(ours.scores, expected) < 1e-11


def parts(name: str, module: nn.Module) -> list:
    if name == "torchvision_vit":
        layers = module.encoder.layers
        return [(b.ln_1, b.self_attention, b.self_attention.out_proj.weight) for b in layers]
    if name == "user_written_out":
        return [(b.norm1, b.attention.qkv, b.attention.out.weight) for b in module.blocks]
    found = []
    for b in module.blocks:
        scale = getattr(b.ls1, "gamma", None)
        weight = b.attn.proj.weight if scale is None else scale[:, None] * b.attn.proj.weight
        found.append((b.norm1, b.attn.qkv, weight))
    if name == "timm_siglip":
        found.append((module.norm, module.attn_pool.kv, module.attn_pool.proj.weight))
    return found


@pytest.mark.parametrize("name", ["timm_deit3", "timm_siglip", "user_written_out", "torchvision_vit"])
def test_bi_token_weighs_tokens_by_what_the_block_makes_of_them(name):
    family, module, images, row = setting(name)

    def formula(image, t):
        gains = literal.token_gains(module, image, [(n, s, w.detach()) for n, s, w in parts(name, module)])
        return literal.bi_token(module, image, t, row, 3, 1, gains)

    expected = by_formula(family, images, formula)
    ours = vitrail.explain(copy.deepcopy(module), images, TARGETS, method="bi_token", samples=3, start_layer=1)
    assert relative(ours.scores, expected) < 1e-11


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", ["timm_deit3", "timm_siglip", "user_written_out", "torchvision_vit"])
def test_norm_rollout_weighs_attention_by_what_it_moves(name, start):
    family, module, images, row = setting(name)
    pieces = [(n, s, w.detach()) for n, s, w in parts(name, module)]
    expected = by_formula(family, images, lambda image, _: literal.norm_rollout(module, image, row, start, pieces))
    ours = vitrail.explain(copy.deepcopy(module), images, TARGETS, method="norm_rollout", start_layer=start)
    assert relative(ours.scores, expected) < 1e-11


def blocks_and_second_norms(name: str, module: nn.Module) -> list:
    if name == "torchvision_vit":
        return [(b, b.ln_2) for b in module.encoder.layers]
    return [(b, b.norm2) for b in module.blocks]


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("name", ["timm_vit_average", "timm_siglip", "user_written_out", "torchvision_vit"])
def test_tokentm_weighs_tokens_by_their_transformations(name, identity):
    family, module, images, row = setting(name)
    pieces = blocks_and_second_norms(name, module)
    expected = by_formula(family, images, lambda image, t: literal.tokentm(module, image, t, row, pieces, identity))
    ours = vitrail.explain(copy.deepcopy(module), images, TARGETS, method="tokentm", identity=identity)
    assert relative(ours.scores, expected) < 1e-11
    single = vitrail.explain(family.model(), family.images(2), TARGETS, method="tokentm", identity=identity)
    assert relative(single.scores, expected) < 1e-5


@pytest.mark.parametrize("options", [{"variant": "released"}, {"gradient": "leaf"}], ids=str)
def test_variants_of_dix(options):
    family, module, images, row = setting("timm_vit")
    released, held = "variant" in options, "gradient" in options
    expected = by_formula(family, images, lambda image, t: literal.dix(module, image, t, row, 2, released, held))
    ours = vitrail.explain(copy.deepcopy(module), images, TARGETS, method="dix", samples=2, **options)
    assert relative(ours.scores, expected) < 1e-11
    plain = vitrail.explain(copy.deepcopy(module), images, TARGETS, method="dix", samples=2)
    assert relative(plain.scores, expected) > 1e-3


def test_the_papers_steps_of_iia():
    _, module, images, _ = setting("timm_vit")
    ask = {"method": "iia", "target": 3}
    paper = vitrail.explain(module, images[:1], **ask, variant="paper").scores
    torch.testing.assert_close(paper, vitrail.explain(module, images[:1], **ask, samples=10).scores)
    released = vitrail.explain(module, images[:1], **ask).scores
    torch.testing.assert_close(released, vitrail.explain(module, images[:1], **ask, samples=5).scores)


def test_dino_reads_the_class_token_and_the_patches():
    _, module, images, _ = setting("hf_dinov2")
    ask = {"target": 3, "method": "bi_head", "samples": 2}
    both = vitrail.explain(module, images, **ask, dino=True).scores
    own = [vitrail.explain(module, images, **ask, readout=readout).scores for readout in ("class", "mean")]
    torch.testing.assert_close(both, own[0] + own[1])


def test_gae_with_the_mean_clamped():
    family, module, images, _ = setting("timm_vit")
    captured = reference.capture(copy.deepcopy(module), images)
    gradients = captured.gradients(captured.logits[:, 3].sum())
    total = torch.eye(family.tokens, dtype=torch.float64)
    for a, g in zip(captured.maps, gradients, strict=True):
        total = total + (a.detach() * g).mean(1).clamp(min=0) @ total
    ours = vitrail.explain(module, images, 3, method="gae", clamp="mean")
    assert relative(ours.scores, total[:, 0, 1:].unflatten(-1, family.grid)) < 1e-11


def test_rollout_of_each_head():
    family, module, images, _ = setting("timm_vit")
    maps = [m.detach() for m in reference.capture(copy.deepcopy(module), images).maps]
    eye = torch.eye(family.tokens, dtype=torch.float64)
    total = eye
    for a in maps:
        total = (a + eye) / 2 @ total
    ours = vitrail.explain(module, images, method="rollout", heads="each")
    assert relative(ours.scores, total.mean(1)[:, 0, 1:].unflatten(-1, family.grid)) < 1e-11
    whole = vitrail.explain(module, images, method="rollout", heads="each", row_normalise=False)
    torch.testing.assert_close(whole.scores, ours.scores * 2 ** len(maps))


class ProductCounter(TorchDispatchMode):
    """Counts the linear layers that are really computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.linear += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


def test_dix_computes_only_the_end_of_the_model_again():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    with ProductCounter() as once, torch.no_grad():
        module(images)
    model = vitrail.wrap(module)
    vitrail.explain(model, images, 1, method="raw")  # a model's layout is worked out once
    with ProductCounter() as counter:
        vitrail.explain(model, images, 1, method="dix", samples=4)
    # Two passes over the picture; five times what follows the last attention, and what follows the one before it.
    after_last, after_second = 4, 8
    assert once.linear == 13
    assert counter.linear == 2 * once.linear + 5 * (after_last + after_second)


class AddsInPlace(Block):
    def forward(self, x):
        x += self.attention(self.norm1(x.clone()))
        x += self.mlp(self.norm2(x.clone()))
        return x


class Parallel(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (self.attention(self.norm1(x)) + self.mlp(self.norm2(x)))


def test_tokentm_bears_sums_in_place_and_refuses_parallel_blocks():
    def model(kind: type[Block]) -> nn.Module:
        torch.manual_seed(0)
        return UserViT(nn.Sequential(*(kind(48, FusedAttention(48, 3)) for _ in range(3)))).eval()

    images = torch.randn(1, 3, 64, 64)
    plain, in_place = (
        vitrail.explain(model(kind), images, 1, method="tokentm").scores for kind in (Block, AddsInPlace)
    )
    torch.testing.assert_close(plain, in_place)
    with pytest.raises(UnsupportedOperationError, match="block 0 does not add its attention to the tokens before"):
        vitrail.explain(model(Parallel), images, 1, method="tokentm")


def test_a_model_that_writes_over_its_tokens_gets_the_same_map():
    plain = FAMILIES["user_patch_14"].build()
    writing = UserViT(nn.Sequential(*(AddsInPlace(48, FusedAttention(48, 3)) for _ in range(3))), (42, 56), 14).eval()
    writing.load_state_dict(plain.state_dict())
    images = FAMILIES["user_patch_14"].images(2)
    maps = [vitrail.explain(m, images, TARGETS, method="dix", samples=2).scores for m in (plain, writing)]
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("method", ["tam", "iia"])
def test_the_class_is_that_of_the_picture_at_every_point(method):
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    with torch.no_grad():
        # The class that gains most on the way to grey is raised until the picture is all but taken for it.
        shown, grey = module(images)[0], module(torch.zeros_like(images))[0]
        gaining = (grey - shown).argmax()
        module.head.bias[gaining] += shown.max() - shown[gaining] - 1e-3
        assert module(torch.zeros_like(images)).argmax() != module(images).argmax()
    predicted = vitrail.explain(module, images, method=method, samples=3)
    named = vitrail.explain(module, images, predicted.target.tolist(), method=method, samples=3)
    torch.testing.assert_close(predicted.scores, named.scores)


@pytest.mark.parametrize("method", ["tam", "dix"])
def test_samples_go_through_in_passes_of_any_size(method, monkeypatch):
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(3)
    together = vitrail.explain(module, images, 1, method=method, samples=3).scores
    monkeypatch.setattr(integrated_gradients, "TOKENS_PER_PASS", {"cpu": 1, "cuda": 1})
    torch.testing.assert_close(vitrail.explain(module, images, 1, method=method, samples=3).scores, together)


@pytest.mark.parametrize("method", ["tam", "iia"])
def test_one_objective_along_the_whole_path(method):
    """A quotient that would lose its meaning anywhere on the path gives way to the difference at every point of it."""
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(4)
    ask = {"target": 2, "against": 5, "method": method, "samples": 3, "objective": "normalized_difference"}
    with torch.no_grad():
        module.head.bias[[2, 5]] += 20
        logits, grey = module(images)[:, 5], module(torch.zeros_like(images))[0, 5]
        image = images[None, logits.argmax()]
        positive = vitrail.explain(module, image, **ask)
        assert positive.metadata["difference_instead"] == [[False]]
        assert logits.max() > grey
        module.head.bias[5] -= (logits.max() + grey) / 2  # above zero for the picture, below for the grey image
    mixed = vitrail.explain(module, image, **ask)
    assert mixed.logits[0, 5] > 0
    assert mixed.metadata["difference_instead"] == [[True]]
    difference = vitrail.explain(module, image, **ask | {"objective": "difference"})
    torch.testing.assert_close(mixed.scores, difference.scores)


def test_a_token_that_the_head_does_not_look_at_has_no_feedback():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    with pytest.raises(NoSignalError, match="no positive gradient at attention 2 in the row"):
        vitrail.explain(module, images, 1, method="tam", samples=2, readout=(1, 1))


class NormBehind(FusedAttention):
    """Attention with a norm between its heads and its projection."""

    def __init__(self) -> None:
        super().__init__(48, 3)
        self.inner = nn.LayerNorm(48)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 3, 16).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return self.out(self.inner(o))


def test_bi_token_needs_the_projection_right_behind_the_attention():
    module = UserViT(nn.Sequential(*(Block(48, NormBehind()) for _ in range(2)))).eval()
    with pytest.raises(UnsupportedOperationError, match=r"output of attention 1 as it is \(layer_norm stands behind"):
        vitrail.explain(module, torch.randn(1, 3, 64, 64), 1, method="bi_token", samples=2)


class PoolsTwice(UserViT):
    """Four learned queries read the tokens, and one reads those four."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(Block(48, FusedAttention(48, 3))))
        self.four, self.one = nn.Parameter(torch.randn(1, 3, 4, 16)), nn.Parameter(torch.randn(1, 3, 1, 16))

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = self.blocks(x).unflatten(2, (3, 16)).transpose(1, 2)
        x = F.scaled_dot_product_attention(self.four.expand(len(x), -1, -1, -1), x, x)
        x = F.scaled_dot_product_attention(self.one.expand(len(x), -1, -1, -1), x, x)
        return self.head(x.transpose(1, 2).flatten(1))


@pytest.mark.parametrize("method", ["tam", "bi_head", "bi_token", "dix", "iia"])
def test_pools_in_a_row_are_refused(method):
    with pytest.raises(UnsupportedOperationError, match="the last 2 of 3 attentions of PoolsTwice pool the tokens"):
        vitrail.explain(PoolsTwice().eval(), torch.randn(1, 3, 64, 64), 1, method=method)


def test_what_pooling_and_depth_rule_out():
    pooling, images = FAMILIES["timm_siglip"].build(), FAMILIES["timm_siglip"].images(1)
    with pytest.raises(UnsupportedOperationError, match="the two layers are of different shape"):
        vitrail.explain(pooling, images, 1, method="dix", variant="released")
    with pytest.raises(UnsupportedOperationError, match="dino=True reads the rows"):
        vitrail.explain(pooling, images, 1, method="bi_head", dino=True)
    shallow = UserViT(nn.Sequential(Block(48, FusedAttention(48, 3)))).eval()
    with pytest.raises(UnsupportedOperationError, match="has one attention, and dix needs two: use iia"):
        vitrail.explain(shallow, images, 1, method="dix")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tam", "samples": 1}, "samples=1: the mean from a grey image to the picture"),
        ({"method": "iia", "samples": 0}, "samples=0: the path from no attention"),
        ({"method": "dix", "variant": "code"}, "variant='code' is neither 'paper' nor 'released'"),
        ({"method": "gae", "clamp": "both"}, "clamp='both' is neither 'head' nor 'mean'"),
        ({"method": "rollout", "heads": "max"}, "heads='max' is neither 'mean' nor 'each'"),
    ],
    ids=str,
)
def test_options_out_of_range(options, message):
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    with pytest.raises(OptionError, match=message):
        vitrail.explain(module, images, **{"target": None if options["method"] == "rollout" else 1} | options)
