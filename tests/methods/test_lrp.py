"""The LRP family equals a literal float64 reference, image by image, and says no to what it has no rule for."""

from functools import cache

import lrp_reference as literal
import pytest
import torch
from families import CLASSES, FAMILIES, Block, FusedAttention, UserViT
from torch import nn

import vitrail
from vitrail.errors import OptionError, UnsupportedOperationError
from vitrail.lrp.operations import find_precision

READERS = {
    "timm_vit": literal.read_timm,
    "torchvision_vit": literal.read_torchvision,
    "user_written_out": literal.read_user,
    "user_patch_14": literal.read_user,
}
TARGETS = [[2, 5], [0, 3]]


@cache
def model(family: str) -> nn.Module:
    return FAMILIES[family].build()


@cache
def trace(family: str, image: int) -> literal.Trace:
    return literal.Trace(READERS[family](model(family)), FAMILIES[family].images(2)[image].double())


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.double() - expected.reshape(ours.shape)).abs().max() / expected.abs().max())


def assert_equals(family: str, reference, tolerance: float = 1e-6, **options) -> None:
    """Two images and two targets of each in one call, in a float32 model; scores come back in float32."""
    ours = vitrail.explain(model(family), FAMILIES[family].images(2), TARGETS, **options)
    assert ours.scores.dtype == torch.float32
    for image, targets in enumerate(TARGETS):
        for column, target in enumerate(targets):
            expected = reference(trace(family, image), target)
            assert relative(ours.scores[image, column], expected) < tolerance, (family, image, target)


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize(("start", "rules"), [(0, "tattr"), (1, "tattr"), (0, "original")])
def test_tattr(family, start, rules):
    def reference(t, target):
        return literal.tattr(t, target, start, rules == "original")

    options = {"method": "tattr", "start_layer": start, "rules": rules}
    assert_equals(family, reference, precision="float64", **options)
    assert_equals(family, reference, 1e-5, **options)


@pytest.mark.parametrize("family", READERS)
def test_rollout_of_relevance(family):
    def reference(t, target):
        return literal.rollout([r.clamp(min=0).mean(0) for r in literal.relevance(t, target, False)[0]], 0)

    assert_equals(family, reference, method="tattr", weighted=False, precision="float64")


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize(
    ("layer", "ablation", "rules"), [(-1, False, "original"), (-1, True, "tattr"), (1, False, "tattr")]
)
def test_partial_lrp(family, layer, ablation, rules):
    def reference(t, target):
        matrix = literal.relevance(t, target, rules == "original")[0][layer]
        matrix = matrix * literal.gradients(t, target)[layer] if ablation else matrix
        return matrix.clamp(min=0).mean(0)[0, 1:]

    assert_equals(family, reference, method="partial_lrp", layer=layer, ablation=ablation, rules=rules)


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize("rules", ["tattr", "original"])
def test_lrp_to_the_pixels(family, rules):
    def reference(t, target):
        return literal.relevance(t, target, rules == "original")[1]

    assert_equals(family, reference, method="lrp", rules=rules)


@pytest.mark.parametrize("family", READERS)
def test_attn_gradcam(family):
    assert_equals(family, literal.attn_gradcam, 1e-5, method="attn_gradcam", relu=False)


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize(("conv_gamma", "linear_gamma"), [(0.25, 0.05), (0.0, 0.0), (100.0, 1.0)])
@pytest.mark.parametrize("rules", ["attn_lrp", "cp_lrp"])
def test_attn_lrp(family, conv_gamma, linear_gamma, rules):
    gammas = {"conv_gamma": conv_gamma, "linear_gamma": linear_gamma}

    def reference(t, target):
        return literal.attn_lrp(t, target, **gammas, cp=rules == "cp_lrp")

    # Dividing by x and multiplying by it again, as the reference does, leaves the stabilisers of single numbers apart.
    assert_equals(family, reference, 1e-5, method="attn_lrp", rules=rules, **gammas)


