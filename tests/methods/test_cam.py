"""The CAM family, BiCAM, Grad-ECLIP, LeGrad, AttCAT, FullGrad+ against a literal float64 reference, and refusals."""

import copy
import math

import cam_reference as literal
import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn

import vitrail
from vitrail.errors import NoAttentionError, NoSignalError, OptionError, UnsupportedOperationError

TARGET = 2
QUICK = ("timm_vit", "torchvision_vit", "user_encoder")


def families(names) -> list:
    """The families as parameters, all but a few of them slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def ours(name: str, method: str, **options) -> Tensor:
    family = FAMILIES[name]
    module, images = family.build().double(), family.images(1).double()
    return vitrail.explain(module, images, TARGET, method=method, **options).scores[0].flatten()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", families(literal.NORM))
def test_cam_at_the_last_blocks_first_norm(name: str):
    gradient = "libra" if name in ("timm_vit", "torchvision_vit", "timm_eva02") else "full"
    a, g = literal.features(name, literal.NORM[name], TARGET, gradient)
    for method in ("gradcam", "layercam"):
        expected = getattr(literal, method)(a, g)
        assert relative(ours(name, method, gradient=gradient), expected) < 1e-9


def test_every_rule_of_the_family():
    a, g = literal.features("timm_vit", "blocks.1.norm1", TARGET, "full")
    for method in ("gradcam", "layercam", "hirescam", "gradcam_plus_plus", "xgradcam"):
        expected = getattr(literal, method)(a, g)
        assert relative(ours("timm_vit", method, layer="blocks.1.norm1"), expected) < 1e-9
        assert relative(ours("timm_vit", method, layer="blocks.1.norm1", relu=True), expected.clamp(min=0)) < 1e-9
    assert relative(ours("timm_vit", "eigencam", layer="blocks.1.norm1"), literal.eigencam(a)) < 1e-7


@pytest.mark.parametrize("name", families(["timm_vit", "torchvision_vit", "timm_siglip", "timm_deit_distilled"]))
def test_cdam_and_finercam(name: str):
    a, g = literal.features(name, literal.NORM[name], TARGET, "full")
    assert relative(ours(name, "cdam"), literal.cdam(a, g)) < 1e-11
    for relu, variant in ((False, "paper"), (True, "paper"), (False, "released")):
        expected = literal.finercam(name, TARGET, 2, 0.6, relu, variant == "released")
        found = ours(name, "finercam", references=2, alpha=0.6, relu=relu, variant=variant)
        assert relative(found, expected) < 1e-11
    if name == "timm_vit":
        ask = {"method": "finercam", "references": 2, "alpha": 0.6, "variant": "released"}
        single = vitrail.explain(FAMILIES[name].model(), FAMILIES[name].images(1), TARGET, **ask).scores[0].flatten()
        assert relative(single.double(), expected) < 1e-5


def test_finercam_against_the_nearest_class_is_gradcam_against_it():
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(1)
    logits = model.logits(images)[0].detach()
    nearest = min((d for d in range(7) if d != TARGET), key=lambda d: abs(logits[d] - logits[TARGET]))
    one = vitrail.explain(model, images, TARGET, method="finercam", references=1)
    for method in ("gradcam", "finercam"):
        named = vitrail.explain(model, images, TARGET, against=nearest, method=method)
        torch.testing.assert_close(one.scores, named.scores)
    many = vitrail.explain(model, images, TARGET, method="finercam", references=50)
    six = vitrail.explain(model, images, TARGET, method="finercam", references=6)
    assert torch.equal(many.scores, six.scores)
    pair = FAMILIES["timm_vit"].images(2)
    both = vitrail.explain(model, pair, [[1, 4], [3, 0]], method="finercam", references=2, relu=True).scores
    alone = vitrail.explain(model, pair[1:], 0, method="finercam", references=2, relu=True).scores
    torch.testing.assert_close(both[1:, 1], alone, rtol=1e-4, atol=1e-6)


def test_cdam_of_a_concept():
    """The likeness to another picture's embedding is the target."""
    module, images = FAMILIES["timm_vit"].build().double(), FAMILIES["timm_vit"].images(2).double()
    module.head = nn.Identity()
    concept = module(images[1:])[0].detach()
    found = vitrail.explain(
        vitrail.wrap(module, output="embedding"), images[:1], lambda vector: vector @ concept, method="cdam"
    )
    kept = []
    module.blocks[2].norm1.register_forward_hook(lambda *hooked: kept.append(hooked[-1]))
    (grad,) = torch.autograd.grad(module(images[:1])[0] @ concept, kept[:1])
    expected = literal.cdam(kept[0][0, 1:].detach(), grad[0, 1:])
    assert relative(found.scores[0].flatten(), expected) < 1e-11


