"""The architectures of timm and Hugging Face, with small configurations and drawn weights: none passes unnoticed.

What is served gives the product written out in float64, every score at the place whose pixels its token takes, found
by changing the image there. What is refused is told the true reason, and what the error names instead works.
"""

import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import reference
import torch
import torch.nn.functional as F
from families import CLASSES, enliven
from torch import Tensor, nn

import vitrail
from vitrail.errors import ForwardError, LayoutError, ModelError, NoAttentionError, UnsupportedAttentionError
from vitrail.models.layout import layout_of

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
PICTURES = {**SMALL, "image_size": 64, "patch_size": 16}
LABELLED = {**PICTURES, "num_labels": CLASSES}


def images(count: int, channels: int = 3, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def hugging_face(kind: str, **options: Any) -> nn.Module:
    family = re.sub("(For[A-Z]|Vision(Model|Transformer)|Model).*", "", kind)
    named = f"{family}{'Vision' if 'Vision' in kind else ''}Config"
    return getattr(transformers, kind)(getattr(transformers, named)(**options))


class Around(nn.Module):
    """A user's module: brings images to what the model inside takes, and reads its logits."""

    def __init__(self, inner: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.how = inner, forward

    def forward(self, images: Tensor, **options: Any) -> Tensor:
        return self.how(self.inner, images, **options)


class Tower(nn.Module):
    """A head on the mean of a tower's tokens."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.inner(pixel_values=images).last_hidden_state
        hidden = hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden
        return self.head(hidden.reshape(len(images), -1, hidden.shape[-1]).mean(dim=1))


class QwenTower(nn.Module):
    """Patches as the processor cuts them out, four neighbours after each other; all images in one sequence."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as newer
        from transformers.models.qwen2_vl import modeling_qwen2_vl as older

        size = {"depth": 3, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "hidden_size": 32}
        if kind == "2":
            config = older.Qwen2VLVisionConfig(**size, embed_dim=32, **options)
            self.tower: nn.Module = older.Qwen2VisionTransformerPretrainedModel(config)
        else:
            config = newer.Qwen2_5_VLVisionConfig(**size, out_hidden_size=32, intermediate_size=32, **options)
            self.tower = newer.Qwen2_5_VisionTransformerPretrainedModel(config)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        rows, cols = height // 8, width // 8
        twice = images[:, None].expand(count, 2, channels, height, width)
        cut = twice.reshape(count, 2, channels, rows // 2, 2, 8, cols // 2, 2, 8).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        grid = torch.tensor([[1, rows, cols]] * count)
        hidden = self.tower(cut.reshape(count * rows * cols, -1), grid_thw=grid).last_hidden_state
        return self.head(hidden.reshape(count, rows * cols, -1).mean(dim=1))


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().eval()
        enliven(module)
    return module


def spectrogram() -> nn.Module:
    config = transformers.ASTConfig(
        **SMALL, num_labels=CLASSES, max_length=64, num_mel_bins=46, frequency_stride=10, time_stride=10
    )
    return Around(
        transformers.ASTForAudioClassification(config), lambda inner, x: inner(input_values=x[:, 0]).logits
    )  # time downwards, frequency to the right


def pixtral() -> nn.Module:
    config = transformers.PixtralVisionConfig(**SMALL | {"hidden_size": 32}, image_size=64, patch_size=8)
    return Tower(transformers.PixtralVisionModel(config), 32)


def masked_autoencoder() -> nn.Module:
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**PICTURES, mask_ratio=0.0))
    head = nn.Linear(24, CLASSES)
    found = Around(model, lambda inner, x, noise=None: head(inner(x, noise=noise).last_hidden_state[:, 0]))
    found.head = head
    return found


def words_and_image() -> nn.Module:
    config = transformers.ViltConfig(**LABELLED, vocab_size=40, max_position_embeddings=8)
    words = torch.tensor([[3, 4, 5]])
    return Around(
        transformers.ViltForQuestionAnswering(config),
        lambda inner, x: inner(input_ids=words.expand(len(x), -1), pixel_values=x).logits,
    )


class Seeded(nn.Module):
    """The remedy that the error names: the same draw before each image, one image after the other."""

    def __init__(self, inner: nn.Module, apart: bool = True) -> None:
        super().__init__()
        self.inner, self.apart = inner, apart

    def forward(self, images: Tensor) -> Tensor:
        found = []
        for some in images.split(1) if self.apart else [images]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                found.append(self.inner(some))
        return torch.cat(found)


def video(frames: int) -> nn.Module:
    config = transformers.VideoMAEConfig(**LABELLED, num_frames=frames, tubelet_size=2)
    return Around(
        transformers.VideoMAEForVideoClassification(config),
        lambda inner, x: inner(pixel_values=x.unflatten(1, (-1, 3))).logits,
    )


def joint_embedding(frames: int) -> nn.Module:
    size = {"patch_size": 16, "crop_size": 64, "frames_per_clip": frames, "tubelet_size": 2, "num_labels": CLASSES}
    size |= {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "num_pooler_layers": 1}
    size |= {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    return Around(
        transformers.VJEPA2ForVideoClassification(transformers.VJEPA2Config(**size)),
        lambda inner, x: inner(pixel_values_videos=x.unflatten(1, (-1, 3))).logits,
    )


def mean(tokens: int) -> Tensor:
    return torch.full((tokens,), 1 / tokens)


def first(tokens: int) -> Tensor:
    return torch.eye(tokens)[0]


def first_two(tokens: int) -> Tensor:
    return torch.eye(tokens)[:2].mean(dim=0)


def tower(kind: str, row: Callable[[int], Tensor] = mean, **options: Any) -> tuple:
    return lambda: Tower(hugging_face(kind, **PICTURES | options), 24), images(2), (4, 4), row


def classifier(kind: str, row: Callable[[int], Tensor], **options: Any) -> tuple:
    return lambda: hugging_face(kind, **LABELLED | options), images(2), (4, 4), row


# How to build it, images, the grid, and the row that its head reads.
SERVED: dict[str, tuple[Callable[[], nn.Module], Tensor, tuple[int, int], Callable[[int], Tensor]]] = {
    "AST": (spectrogram, images(2, 1, 64, 46), (5, 4), first_two),
    "Qwen2-VL, packed": (lambda: QwenTower("2"), images(2, height=32), (4, 8), mean),
    "Qwen2.5-VL, one window, packed": (lambda: QwenTower("2.5"), images(2, height=32), (4, 8), mean),
    "Qwen2.5-VL, permuted": (
        lambda: QwenTower("2.5", window_size=32, fullatt_block_indexes=[0, 1, 2]), images(1), (8, 8), mean,
    ),
    "Pixtral, packed": (pixtral, images(3, height=32), (4, 8), mean),
    "ViLT": (lambda: Seeded(words_and_image()), images(2), (4, 4), first),
    "ViTMAE": (lambda: Seeded(masked_autoencoder()), images(2), (4, 4), first),
    "VideoMAE, one tubelet": (lambda: video(2), images(2, 6), (4, 4), mean),
    "V-JEPA 2, one tubelet": (lambda: joint_embedding(2), images(2, 6), (4, 4), first),
    "IJepa": classifier("IJepaForImageClassification", mean),
    "ViTMSN": classifier("ViTMSNForImageClassification", first),
    "Data2Vec": (lambda: transformers.Data2VecVisionForImageClassification(
        transformers.Data2VecVisionConfig(**LABELLED)), images(2), (4, 4),
        lambda n: torch.cat([torch.zeros(1), mean(n - 1)])),
    "Swin, one window": (
        lambda: hugging_face("SwinForImageClassification", image_size=64, patch_size=16, embed_dim=8, depths=[2],
            num_heads=[2], window_size=4, num_labels=CLASSES), images(2), (4, 4), mean),
    "InternVL": tower("InternVLVisionModel"),
    "BLIP": tower("BlipVisionModel"),
    "Idefics 3": tower("Idefics3VisionTransformer"),
    "AIMv2": tower("Aimv2VisionModel"),
    "DINOv3": tower("DINOv3ViTModel"),
    "SAM": (
        lambda: Around(transformers.SamModel(transformers.SamConfig(vision_config={
            **SMALL, "image_size": 64, "patch_size": 16, "output_channels": 16, "window_size": 0,
            "global_attn_indexes": [0, 1, 2]})).vision_encoder, lambda inner, x: inner(x)[0].mean(dim=(2, 3))),
        images(2), (4, 4), mean,
    ),
}  # fmt: skip
QUICK = ["AST", "SAM", "Qwen2-VL, packed", "ViLT", "VideoMAE, one tubelet"]


def marked(names: Any, quick: list[str]) -> list:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", marked(SERVED, QUICK))
def test_what_is_served_is_the_product_written_out(name: str):
    build, pictures, grid, row = SERVED[name]
    module, pictures = drawn(build).double(), pictures.double()
    model = vitrail.wrap(module)
    found = vitrail.explain(model, pictures, 2, gradient="full").scores
    layout = layout_of(model, pictures)
    assert (layout.rows, layout.cols) == grid
    for number, one in enumerate(pictures[:, None]):
        captured = reference.capture(module, one)
        gradients = captured.gradients(captured.logits[0, 2])
        used = [number for number, gradient in enumerate(gradients) if bool(gradient.any())]  # some towers pool besides
        maps, gradients = [captured.maps[i] for i in used], [gradients[i] for i in used]
        expected = reference.complete(maps, gradients, 0, row(maps[-1].shape[-2]).double())[0]
        expected = expected[tokens_of(module, one, grid)]
        # Some norms compute in float32 whatever they are given.
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found[number].flatten(), expected, rtol=1e-6, atol=1e-6 * scale, msg=name)


def tokens_of(module: nn.Module, image: Tensor, grid: tuple[int, int]) -> list[int]:
    """The token of each cell of the grid: the one whose key moves most when the pixels there change."""

    def keys(image: Tensor) -> Tensor:
        seen: list[Tensor] = []
        plain, softmax = F.scaled_dot_product_attention, F.softmax

        def attention(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Tensor:
            seen.append(key)
            return plain(query, key, *args, **options)

        def written_out(scores: Tensor, *args: Any, **options: Any) -> Tensor:
            seen.append(scores)
            return softmax(scores, *args, **options)

        fused = mock.patch.object(F, "scaled_dot_product_attention", attention)
        with torch.no_grad(), fused, mock.patch.object(F, "softmax", written_out):
            module(image)
        return seen[0]

    before, found = keys(image), []
    # The patches of AST overlap by 6 pixels, and what lies behind them is one patch's own.
    step, inside = (10, 6) if image.shape[1] == 1 else (image.shape[-1] // grid[1], 3)
    for row in range(grid[0]):
        for col in range(grid[1]):
            changed = image.clone()
            top, left = row * step + inside, col * step + inside
            changed[..., top : top + 3, left : left + 3] += 3
            moved = (keys(changed) - before).abs()
            found.append(int(moved.flatten(0, -3).sum(dim=(0, 2)).argmax()))
    return found


@pytest.mark.parametrize(
    "name",
    marked(["ViTMAE", "ViLT"], ["ViTMAE"]),
)
def test_tokens_that_are_shuffled_anew_are_refused_also_image_by_image(name: str):
    module = drawn({"ViTMAE": masked_autoencoder, "ViLT": words_and_image}[name])
    with pytest.raises(UnsupportedAttentionError, match="does not do the same twice.*ViTMAE, ViLT"):
        vitrail.explain(module, images(1))
    # The same draw for every batch is another for each of its images.
    with pytest.raises(UnsupportedAttentionError, match=r"every image of a batch.*seeds the draw before each image"):
        vitrail.explain(Seeded(module, apart=False), images(1))
    expected = [vitrail.explain(Seeded(module), images(2)[number : number + 1], 2).scores[0] for number in range(2)]
    torch.testing.assert_close(vitrail.explain(Seeded(module), images(2), 2).scores, torch.stack(expected))
    if name == "ViTMAE":
        noise = torch.arange(16)[None]
        fixed = vitrail.explain(vitrail.wrap(module, forward_options={"noise": noise}), images(2), 2).scores
        torch.testing.assert_close(fixed, torch.stack(expected))


def windowed(**options: Any) -> nn.Module:
    return Tower(hugging_face("VitDetModel", **PICTURES | {"window_size": 2} | options), 24)


SIZES = {"depths": [1, 1, 1, 1], "num_labels": CLASSES}
HEADS = {"num_attention_heads": [1, 1, 2, 2], "hidden_sizes": [8, 16, 16, 24], **SIZES}
IMAGE_TEXT = {"vision_config": PICTURES, "text_config": {**SMALL, "vocab_size": 40, "eos_token_id": 2}}


def whole_clip() -> nn.Module:
    words = torch.tensor([[3, 4, 2], [5, 6, 2]])
    return Around(
        hugging_face("CLIPModel", **IMAGE_TEXT),
        lambda inner, x: inner(pixel_values=x, input_ids=words).logits_per_image,
    )


# How to build it, its images, the error, and the reason that it gives.
REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, type[ModelError], str]] = {
    "Qwen2.5-VL": (
        lambda: QwenTower("2.5", window_size=32, fullatt_block_indexes=[1]), images(1), UnsupportedAttentionError,
        r"each of 4 attentions sees a window of 16 tokens \(Qwen2.5-VL\)",
    ),
    "ViTDet, windows": (
        lambda: windowed(window_block_indices=[0, 1, 2]), images(1), UnsupportedAttentionError,
        "heads of attention 0 of 3 see different parts of the image.*attention within windows",
    ),
    "ViTDet, some windows": (
        lambda: windowed(window_block_indices=[1]), images(1), UnsupportedAttentionError,
        "attention 1 of 3 .*attention within windows",
    ),
    "Hiera": (
        lambda: hugging_face("HieraForImageClassification", image_size=[64, 64], embed_dim=16, depths=[1, 1, 2, 1],
            num_heads=[1, 2, 4, 8], mask_unit_size=[4, 4], num_labels=CLASSES),
        images(1), UnsupportedAttentionError, "5 dimensions: attention within windows",
    ),
    "Swin": (
        lambda: hugging_face("SwinForImageClassification", image_size=64, patch_size=4, embed_dim=8, depths=[1, 1],
            num_heads=[1, 2], window_size=4, num_labels=CLASSES),
        images(1), UnsupportedAttentionError, "attention within windows",
    ),
    "VideoMAE": (
        lambda: video(4), images(1, 12), LayoutError, r"lie over 16 different places.*grid=\(frames × rows, columns\)",
    ),
    "V-JEPA 2": (lambda: joint_embedding(4), images(1, 12), LayoutError, "lie over 16 different places"),
    "MobileViT 2": (
        lambda: hugging_face("MobileViTV2ForImageClassification", image_size=64, width_multiplier=0.5,
            n_attn_blocks=[1, 1, 1], num_labels=CLASSES),
        images(1), UnsupportedAttentionError, "already the first attention reads the tokens by fewer queries",
    ),
    "Perceiver": (
        lambda: hugging_face("PerceiverForImageClassificationLearned", num_latents=8, d_latents=32, image_size=64,
            num_self_attends_per_block=2, num_self_attention_heads=2, num_cross_attention_heads=2, num_labels=CLASSES),
        images(1), UnsupportedAttentionError, "already the first attention reads the tokens by fewer queries",
    ),
    "PVT 2, linear": (
        lambda: hugging_face("PvtV2ForImageClassification", image_size=64, linear_attention=True, **HEADS),
        images(1), UnsupportedAttentionError, "keys are fewer than queries",
    ),
    "SegFormer": (
        lambda: hugging_face("SegformerForImageClassification", **HEADS),
        images(1), UnsupportedAttentionError, "keys are fewer than queries",
    ),
    "LeViT": (
        lambda: hugging_face("LevitForImageClassification", image_size=64, hidden_sizes=[16, 24, 32],
            num_attention_heads=[1, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8], num_labels=CLASSES),
        images(1), UnsupportedAttentionError, "pools the tokens between stages",
    ),
    "SwiftFormer": (
        lambda: hugging_face("SwiftFormerForImageClassification", image_size=64, embed_dims=[8, 16, 16, 24], **SIZES),
        images(1), NoAttentionError, "of another form",
    ),
    "RegNet": (
        lambda: hugging_face("RegNetForImageClassification", embedding_size=8, hidden_sizes=[8, 8, 16, 16],
            groups_width=8, **SIZES),
        images(1), NoAttentionError, "it looks like a convolutional network",
    ),
    "PoolFormer": (
        lambda: hugging_face("PoolFormerForImageClassification", hidden_sizes=[8, 8, 16, 16], **SIZES),
        images(1), NoAttentionError, "it looks like a convolutional network",
    ),
}  # fmt: skip


def follow(error: ModelError, module: nn.Module, pictures: Tensor) -> None:
    """Do what the error says, literally."""
    said = re.search(
        r'method="gradcam" with layer="([^"]+)", the last layer that gives a grid \((\d+)×(\d+)\)', str(error)
    )
    if said is None:
        assert "no layer here gives a grid" in str(error)
        return
    found = vitrail.explain(module, pictures, 2, method="gradcam", layer=said[1])
    assert found.scores.shape[1:] == (int(said[2]), int(said[3]))


@pytest.mark.parametrize("name", marked(REFUSED, ["Qwen2.5-VL", "ViTDet, windows"]))
def test_what_is_refused_is_told_the_true_reason_and_a_way_that_is_open(name: str):
    build, pictures, kind, reason = REFUSED[name]
    module = drawn(build)
    with pytest.raises(kind, match=reason) as raised:
        vitrail.explain(module, pictures, 2, method="gmar_l1")  # which follows no tokens
    follow(raised.value, module, pictures)


def test_the_frames_of_a_video_one_below_the_other():
    module, pictures = drawn(lambda: video(4)), images(1, 12)
    whole = vitrail.explain(vitrail.wrap(module, grid=(8, 4), prefix=0), pictures, 2, gradient="full")
    assert whole.metadata["image_notes"] == [[]]
    second = vitrail.explain(vitrail.wrap(module, grid=(4, 4), prefix=16), pictures, 2, gradient="full")
    torch.testing.assert_close(second.scores, whole.scores[:, 4:])
    (notes,) = second.metadata["image_notes"]
    assert any(
        note.startswith("32 tokens carry the image, and the grid of 4×4 that was given shows 16") for note in notes
    )


INPUTS = {
    "AST": (
        lambda: transformers.ASTForAudioClassification(transformers.ASTConfig(
            **SMALL, num_labels=CLASSES, max_length=64, num_mel_bins=46)),
        images(1, 1, 64, 46), r"it takes spectrograms:.*model\(input_values=images\[:, 0\]\)",
    ),
    "ViLT": (
        lambda: transformers.ViltForQuestionAnswering(transformers.ViltConfig(**LABELLED, vocab_size=40)),
        images(1), r"it takes texts first:.*model\(pixel_values=images, input_ids=…\)",
    ),
    "VideoMAE": (
        lambda: video(4).inner, images(1, 12),
        r"it takes videos:.*model\(pixel_values=images.unflatten\(1, \(-1, 3\)\)\)",
    ),
    "V-JEPA 2": (lambda: joint_embedding(4).inner, images(1, 12), r"it takes videos:.*model\(pixel_values_videos="),
    "SigLIP 2": (
        lambda: hugging_face("Siglip2ForImageClassification", vision_config={
            **SMALL, "patch_size": 16, "num_patches": 16}, text_config=IMAGE_TEXT["text_config"], num_labels=CLASSES),
        images(1), "it takes patches that its processor cuts out, and not images",
    ),
    "ImageGPT": (
        lambda: transformers.ImageGPTForImageClassification(transformers.ImageGPTConfig(
            n_embd=24, n_layer=2, n_head=2, n_positions=64, vocab_size=17, num_labels=CLASSES)),
        images(1), "whole numbers that stand for words or colours",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", marked(INPUTS, ["VideoMAE"]))
def test_a_model_that_takes_no_images_says_how_they_are_brought_to_it(name: str):
    build, pictures, remedy = INPUTS[name]
    with pytest.raises(ForwardError, match=remedy):
        vitrail.explain(build().eval(), pictures)


# One model of each family of timm that has attention, and what is said of it. None may give a map in silence that is
# not that of the product written out.
TIMM_SERVED = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_small_r26_s32_224",
]
TIMM_REFUSED = {
    "cait_xxs24_224": r"1 token\(s\) join after the blocks",
    "volo_d1_224": "5 dimensions: attention within windows",
    "xcit_nano_12_p16_224": "attention among channels does",
    "levit_128s": "queries are fewer than keys",
    "pvt_v2_b0": "keys are fewer than queries",
    "twins_pcpvt_small": "keys are fewer than queries",
    "maxvit_rmlp_pico_rw_256": "attention within windows",
    "tiny_vit_5m_224": "attention within windows",
    "mobilevit_xxs": "attention within windows",
    "visformer_tiny": "the number of tokens changes between attentions",
    "pit_ti_224": "the number of tokens changes between attentions",
    "lowformer_b0": "by another way than attention",
    "fastvit_sa12": "by another way than attention.*FastViT",
    "cpubone_nano": "by another way than attention.*CPUBone",
    "crossvit_tiny_240": "branches of 401 and 197 tokens stand side by side",
    "tnt_s_legacy_patch16_224": "196 window.*attention within windows",
    "convit_tiny": "blocks stand side by side",
    "vit_small_patch16_18x2_224": "blocks stand side by side",
    "mobilevitv2_050": "already the first attention reads the tokens by fewer queries",
    "coat_tiny": "attention that is factorised",
    "efficientvit_b0": "the number of tokens changes between attentions",
    "bat_resnext26ts": "products of activations without a softmax: linear attention",
    "regnetz_d8_evos": "it looks like a convolutional network",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_SERVED)
def test_a_served_family_gives_the_product_written_out(name):
    import timm

    module = timm.create_model(name, num_classes=CLASSES).eval()
    enliven(module)
    picture = torch.randn(1, *module.default_cfg["input_size"])
    model = vitrail.wrap(module.double())
    found = vitrail.explain(model, picture.double(), 2, gradient="full").scores[0]
    layout = layout_of(model, picture.double())
    captured = reference.capture(module, picture)
    gradients = captured.gradients(captured.logits[0, 2])
    row = layout.readout.double()
    expected = reference.complete(captured.maps, gradients, layout.prefix, row)
    torch.testing.assert_close(found.flatten(), expected.flatten(), rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_REFUSED)
def test_a_refused_family_is_told_the_true_reason(name):
    import timm

    module = timm.create_model(name, num_classes=CLASSES).eval()
    enliven(module)
    picture = torch.randn(1, *module.default_cfg["input_size"])
    with pytest.raises((LayoutError, NoAttentionError, UnsupportedAttentionError), match=TIMM_REFUSED[name]) as raised:
        vitrail.explain(module, picture, 2, method="gmar_l1")
    follow(raised.value, module, picture)


@pytest.mark.slow
def test_a_layer_scale_at_its_beginning_hides_no_convolutions():
    import timm

    module = timm.create_model("fastvit_sa12", num_classes=CLASSES).eval()
    with pytest.raises(UnsupportedAttentionError, match="less than 1% of the gradient.*convolutions in 5 sizes"):
        vitrail.explain(module, torch.randn(1, *module.default_cfg["input_size"]), 2, method="gmar_l1")