@pytest.mark.parametrize(
    ("family", "rules"), [("timm_vit", "attn_lrp"), ("torchvision_vit", "cp_lrp"), ("user_patch_14", "attn_lrp")]
)
def test_pa_lrp(family, rules):
    def reference(t, target):
        return literal.pa_lrp(t, target, 0.25, 0.05, cp=rules == "cp_lrp")

    def alone(t, target):
        return literal.attn_lrp(t, target, 0.25, 0.05, cp=rules == "cp_lrp", positions=True)

    assert_equals(family, reference, 1e-5, method="pa_lrp", rules=rules)
    assert_equals(family, alone, 1e-5, method="pa_lrp", rules=rules, positions="alone")


def test_pa_lrp_says_no_to_models_that_add_no_positions():
    bare = Bare().eval()
    with pytest.raises(UnsupportedOperationError, match="pa_lrp found no embedding of positions .* its 16 patches"):
        vitrail.explain(bare, torch.randn(1, 3, 64, 64), 2, method="pa_lrp")


@pytest.mark.parametrize("method", ["tattr", "lrp", "attn_lrp"])
def test_stabilised_float32_is_the_same_in_float64_models(method):
    images = FAMILIES["timm_vit"].images(1)
    single = vitrail.explain(model("timm_vit"), images, 2, method=method, precision="stabilised").scores
    double = FAMILIES["timm_vit"].build().double()
    again = vitrail.explain(double, images.double(), 2, method=method, precision="stabilised").scores
    assert relative(again, single.double()) < 1e-5