@pytest.mark.parametrize("name", ["timm_vit", "user_written_out"])
@pytest.mark.parametrize("gradient", ["full", "leaf", "libra", "gim"])
def test_gradient_modes(gradient: str, name: str):
    a, g = literal.features(name, "blocks.0.norm1", TARGET, gradient)
    found = ours(name, "hirescam", layer="blocks.0.norm1", gradient=gradient)
    assert relative(found, literal.hirescam(a, g)) < 1e-9


def test_layers_of_other_shapes():
    """Feature maps (images, width, rows, columns), patches without prefix, and tokens with it."""
    maps = ours("timm_vit", "hirescam", layer="patch_embed.proj")
    assert relative(ours("timm_vit", "hirescam", layer="patch_embed"), maps) < 1e-9
    assert relative(ours("timm_vit", "hirescam", layer="norm_pre"), maps) > 1e-3  # positions were added
    module, images = FAMILIES["hf_vit"].build(), FAMILIES["hf_vit"].images(2)
    name = next(n for n, _ in module.named_modules() if n.endswith("1.layernorm_after"))
    assert vitrail.explain(module, images, TARGET, method="gradcam", layer=name).scores.shape == (2, 4, 4)


def test_a_post_norm_model_takes_what_the_block_before_has_normalised():
    layer = nn.TransformerEncoderLayer(48, 3, 96, dropout=0.0, batch_first=True, norm_first=False)
    torch.manual_seed(0)
    module = FAMILIES["user_encoder"].build()
    module.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    model = vitrail.wrap(module.eval())
    images = FAMILIES["user_encoder"].images(1)
    default = vitrail.explain(model, images, 1, method="gradcam").scores
    # The block's second norm gives the next block's input: to attention and, beside it, to the residual.
    named = vitrail.explain(model, images, 1, method="gradcam", layer="blocks.layers.1.norm2").scores
    torch.testing.assert_close(default, named)


@pytest.mark.parametrize("name", families(literal.QKV_AND_PROJECTION))
def test_grad_eclip(name: str):
    expected = literal.grad_eclip(name, TARGET)
    assert relative(ours(name, "grad_eclip", relu=False), expected) < 1e-9
    if expected.max() > 0:
        assert relative(ours(name, "grad_eclip"), expected.clamp(min=0)) < 1e-9


def test_grad_eclips_merged_heads_explain_another_model_but_name_the_true_class():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    merged = vitrail.explain(module, images, method="grad_eclip", heads="merged", relu=False)
    true = vitrail.explain(module, images, method="grad_eclip", relu=False)
    assert torch.equal(merged.logits, true.logits)
    assert torch.equal(merged.target, true.target)
    assert not torch.allclose(merged.scores, true.scores)
    beit, pictures = FAMILIES["timm_beit"].build(), FAMILIES["timm_beit"].images(1)
    with pytest.raises(UnsupportedOperationError, match=r"merge the 3 heads of attention 2 in blocks\.2\.attn"):
        vitrail.explain(beit, pictures, method="grad_eclip", heads="merged")


@pytest.mark.parametrize("name", families(literal.HEAD))
def test_legrad(name: str):
    assert relative(ours(name, "legrad"), literal.legrad(name, TARGET, 1, released=False)) < 1e-9
    if name == "timm_vit":
        expected = literal.legrad(name, TARGET, 0, released=True)
        assert relative(ours(name, "legrad", variant="released", start_layer=0), expected) < 1e-9


