"""Models that cannot be explained as they are: one clear error each, which names the part, the cause and the remedy."""

import pytest
import texts
import timm
import torch
import torch.utils.checkpoint
from torch import nn

import vitrail
from vitrail.errors import ForwardError, ModelError, NoAttentionError, TrainingModeError, VitrailError
from vitrail.models import wrap

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=5, depth=2)
    nn.init.normal_(model.head.weight)
    return model.eval()


class Around(nn.Module):
    """A user's module around a ViT, whose forward is given."""

    def __init__(self, forward=None):
        super().__init__()
        self.vit = tiny()
        self.how = forward or (lambda vit, images: vit(images))

    def forward(self, images):
        return self.how(self.vit, images)


def checkpointed(vit, images):
    tokens = vit._pos_embed(vit.patch_embed(images))
    for block in vit.blocks:
        tokens = torch.utils.checkpoint.checkpoint(block, tokens, use_reentrant=False)
    return vit.forward_head(vit.norm(tokens))


def missing(vit, images):
    return {}["pixel_values"]


@torch.inference_mode()
def in_inference(vit, images):
    return vit(images)


def of_two_types() -> nn.Module:
    model = tiny()
    model.blocks[1].mlp.fc1.double()
    return model


def changed(change) -> nn.Module:
    model = tiny()
    change(model)
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return tiny()


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return tiny()


def exported() -> nn.Module:
    return torch.export.export(tiny(), (IMAGES,)).module()


class Quantized(nn.Module):
    """As `quantize_dynamic` leaves a layer, without PyTorch's deprecation of it."""


Quantized.__module__ = "torch.ao.nn.quantized.dynamic.modules.linear"

CASES = {
    "a forward that raises": (lambda: Around(missing), ForwardError, r"its forward \(Around\) raised KeyError: 'pixel"),
    "two types": (
        of_two_types,
        ForwardError,
        r"its part blocks.1.mlp.fc1 \(Linear\) raised RuntimeError.*module.float",
    ),
    "checkpointing by hand": (lambda: Around(checkpointed), ForwardError, "turn gradient checkpointing off"),
    "a forward in inference mode": (
        lambda: Around(in_inference),
        ModelError,
        r"forward runs under torch.inference_mode",
    ),
    "weights of inference mode": (made_in_inference, ModelError, r"cls_token was made under torch.inference_mode\(\)"),
    "meta": (on_meta, ModelError, "cls_token is on the meta device and holds no numbers"),
    "8-bit floats": (lambda: tiny().to(torch.float8_e4m3fn), ModelError, r"model.to\(torch.bfloat16\)"),
    "exported": (exported, ModelError, "the model .*exported program.*give the module it is from"),
    "quantized": (lambda: changed(lambda m: m.add_module("fc", Quantized())), ModelError, "from before torch.ao.quant"),
    "timm's checkpointing": (lambda: changed(lambda m: m.set_grad_checkpointing()), TrainingModeError, "recomputes"),
    "a CNN": (lambda: timm.create_model("test_resnet").eval(), NoAttentionError, "convolutional network"),
}


@pytest.mark.parametrize("case", CASES)
def test_models_that_cannot_be_explained_say_why(case: str):
    build, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        vitrail.explain(build(), IMAGES)


@pytest.mark.parametrize("size", [(1, 5, 64, 64), (1, 3, 60, 60)])
def test_inputs_that_the_model_refuses_say_what_it_takes(size: tuple[int, ...]):
    with pytest.raises(VitrailError, match="takes images of 3 x 64 x 64"):
        vitrail.explain(tiny(), torch.randn(size))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_hugging_faces_checkpointing_is_refused_only_while_it_is_active():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=64, patch_size=16, num_labels=5)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = transformers.ViTForImageClassification(config)
    model.gradient_checkpointing_enable()
    with pytest.raises(TrainingModeError, match=r"recomputes its blocks.*gradient_checkpointing_disable\(\)"):
        vitrail.explain(model.train(), IMAGES)
    assert vitrail.explain(model.eval(), IMAGES).scores.shape == (2, 4, 4)


def test_weights_loaded_in_inference_mode_can_be_explained():
    with torch.inference_mode():
        model = vitrail.load("timm/test_vit", pretrained=False, img_size=64, depth=2)
    assert vitrail.explain(model, IMAGES).scores.shape[0] == 2


def test_a_class_that_another_library_has_patched_is_named(monkeypatch: pytest.MonkeyPatch):
    from timm.layers import Mlp

    def forward(self, x):
        raise RuntimeError("not for you")

    forward.__module__ = "hilrp.vit_lxt"
    monkeypatch.setattr(Mlp, "forward", forward)
    with pytest.raises(
        ForwardError, match=r"not for you; hilrp.vit_lxt has replaced the forward of Mlp in this process"
    ):
        vitrail.explain(tiny(), IMAGES)


@pytest.mark.parametrize("held", [True, False])
def test_another_gradient_put_into_a_class_is_refused_with_its_cause(held: bool, monkeypatch: pytest.MonkeyPatch):
    """As HiLRP and LXT do it for every model of the process: the numbers stay as they are."""
    from timm.layers import LayerNorm

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        deviation = (x.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt()
        return (x - mean) / (deviation.detach() if held else deviation) * self.weight + self.bias

    model = wrap(tiny())
    expected = vitrail.explain(model, IMAGES, 1).scores
    forward.__module__ = "lxt.efficient.patches"
    monkeypatch.setattr(LayerNorm, "forward", forward)
    if held:
        with pytest.raises(
            ModelError,
            match=r"lxt\.efficient\.patches has replaced the forward of LayerNorm .* gradient is not the deriv",
        ):
            vitrail.explain(model, IMAGES, 1)
    else:  # what differentiates as before explains as before
        torch.testing.assert_close(vitrail.explain(model, IMAGES, 1).scores, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_int8_weights_of_torchao_are_explained():
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    for gradient in ("full", None):
        found = vitrail.explain(model, IMAGES, target=1, gradient=gradient).scores.flatten()
        plain = vitrail.explain(tiny(), IMAGES, target=1, gradient=gradient).scores.flatten()
        assert torch.corrcoef(torch.stack([found, plain]))[0, 1] > 0.99


@pytest.mark.filterwarnings("ignore")
def test_layers_that_round_what_goes_in_are_told_from_those_with_rounded_weights():
    """Their logits depend on no attention, for which the cause was missing; the text model is refused likewise."""
    quantization = pytest.importorskip("torchao.quantization")
    reason = r"rounds what goes in, which has no gradient \(its weight is torchao.*Int8Tensor\); quantize the weights"
    model = tiny()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ModelError, match=r"^blocks.0.attn.qkv \(Linear\) cannot be explained: it " + reason):
        vitrail.explain(model, IMAGES)
    family = texts.FAMILIES["bert"]
    module, tokenizer = family.build(), family.tokenizer()
    plain = vitrail.explain_text(module, tokenizer, texts.TEXTS[0], target=0).scores.flatten()
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    found = vitrail.explain_text(module, tokenizer, texts.TEXTS[0], target=0).scores.flatten()
    assert torch.corrcoef(torch.stack([found, plain]))[0, 1] > 0.99
    module = family.build()
    quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ModelError, match=reason):
        vitrail.explain_text(module, tokenizer, texts.TEXTS[0], target=0)


def test_a_model_says_what_it_is_in_one_line():
    line = repr(wrap(tiny(), name="mine", class_names=list("abcde")))
    assert "\n" not in line
    assert line.startswith("VisionModel('mine': VisionTransformer, ")
    assert "5 named classes" in line
    assert len(line) < 200