class Bare(nn.Module):
    """A ViT in which nothing takes relevance away: no class token, no positions, the tokens' mean at the head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 16, 16)
        self.blocks = nn.Sequential(*(Block(48, FusedAttention(48, 3)) for _ in range(2)))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def test_tattr_rules_conserve_relevance_down_to_the_pixels():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    scores = vitrail.explain(Bare().double().eval(), images, [1, 3], method="lrp", rules="tattr").scores
    # The seed is one per image. What is lost is 1e-9 beside each divisor.
    torch.testing.assert_close(scores.sum(dim=(1, 2)), torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=1e-4)


def test_relevance_of_a_difference_of_logits_is_the_difference_of_relevances_without_rescaling():
    images = FAMILIES["timm_vit"].images(1)
    ask = {"method": "lrp", "rules": "original"}
    one, other = vitrail.explain(model("timm_vit"), images, [[1, 4]], **ask).scores[0].double()
    both = vitrail.explain(model("timm_vit"), images, 1, against=4, objective="difference", **ask).scores[0]
    assert relative(both, one - other) < 1e-5


@pytest.mark.parametrize("method", ["tattr", "partial_lrp", "lrp", "attn_lrp", "attn_gradcam"])
def test_the_model_is_left_as_it_was(method):
    module = FAMILIES["user_encoder"].build()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    vitrail.explain(module, FAMILIES["user_encoder"].images(1), 2, method=method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.dtype == torch.float32 and p.requires_grad and p.grad is None for p in module.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(part, name) for part in module.modules() for name in hooks)


@pytest.mark.parametrize("method", ["tattr", "attn_lrp"])
def test_bfloat16_models_are_explained_by_a_forward_pass_in_float64(method):
    images = FAMILIES["timm_vit"].images(1).bfloat16()
    half = FAMILIES["timm_vit"].build().bfloat16()
    ours = vitrail.explain(half, images, 2, method=method).scores
    wide = vitrail.explain(FAMILIES["timm_vit"].build().bfloat16().double(), images.double(), 2, method=method).scores
    assert relative(ours, wide) < 1e-5


class Near(nn.Module):
    """Adds to one feature what leaves `rest` of it: a residual sum of which float32 keeps no digit."""

    def __init__(self, rest: float) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = x.clone()[..., :1] * (self.rest - 1)
        return x + torch.cat([update, 0.1 * x[..., 1:]], dim=-1)


@pytest.mark.parametrize(("method", "tolerance"), [("tattr", 1e-5), ("attn_lrp", 1e-5)])
def test_float32_products_leave_what_nearly_cancels_as_it_is(method, tolerance):
    torch.manual_seed(0)
    vit = UserViT(nn.Sequential(Block(48, FusedAttention(48, 3)), Near(1e-7), Block(48, FusedAttention(48, 3)))).eval()
    images = torch.randn(1, 3, 64, 64)
    ours, exact = (vitrail.explain(vit, images, 2, method=method, precision=p).scores for p in ("mixed", "float64"))
    assert 0 < relative(ours, exact) < tolerance


def test_mixed_precision_is_float64_where_the_model_is_or_float32_keeps_fewer_digits():
    cpu = torch.device("cpu")
    assert find_precision("mixed", cpu).products == torch.float32
    assert find_precision("mixed", cpu, torch.float64).products == torch.float64
    torch.set_float32_matmul_precision("high")
    try:
        assert find_precision("mixed", cpu).products == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, dim=1)


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + x
        y[:, 0] = x[:, 0]
        return y


class Overwritten(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + x
        part = y[:, 1:]
        y += x
        return y + part.sum(dim=1, keepdim=True)


class Augmented(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        y += x
        return y


class Summed(Augmented):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) + x


@pytest.mark.parametrize("method", ["tattr", "lrp", "partial_lrp", "attn_lrp"])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Unknown(), r"has no rule for cumsum\(\) in module 'blocks.2'; use"),
        (InPlace(), r"__setitem__\(\) in module 'blocks.2' \(it changes a tensor in place\); use"),
        (Overwritten(), r"sum\(\) in module 'blocks.2' \(it reads a tensor that the model has since changed in place"),
    ],
)
def test_what_has_no_rule_is_named(method, part, message):
    blocks = nn.Sequential(Block(48, FusedAttention(48, 3)), Block(48, FusedAttention(48, 3)), part)
    with pytest.raises(UnsupportedOperationError, match=f"{method} has no rule") as caught:
        vitrail.explain(UserViT(blocks).eval(), torch.randn(1, 3, 64, 64), 2, method=method)
    assert caught.match(message)
    assert caught.match("method='complete'")


def test_gradient_modes_weigh_the_same_relevance():
    images = FAMILIES["timm_vit"].images(1)
    maps = {
        (method, mode): vitrail.explain(model("timm_vit"), images, 2, gradient=mode, **options).scores.double()
        for mode in ("full", "leaf", "libra")
        for method, options in (("tattr", {"method": "tattr"}), ("last", {"method": "partial_lrp", "ablation": True}))
    }
    # Behind the last attention there is no other for a constant attention to matter, but norms and gates there are.
    assert relative(maps["last", "leaf"], maps["last", "full"]) < 1e-6
    assert relative(maps["last", "libra"], maps["last", "full"]) > 1e-3
    assert relative(maps["tattr", "leaf"], maps["tattr", "full"]) > 1e-3


def test_devices_without_float64_are_told_what_to_do():
    with pytest.raises(OptionError, match="mps has no float64.*precision='stabilised'"):
        find_precision("float64", torch.device("mps"))


@pytest.mark.parametrize("method", ["tattr", "attn_lrp"])
def test_sums_written_in_place_are_sums(method):
    torch.manual_seed(0)
    block, images = Block(48, FusedAttention(48, 3)), torch.randn(1, 3, 64, 64)
    in_place = UserViT(Augmented(block)).eval()
    plain = UserViT(Summed(block)).eval()
    plain.load_state_dict(in_place.state_dict())
    one, other = (vitrail.explain(module, images, 2, method=method).scores for module in (in_place, plain))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tattr", "precision": "half"}, "precision='half' is none of mixed, float64, stabilised"),
        ({"method": "tattr", "rules": "alpha"}, "rules='alpha' is none of tattr, original"),
        ({"method": "attn_lrp", "rules": "tattr"}, "rules='tattr' is none of attn_lrp, cp_lrp"),
        ({"method": "attn_lrp", "linear_gamma": -1.0}, "linear_gamma=-1.0 must be 0"),
        ({"method": "partial_lrp", "layer": 3}, "layer=3, but the model calls attention 3 times"),
        (
            {"method": "partial_lrp", "gradient": "leaf"},
            "gradient='leaf' changes nothing for partial_lrp, which uses no gradient",
        ),
        ({"method": "tattr", "start_layer": 5}, "start_layer=5, but the model calls attention 3 times"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        vitrail.explain(model("timm_vit"), FAMILIES["timm_vit"].images(1), 2, **options)