@pytest.mark.parametrize("gradient", ["full", pytest.param("leaf", marks=pytest.mark.slow), "libra"])
@pytest.mark.parametrize("name", families(literal.BLOCKS))
def test_sums_over_block_inputs(name: str, gradient: str):
    if gradient == "leaf" and name != "timm_vit":
        return
    products, attention = literal.block_inputs(name, TARGET, gradient)
    prefix, last = FAMILIES[name].prefix, FAMILIES[name].depth - 1
    plus = sum(products)[prefix:]
    assert relative(ours(name, "fullgrad_plus", gradient=gradient), plus) < 1e-9
    half = sum(products[1:])[prefix:]
    assert relative(ours(name, "fullgrad_plus", gradient=gradient, start_layer=1), half) < 1e-9
    attcat = sum(attention[layer] * products[layer + 1] for layer in range(last))[prefix:]
    assert relative(ours(name, "attcat", gradient=gradient), attcat) < 1e-9


@pytest.mark.parametrize("name", families(["timm_vit", "timm_siglip", "timm_beit", "user_non_square", "user_encoder"]))
def test_bicam(name: str):
    gradient = "libra" if name == "timm_beit" else "full"
    assert relative(ours(name, "bicam", gradient=gradient), literal.bicam(name, TARGET, gradient)) < 1e-11
    if name == "timm_vit":
        by_value = literal.attention_value_gradient(name, TARGET, ["blocks.1.attn", "blocks.2.attn"])
        assert relative(ours(name, "bicam"), by_value) < 1e-11
        assert relative(ours(name, "bicam", share=1.0), literal.bicam(name, TARGET, "full", 1)) < 1e-11
        single = vitrail.explain(FAMILIES[name].model(), FAMILIES[name].images(1), TARGET, method="bicam").scores
        assert relative(single[0].flatten().double(), by_value) < 1e-5


@pytest.mark.parametrize("name", families(["timm_vit", "torchvision_vit", "timm_deit_distilled", "user_non_square"]))
def test_caap(name: str):
    middle = {3: [1], 4: [1, 2]}[FAMILIES[name].depth]
    assert relative(ours(name, "caap"), literal.caap(name, TARGET, middle)) < 1e-11
    if name == "timm_vit":
        every = literal.caap(name, TARGET, [0, 1, 2])
        assert relative(ours(name, "caap", first=0.0, last=1.0, patches_per_pass=5), every) < 1e-11
        single = vitrail.explain(FAMILIES[name].model(), FAMILIES[name].images(1), TARGET, method="caap").scores
        assert relative(single[0].flatten().double(), literal.caap(name, TARGET, middle)) < 1e-5


@pytest.mark.parametrize("name", families(["timm_vit", "torchvision_vit", "timm_vit_average", "user_non_square"]))
def test_var(name: str):
    for classes, threshold in ((2, 0.01), (3, 0.3), (1, 0.0)):
        expected = literal.var(name, TARGET, classes, 10.0, threshold)
        assert relative(ours(name, "var", classes=classes, threshold=threshold), expected) < 1e-11
    assert bool((expected == 0).any())
    assert bool((expected != 0).any())
    if name == "timm_vit":
        expected = literal.var(name, TARGET, 2, 10.0, 0.01, against=4)
        assert relative(ours(name, "var", against=4), expected) < 1e-11


def test_var_of_another_base_is_made_of_its_maps():
    images, model = FAMILIES["timm_vit"].images(2), FAMILIES["timm_vit"].model()
    found = vitrail.explain(model, images, [[0, 4], [1, 2]], method="var", base="gradcam", gradient="full")
    base = vitrail.explain(model, images, [[0, 4], [1, 2]], method="gradcam", gradient="full")
    kept = found.scores != 0
    assert bool(kept.any())
    shares = (found.scores / base.scores)[kept]
    assert float(shares.min()) > 1 / 3
    assert float(shares.max()) <= 1


def test_var_says_that_a_class_is_nowhere_ahead():
    with pytest.raises(NoSignalError, match="nowhere larger than those of the 2 classes that it is compared with"):
        ours("timm_vit", "var", threshold=0.9)


@pytest.mark.parametrize("name", families(["timm_vit", "torchvision_vit", "user_non_square"]))
def test_dave(name: str):
    drawn = [(0, 0), *torch.randint(-5, 6, (2, 2), generator=torch.Generator().manual_seed(7)).tolist()]
    for blur in (0.0, 0.8):
        found = ours(name, "dave", samples=3, reach=5, blur=blur, seed=7)
        assert relative(found, literal.dave(name, TARGET, drawn, 5, blur).flatten()) < 1e-11


def test_nothing_before_the_layer_is_differentiated():
    """The backward pass ends there: the first block's weights would have to be read by it otherwise."""
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    seen = []
    handle = module.blocks[0].register_forward_hook(lambda *hooked: seen.append(hooked[-1].requires_grad))
    vitrail.explain(module, images, method="gradcam")
    handle.remove()
    assert seen
    assert not any(seen[-1:])


def test_the_model_is_left_as_it_was():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
    for method in ("gradcam", "legrad", "attcat", "grad_eclip"):
        vitrail.explain(module, images, method=method)
    with pytest.raises(OptionError):
        vitrail.explain(module, images, method="gradcam", layer="head")
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()] == hooks
    assert all(p.requires_grad for p in module.parameters())
    assert all(p.grad is None for p in module.parameters())


def test_the_sign_follows_the_relu():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    assert vitrail.explain(module, images, method="gradcam").signed
    positive = vitrail.explain(module, images, method="gradcam", relu=True)
    assert not positive.signed
    assert positive.scores.min() >= 0
    infos = {info.name: info for info in vitrail.list_methods()}
    assert (infos["grad_eclip"].signed, infos["eigencam"].class_specific) == (False, False)
    assert infos["legrad"].start_layer == -2


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("gradcam", {"layer": "blocks.2.norm3"}, OptionError, r"'blocks\.2\.norm3' is no module.*near it: .*norm"),
        ("gradcam", {"layer": "head"}, OptionError, r"shape \(1, 7\), which holds no features of the 4×4 patches"),
        ("gradcam", {"layer": "blocks"}, NoSignalError, r"layer='blocks' is zero at every patch of image 0"),
        ("gradcam", {"start_layer": 1}, OptionError, "start_layer=1 is not defined for gradcam"),
        ("eigencam", {"gradient": "libra"}, OptionError, "changes nothing for eigencam"),
        ("grad_eclip", {"heads": "all"}, OptionError, "heads='all' is none of true, merged"),
        ("grad_eclip", {"similarity": "some"}, OptionError, "similarity='some' is none of full, per_head, none"),
        ("legrad", {"variant": "new"}, OptionError, "variant='new' is none of paper, released"),
        ("bicam", {"share": 0.0}, OptionError, r"share=0\.0 is the part of the blocks"),
        ("caap", {"first": 0.5, "last": 0.5}, OptionError, r"first=0\.5 and last=0\.5 must be parts of the depth"),
        ("caap", {"first": math.nan}, OptionError, "first=nan and last=0.6"),
        ("caap", {"first": 0.9}, OptionError, "first=0.9 and last=0.6"),
        ("caap", {"patches_per_pass": 0}, OptionError, "patches_per_pass=0 must be 1 or more"),
        ("dix", {"gradient": "gim"}, OptionError, "gradient='gim' is not defined for maps that are put in"),
        ("tattr", {"gradient": "gim"}, OptionError, "gradient='gim' is not defined next to the rules of LRP"),
        (
            "var",
            {"base": "rollout"},
            OptionError,
            "base='rollout' must give each class a map of the patches: gae, comp",
        ),
        ("var", {"base": "lrp"}, OptionError, "base='lrp' must give each class a map of the patches"),
        ("var", {"classes": 0}, OptionError, "classes=0 must be 1 or more"),
        ("var", {"objective": "probability"}, OptionError, "var holds logits of several classes against each other"),
        ("dave", {"samples": 0}, OptionError, "samples=0 must be 1 or more"),
        ("dave", {"reach": 64}, OptionError, "reach=64 from 0 to 63"),
        ("mda", {"until": 0.0}, OptionError, r"until=0\.0 above 0"),
        ("mda", {"prior": "mda"}, OptionError, "prior='mda' must give each class"),
        ("finercam", {"variant": "new"}, OptionError, "variant='new' is none of paper, released"),
        ("finercam", {"references": 0}, OptionError, "references=0 must be 1 or more"),
        ("finercam", {"objective": "probability"}, OptionError, "finercam has an objective of its own"),
        ("finercam", {"against": 2, "objective": "ratio"}, OptionError, "finercam has an objective of its own"),
        ("attcat", {"start_layer": 2}, OptionError, r"the model has 3 block\(s\); give 1 or less"),
    ],
)
def test_refusals(method: str, options: dict, error: type[Exception], message: str):
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    with pytest.raises(error, match=message):
        vitrail.explain(module, images, 1, method=method, **options)


class InOneFunction(nn.Module):
    """A ViT whose layers are no modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 16, 16)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for _ in range(2):
            y = x[:, None]
            x = x + nn.functional.scaled_dot_product_attention(y, y, y)[:, 0]
        return self.head(x.mean(1))


def test_a_model_without_blocks_or_norms():
    torch.manual_seed(0)
    model, images = vitrail.wrap(InOneFunction().eval()), torch.randn(1, 3, 64, 64)
    with pytest.raises(UnsupportedOperationError, match=r"calls no layer norm .* name a module with layer="):
        vitrail.explain(model, images, 1, method="gradcam")
    assert vitrail.explain(model, images, 1, method="gradcam", layer="patches").scores.shape == (1, 4, 4)
    for method in ("legrad", "attcat", "fullgrad_plus"):
        with pytest.raises(UnsupportedOperationError, match=r"around attention \d .* no module takes and returns all"):
            vitrail.explain(model, images, 1, method=method)


class Stages(nn.Module):
    """A convolutional network: a grid of 16 × 16, and one of 8 × 8 that the head averages, or of 16 × 16 again."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.stage = nn.Sequential(nn.GELU(), nn.Conv2d(4, 6, 3, stride, 1))
        self.head = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage(self.stem(images)).mean((2, 3)))


def test_without_tokens_the_last_stage_is_taken_and_named():
    torch.manual_seed(0)
    module, images = Stages(2).eval(), torch.randn(2, 3, 64, 64)
    ex = vitrail.explain(module, images, TARGET, method="gradcam")
    features = module.stage(module.stem(images))  # which the head averages
    expected = torch.einsum("c,bchw->bhw", module.head.weight[TARGET], features) / 64
    assert relative(ex.scores, expected.detach()) < 1e-5
    assert ex.provenance.image_notes[0][-1].startswith("Made of the features of 'stage', the last layer that gives")
    named = vitrail.explain(module, images, TARGET, method="gradcam", layer="stage")
    assert torch.equal(named.scores, ex.scores)
    with pytest.raises(NoAttentionError, match='method="gradcam" with layer="stage"'):
        vitrail.explain(Stages(1).eval(), images, TARGET, method="gradcam")  # no stages: nothing tells which layer


def test_a_pyramid_needs_no_name_of_a_layer():
    pyramid = vitrail.load("bestiary/pvt")
    ex = vitrail.explain(pyramid, torch.randn(1, 3, 96, 96), TARGET, method="gradcam")
    named = vitrail.explain(pyramid, torch.randn(1, 3, 96, 96), TARGET, method="gradcam", layer="stages")
    assert ex.scores.shape == named.scores.shape == (1, 6, 6)


class TokensFirst(nn.Module):
    """An encoder that takes tokens × images × width, as PyTorch's own does by default."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        for part in self.encoder.modules():
            if hasattr(part, "batch_first"):
                part.batch_first = False

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(tokens.transpose(0, 1)).transpose(0, 1)


REST = ("tokentm", "fullgrad_plus", "caap", "legrad", "bi_token")


@pytest.mark.parametrize("method", ["gradcam", *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_as_many_images_as_tokens_are_not_taken_for_tokens(method: str):
    module, images = FAMILIES["user_encoder"].build(), FAMILIES["user_encoder"].images(17)
    expected = vitrail.explain(module, images, TARGET, method=method).scores
    module.blocks = TokensFirst(module.blocks)
    for size in (None, 17):
        found = vitrail.explain(module, images, TARGET, method=method, batch_size=size).scores
        assert relative(found, expected) < 1e-5
