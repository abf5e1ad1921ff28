"""Models whose tokens do not stay in place, tiny, and how relevance walks through each: see `dense_relevance`."""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from dense_relevance import Family, Grid, Walk, merged_2x2, numbers, pooled, strided_windows, windows
from families import Block, FusedAttention
from torch import Tensor, nn

CLASSES = 7
FAMILIES: dict[str, Family] = {}


def family(name: str, walk: Callable[[Walk, Tensor], Tensor], grid: Grid, **facts: Any):
    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        FAMILIES[name] = Family(make, walk, grid, seed=sum(map(ord, name)), **facts)
        return make

    return register


# --- windows ----------------------------------------------------------------------------------------------------------


def swin_walk(grids: list[Grid], window: int) -> Callable[[Walk, Tensor], Tensor]:
    """Two blocks a stage, the second's windows shifted along the sides that are longer than a window."""

    def walk(to: Walk, t: Tensor) -> Tensor:
        for stage, grid in enumerate(grids):
            t = t if stage == 0 else merged_2x2(grids[stage - 1]) @ t
            t = to.block(t, windows(grid, window))
            t = to.block(t, windows(grid, window, tuple(window // 2 if side > window else 0 for side in grid)))
        return t.mean(1)

    return walk


SWIN = {"img_size": 32, "patch_size": 4, "num_classes": CLASSES, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4)}


@family("swin", swin_walk([(8, 8), (4, 4)], 4), (8, 8))
def swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(**SWIN, window_size=4)


@family("swin_padded", swin_walk([(10, 7), (5, 4), (3, 2)], 2), (10, 7), size=(40, 28), slow=True)
def swin_padded() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    options = {"img_size": (40, 28), "depths": (2, 2, 2), "num_heads": (2, 2, 2)}
    return SwinTransformer(**{**SWIN, **options}, window_size=2)


@family("swin_v2", swin_walk([(8, 8), (4, 4)], 2), (8, 8), slow=True)
def swin_v2() -> nn.Module:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return SwinTransformerV2(**SWIN, window_size=2)


@family("torchvision_swin", swin_walk([(8, 8), (4, 4)], 4), (8, 8), slow=True)
def torchvision_swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 8, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)


@family("hf_swin", swin_walk([(8, 8), (4, 4)], 4), (8, 8), slow=True)
def hf_swin() -> nn.Module:
    import transformers

    config = transformers.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=CLASSES,
    )
    return transformers.SwinForImageClassification(config)


def maxvit_walk(to: Walk, t: Tensor) -> Tensor:
    """Windows, then a grid of strided windows. Between the stages the mean of a 2×2 shortcut and a 3×3 convolution."""
    t = to.block(t, windows((8, 8), 4))
    t = to.block(t, strided_windows((8, 8), 4))
    t = (pooled((8, 8), 2, 2) + pooled((8, 8), 3, 2, 1)) / 2 @ t
    t = to.block(t, windows((4, 4), 4))
    t = to.block(t, strided_windows((4, 4), 4))
    return t.mean(1)


@family("maxvit", maxvit_walk, (8, 8), slow=True)
def maxvit() -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    transformer = MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4))
    config = MaxxVitCfg((8, 16), (1, 1), ("M", "M"), stem_width=8, transformer_cfg=transformer)
    return MaxxVit(config, img_size=32, num_classes=CLASSES)


def coatnet_walk(to: Walk, t: Tensor) -> Tensor:
    """Convolutions down to the grid; a transformer stage first pools 2×2, for its attention and for the shortcut."""
    everything = numbers((4, 4)).view(1, -1)
    t = to.block(t, everything)
    t = to.block(t, everything)
    t = pooled((4, 4), 2, 2) @ t
    return to.block(t, numbers((2, 2)).view(1, -1)).mean(1)


@family("coatnet", coatnet_walk, (4, 4), slow=True)
def coatnet() -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    transformer = MaxxVitTransformerCfg(dim_head=8, rel_pos_type="bias")
    config = MaxxVitCfg((8, 8, 16), (1, 2, 1), ("C", "T", "T"), stem_width=8, transformer_cfg=transformer)
    return MaxxVit(config, img_size=32, num_classes=CLASSES)


def nest_walk(to: Walk, t: Tensor) -> Tensor:
    """Blocks of 4×4; between the levels a maximum over 3×3 with stride 2."""
    t = to.block(t, windows((8, 8), 4))
    t = to.block(t, windows((8, 8), 4))
    t = pooled((8, 8), 3, 2, 1) @ t
    return to.block(t, windows((4, 4), 4)).mean(1)


@family("nest", nest_walk, (8, 8))
def nest() -> nn.Module:
    from timm.models.nest import Nest

    return Nest(32, 3, 4, 2, (8, 16), (2, 4), (2, 1), CLASSES, drop_path_rate=0.0)


def gcvit_walk(to: Walk, t: Tensor) -> Tensor:
    """A block with its own queries, one with the image's global queries; the residual is the window's own token."""
    t = to.block(t, windows((8, 8), 4))
    t = to.block(t, windows((8, 8), 4))
    t = pooled((8, 8), 3, 2, 1) @ t
    t = to.block(t, windows((4, 4), 4))
    t = to.block(t, windows((4, 4), 4))
    return t.mean(1)


@family("gcvit", gcvit_walk, (8, 8), slow=True)
def gcvit() -> nn.Module:
    from timm.models.gcvit import GlobalContextVit

    return GlobalContextVit(
        3, CLASSES, "avg", 32, window_size=(4, 4), embed_dim=8, depths=(2, 2), num_heads=(2, 2), layer_scale=0.5
    )


def davit_walk(to: Walk, t: Tensor) -> Tensor:
    """A window block, then attention among channels, which moves nothing between tokens."""
    t = to.block(t, windows((8, 8), 4))
    to.calls += 1
    t = pooled((8, 8), 2, 2) @ t
    t = to.block(t, windows((4, 4), 4))
    to.calls += 1
    return t.mean(1)


@family("davit", davit_walk, (8, 8), last=-2, slow=True)
def davit() -> nn.Module:
    from timm.models.davit import DaVit

    return DaVit(3, (1, 1), (8, 16), (2, 2), window_size=4, mlp_ratio=2, down_kernel_size=2, num_classes=CLASSES)


# --- pooled keys and queries ------------------------------------------------------------------------------------------


def pvt_walk(to: Walk, t: Tensor) -> Tensor:
    """Keys reduced 2×2 in the first stage, none in the second; a 3×3 convolution of stride 2 between."""
    every = numbers((8, 8)).view(1, -1)
    for _ in range(2):
        t = to.attend(pooled((8, 8), 2, 2) @ t, every, numbers((4, 4)).view(1, -1), t)
    t = pooled((8, 8), 3, 2, 1) @ t
    return to.block(t, numbers((4, 4)).view(1, -1)).mean(1)


PVT = {"embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (2, 1), "depths": (2, 1)}


@family("pvt_v2", pvt_walk, (8, 8))
def pvt_v2() -> nn.Module:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    return PyramidVisionTransformerV2(**PVT, num_classes=CLASSES)


@family("hf_segformer", pvt_walk, (8, 8), slow=True)
def hf_segformer() -> nn.Module:
    import transformers

    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[2, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        num_labels=CLASSES,
    )
    return transformers.SegformerForImageClassification(config)


def twins_walk(to: Walk, t: Tensor) -> Tensor:
    """Windows and sub-sampled keys in turn; a 2×2 patch embedding between the stages."""
    t = to.block(t, windows((8, 8), 4))
    t = to.attend(pooled((8, 8), 4, 4) @ t, numbers((8, 8)).view(1, -1), numbers((2, 2)).view(1, -1), t)
    t = pooled((8, 8), 2, 2) @ t
    t = to.block(t, windows((4, 4), 2))
    t = to.attend(pooled((4, 4), 2, 2) @ t, numbers((4, 4)).view(1, -1), numbers((2, 2)).view(1, -1), t)
    return t.mean(1)


@family("twins", twins_walk, (8, 8), head_axis=2)
def twins() -> nn.Module:
    from timm.models.twins import Twins

    return Twins(32, 4, 3, CLASSES, "avg", (8, 16), (2, 4), (2, 2), (2, 2), (4, 2), (4, 2))


def hiera_walk(to: Walk, t: Tensor) -> Tensor:
    """Mask units of 4×4, then of 2×2 pooled ones, then global; a pooling block's keys are the tokens before it."""
    units = windows((8, 8), 4)
    inside = unrolled(units)
    t = to.block(t, inside)
    # The tokens of a mask unit after pooling, in the order in which they are computed, and their keys before it.
    merged = pooled((8, 8), 2, 2) @ t
    coarse = windows((4, 4), 2)
    t = to.attend(t, coarse, inside, merged)
    t = to.block(t, coarse)
    merged = pooled((4, 4), 2, 2) @ t
    t = to.attend(t, numbers((2, 2)).view(4, 1), coarse, merged)
    return to.block(t, numbers((2, 2)).view(1, -1)).mean(1)


def unrolled(units: Tensor) -> Tensor:
    """4×4 windows in the order of Hiera: for every place within 2×2 cells, the four cells."""
    cells = units.view(-1, 2, 2, 2, 2)  # windows, cell row, row in it, cell column, column in it
    return cells.permute(0, 2, 4, 1, 3).reshape(len(units), 16)


@family("hiera", hiera_walk, (8, 8), slow=True)
def hiera() -> nn.Module:
    from timm.models.hiera import Hiera

    return Hiera(
        img_size=(32, 32),
        embed_dim=8,
        num_heads=2,
        num_classes=CLASSES,
        stages=(1, 2, 2),
        q_pool=2,
        mask_unit_size=(4, 4),
        mask_unit_attn=(True, True, False),
        init_values=0.5,
    )


def mvit_walk(before: int) -> Callable[[Walk, Tensor], Tensor]:
    """3×3 pooling of queries and keys; `before` class tokens pass it."""

    def every(count: int) -> Tensor:
        return torch.arange(count + before).view(1, -1)

    def walk(to: Walk, t: Tensor) -> Tensor:
        t = torch.cat([t.new_zeros(len(t), before, t.shape[-1]), t], dim=1)
        t = to.attend(pooled((8, 8), 3, 4, 1, before) @ t, every(64), every(4), t)
        keys = pooled((8, 8), 3, 2, 1, before) @ t
        t = to.attend(keys, every(16), every(16), pooled((8, 8), 3, 2, 1, before) @ t)
        t = to.attend(pooled((4, 4), 3, 2, 1, before) @ t, every(16), every(4), t)
        return t[:, 0] if before else t.mean(1)

    return walk


def mvit_v2(**options: Any) -> nn.Module:
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    config = MultiScaleVitCfg(
        depths=(1, 2),
        embed_dim=(8, 16),
        num_heads=(1, 2),
        stride_q=((1, 1), (2, 2)),
        **{"stride_kv_adaptive": (4, 4), **options},
    )
    return MultiScaleVit(config, img_size=(32, 32), num_classes=CLASSES)


family("mvit_v2", mvit_walk(0), (8, 8), slow=True)(mvit_v2)
family("mvit_v2_class", mvit_walk(1), (8, 8), slow=True)(lambda: mvit_v2(use_cls_token=True, use_abs_pos=True))


def levit_walk(blocks: int) -> Callable[[Walk, Tensor], Tensor]:
    """An attention without residual asks every second token; keys are all."""

    def walk(to: Walk, t: Tensor) -> Tensor:
        t = to.block(t, numbers((4, 4)).view(1, -1))
        t = to.attend(t, numbers((2, 2)).view(1, -1), numbers((4, 4)).view(1, -1), None, 4)
        for _ in range(blocks):
            t = to.block(t, numbers((2, 2)).view(1, -1))
        return t.mean(1)

    return walk


def levit(blocks: int, use_conv: bool) -> nn.Module:
    from timm.models.levit import Levit

    return Levit(32, 3, CLASSES, (16, 16), 8, (1, blocks), (2, 2), stem_type="s8", use_conv=use_conv)


family("levit", levit_walk(1), (4, 4))(lambda: levit(1, use_conv=False))
family("levit_conv", levit_walk(2), (4, 4), slow=True)(lambda: levit(2, use_conv=True))


# --- class attention and stages with a class token --------------------------------------------------------------------


def cait_walk(to: Walk, t: Tensor) -> Tensor:
    """The class token comes in at the end, and alone asks."""
    t = to.block(t, numbers((4, 4)).view(1, -1))
    t = to.block(t, numbers((4, 4)).view(1, -1))
    token = t.new_zeros(len(t), 1, t.shape[-1])
    for _ in range(2):
        token = to.attend(torch.cat([token, t], 1), torch.zeros(1, 1).long(), torch.arange(17).view(1, -1), token)
    return token[:, 0]


@family("cait", cait_walk, (4, 4), slow=True)
def cait() -> nn.Module:
    from timm.models.cait import Cait

    return Cait(32, 8, 3, CLASSES, embed_dim=16, depth=2, num_heads=2)


def pit_walk(to: Walk, t: Tensor) -> Tensor:
    """A class token besides the grid, which is convolved 3×3 with stride 2 between the stages."""
    t = torch.cat([t.new_zeros(len(t), 1, t.shape[-1]), t], dim=1)
    t = to.block(t, torch.arange(17).view(1, -1))
    t = pooled((4, 4), 3, 2, 1, 1) @ t
    return to.block(t, torch.arange(5).view(1, -1))[:, 0]


@family("pit", pit_walk, (4, 4), slow=True)
def pit() -> nn.Module:
    from timm.models.pit import PoolingVisionTransformer

    return PoolingVisionTransformer(
        32, 8, 8, base_dims=(8, 8), depth=(1, 1), heads=(2, 4), mlp_ratio=2, num_classes=CLASSES
    )


def tnt_walk(to: Walk, t: Tensor) -> Tensor:
    """Inner tokens within each patch; an outer token is the mean of all that was made of them, plus what was written.

    Rollout's residual and all that was written count alike.
    """
    inside, outside = windows((8, 8), 4), torch.arange(5).view(1, -1)
    merged = torch.zeros(4, 64, dtype=torch.float64).scatter_(1, inside, 1 / 16)
    made, written, token = [merged @ t], [], t.new_zeros(len(t), 1, 64)
    for _ in range(3):
        t = to.block(t, inside)
        made.append(merged @ t)
        outer = torch.stack(made).mean(0) + sum(written)
        outer = torch.cat([token, outer / (1 + len(written)) if to.halve else outer], 1)
        update = to.attend(outer, outside, outside, torch.zeros_like(outer)) * (1 + to.halve)
        written.append(update[:, 1:])
        token = (token + update[:, :1]) / (1 + to.halve)
    return token[:, 0]


@family("tnt", tnt_walk, (8, 8), slow=True)
def tnt() -> nn.Module:
    from timm.models.tnt import TNT

    return TNT(32, 16, 3, CLASSES, "token", 16, 8, 3, 2, 2, mlp_ratio=2)


def gated_walk(to: Walk, t: Tensor) -> Tensor:
    """A softmax of contents and one of positions read the same values; then a class token, which the head reads."""
    every = numbers((4, 4)).view(1, -1)
    for _ in range(2):
        both = [to.attend(t, every, every, torch.zeros_like(t)) * (1 + to.halve) for _ in range(2)]
        update = sum(both) / (1 + to.halve)
        t = (t + update) / (1 + to.halve)
    t = torch.cat([t.new_zeros(len(t), 1, t.shape[-1]), t], dim=1)
    return to.block(t, torch.arange(17).view(1, -1))[:, 0]


@family("convit", gated_walk, (4, 4), slow=True)
def convit() -> nn.Module:
    from timm.models.convit import ConVit

    return ConVit(32, 8, 3, CLASSES, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2, local_up_to_layer=2)


def volo_walk(to: Walk, t: Tensor) -> Tensor:
    """Windows of 3×3 around every second token, whose outputs are added up where they overlap; class attention.

    The head adds the largest of the patches' own logits to the class token's.
    """
    around = torch.full((16, 9), -1)
    for window in range(16):
        for tap in range(9):
            y, x = window // 4 * 2 - 1 + tap // 3, window % 4 * 2 - 1 + tap % 3
            if 0 <= y < 8 and 0 <= x < 8:
                around[window, tap] = y * 8 + x
    times = torch.bincount(around[around >= 0], minlength=64)[:, None] if to.halve else 1
    update = to.attend(t, around, around, torch.zeros_like(t)) * (1 + to.halve) / times
    t = pooled((8, 8), 2, 2) @ ((t + update) / (1 + to.halve))
    t = to.block(t, numbers((4, 4)).view(1, -1))
    token = t.new_zeros(len(t), 1, t.shape[-1])
    for _ in range(2):
        token = to.attend(torch.cat([token, t], 1), torch.zeros(1, 1).long(), torch.arange(17).view(1, -1), token)
    return token[:, 0] if to.only else (token[:, 0] + t.mean(1)) / (1 + to.halve)


@family("volo", volo_walk, (8, 8), size=(64, 64))
def volo() -> nn.Module:
    from timm.models.volo import VOLO

    return VOLO(
        [1, 1],
        64,
        num_classes=CLASSES,
        stem_hidden_dim=8,
        embed_dims=[16, 16],
        num_heads=[2, 2],
        downsamples=(True, False),
        outlook_attention=(True, False),
    )


def lowformer_walk(to: Walk, t: Tensor) -> Tensor:
    """Attention among tokens reduced 2×2, brought back by a transposed convolution of 4×4; then a plain block."""
    low, back = pooled((8, 8), 3, 2, 1), torch.zeros(64, 16, dtype=torch.float64)
    for y in range(8):
        for x in range(8):
            for row in range(4):
                for col in range(4):
                    if 0 <= y + 1 - 2 * row < 4 and 0 <= x + 1 - 2 * col < 4:
                        back[y * 8 + x, row * 4 + col] = 1
    back = back / back.sum(1, keepdim=True)
    coarse, every = numbers((4, 4)).view(1, -1), numbers((8, 8)).view(1, -1)
    update = back @ to.attend(low @ t, coarse, coarse, torch.zeros(2, 16, 64).double()) * (1 + to.halve)
    return to.block((t + update) / (1 + to.halve), every).mean(1)


@family("lowformer", lowformer_walk, (8, 8))
def lowformer() -> nn.Module:
    from timm.models.lowformer import ConvAttention

    class LowFormer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 60, 4, 4)
            self.attention = ConvAttention(60, att_stride=2, att_kernel=3)
            self.block = Block(60, FusedAttention(60, 2))
            self.head = nn.Linear(60, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            x = self.patches(images)
            x = x + self.attention(x)
            return self.head(self.block(x.flatten(2).transpose(1, 2)).mean(1))

    return LowFormer()


def pooling_walk(to: Walk, t: Tensor) -> Tensor:
    """One attention of the grid and of its mean, which the head reads."""
    t = torch.cat([t.mean(1, keepdim=True), t], dim=1)
    every = torch.arange(17).view(1, -1)
    return to.attend(t, every, every, None, 17)[:, 0]


@family("clip_resnet", pooling_walk, (4, 4), slow=True)
def clip_resnet() -> nn.Module:
    from timm.layers import AttentionPool2d

    stem = [nn.Conv2d(3, 16, 7, 4, 3), nn.GELU(), nn.Conv2d(16, 16, 5, 2, 2)]
    return nn.Sequential(*stem, AttentionPool2d(16, 4, CLASSES, num_heads=2))


def xcit_walk(to: Walk, t: Tensor) -> Tensor:
    """Attention among channels, then class attention: patches get what they were twice, so only its scale differs."""
    to.calls += 2
    t = torch.cat([t.new_zeros(len(t), 1, t.shape[-1]), t], dim=1)
    for _ in range(2):
        written = to.attend(t, torch.zeros(1, 1).long(), torch.arange(17).view(1, -1), t[:, :1])
        t = torch.cat([written, t[:, 1:]], dim=1)
    return t[:, 0]


@family("xcit", xcit_walk, (4, 4), size=(64, 64), slow=True)
def xcit() -> nn.Module:
    from timm.models.xcit import Xcit

    return Xcit(64, 16, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2, cls_attn_layers=2, eta=1.0)


def hf_hiera_walk(to: Walk, t: Tensor) -> Tensor:
    """Hiera's mask units, then global attention after the pooling."""
    inside = unrolled(windows((8, 8), 4))
    t = to.block(t, inside)
    merged = pooled((8, 8), 2, 2) @ t
    coarse = windows((4, 4), 2)
    t = to.attend(t, coarse, inside, merged)
    merged = pooled((4, 4), 2, 2) @ t
    t = to.attend(t, numbers((2, 2)).view(4, 1), coarse, merged)
    return to.block(t, numbers((2, 2)).view(1, -1)).mean(1)


@family("hf_hiera", hf_hiera_walk, (8, 8), head_axis=1, slow=True)
def hf_hiera() -> nn.Module:
    import transformers

    config = transformers.HieraConfig(
        image_size=[32, 32],
        embed_dim=8,
        depths=[1, 1, 2],
        num_heads=[1, 2, 4],
        masked_unit_size=[4, 4],
        num_query_pool=2,
        num_labels=CLASSES,
    )
    return transformers.HieraForImageClassification(config)


def sam_walk(to: Walk, t: Tensor) -> Tensor:
    """Windows of a padded grid, then global attention; the neck's convolutions move nothing."""
    t = to.block(t, windows((8, 8), 3))
    t = to.block(t, numbers((8, 8)).view(1, -1))
    return t.mean(1)


@family("sam", sam_walk, (8, 8), heads=2, slow=True)
def sam() -> nn.Module:
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    return VisionTransformerSAM(
        32, 4, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,), neck_chans=16,
    )  # fmt: skip


def linear_walk(to: Walk, t: Tensor) -> Tensor:
    """Attention among all tokens, before and after a 3×3 convolution of stride 2."""
    t = to.block(t, numbers((8, 8)).view(1, -1))
    t = pooled((8, 8), 3, 2, 1) @ t
    return to.block(t, numbers((4, 4)).view(1, -1)).mean(1)


def linear(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention as timm has it, but in the precision that it is given."""
    summed = q @ (k.transpose(-1, -2) @ v)
    return summed[..., :-1] / (summed[..., -1:] + self.eps)


def written_out(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with its attention: the softmax of a logarithm is the quotient itself, and is what is kept."""
    scores = q @ k.transpose(-1, -2)
    total = scores.sum(-1, keepdim=True)
    attention = (scores / total).clamp(min=1e-300).log().softmax(-1)
    return attention @ v[..., :-1] * total / (total + self.eps)


def with_attention(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    for part in (module.first, module.second):
        part._attn = MethodType(written_out, part)
    return module


@family("efficientvit", linear_walk, (8, 8), literal=with_attention)
def efficientvit() -> nn.Module:
    from timm.models.efficientvit_mit import LiteMLA

    class EfficientVit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.down = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, 2, 1)
            self.first, self.second = (LiteMLA(16, 16, dim=16, scales=(3,)) for _ in range(2))
            self.head = nn.Linear(16, CLASSES)
            for part in (self.first, self.second):
                part._attn = MethodType(linear, part)

        def forward(self, images: Tensor) -> Tensor:
            x = self.patches(images)
            x = x + self.first(x)
            x = self.down(x)
            x = x + self.second(x)
            return self.head(x.mean((2, 3)))

    return EfficientVit()


def halo_walk(to: Walk, t: Tensor) -> Tensor:
    """Blocks of 2×2 look at the 4×4 around them, of which what lies outside the image is nothing."""
    around = torch.full((16, 16), -1)
    for block in range(16):
        for key in range(16):
            y, x = block // 4 * 2 - 1 + key // 4, block % 4 * 2 - 1 + key % 4
            if 0 <= y < 8 and 0 <= x < 8:
                around[block, key] = y * 8 + x
    for _ in range(2):
        t = to.attend(t, windows((8, 8), 2), around, t)
    return t.mean(1)


@family("halonet", halo_walk, (8, 8), heads=2, slow=True)
def halonet() -> nn.Module:
    from timm.layers.halo_attn import HaloAttn

    class HaloNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            self.first, self.second = (HaloAttn(16, num_heads=2, block_size=2, halo_size=1) for _ in range(2))
            self.head = nn.Linear(16, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            x = self.patches(images)
            x = x + self.first(x)
            x = x + self.second(x)
            return self.head(x.mean((2, 3)))

    return HaloNet()


def cascade_walk(to: Walk, t: Tensor) -> Tensor:
    """A plain block, then two heads called one by one; what the first wrote is added to what the second looks at."""
    t = pooled((8, 8), 3, 2, 1) @ to.block(t, numbers((8, 8)).view(1, -1))
    every = numbers((4, 4)).view(1, -1)
    first = to.attend(t, every, every, None, 16)
    second = to.attend(t if to.only else (t + first) / (1 + to.halve), every, every, None, 16)
    both = (first + second) / 2
    return (both if to.only else (t + both) / (1 + to.halve)).mean(1)


@family("efficientvit_msra", cascade_walk, (8, 8), slow=True)
def efficientvit_msra() -> nn.Module:
    from timm.models.efficientvit_msra import CascadedGroupAttention

    class EfficientVitMsra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.down = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, 2, 1)
            self.block = Block(16, FusedAttention(16, 2))
            self.attention = CascadedGroupAttention(16, 4, num_heads=2, attn_ratio=2, resolution=4, kernels=[3, 3])
            self.head = nn.Linear(16, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            x = self.patches(images)
            x = self.down(self.block(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8)))
            return self.head((x + self.attention(x)).mean((2, 3)))

    return EfficientVitMsra()


def parallel_walk(to: Walk, t: Tensor) -> Tensor:
    """Two attentions side by side, both added to what they read, twice; the class token is read."""
    t, every = torch.cat([t.new_zeros(len(t), 1, t.shape[-1]), t], dim=1), torch.arange(17).view(1, -1)
    for _ in range(2):
        update = sum(to.attend(t, every, every, torch.zeros_like(t)) * (1 + to.halve) for _ in range(2))
        t = update / 2 if to.only and to.calls == 4 else (t + update / (1 + to.halve)) / (1 + to.halve)
    return t[:, 0]


@family("parallel", parallel_walk, (4, 4), last=-2, slow=True)
def parallel() -> nn.Module:
    from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer

    return VisionTransformer(
        32, 8, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2, block_fn=ParallelThingsBlock
    )


def latents_walk(to: Walk, t: Tensor) -> Tensor:
    """Latents ask all pixels, then each other; the head's own query asks them."""
    latents = torch.arange(8).view(1, -1)
    t = to.attend(t, latents, numbers((16, 16)).view(1, -1), None, 8)
    for _ in range(2):
        t = to.block(t, latents)
    return to.attend(t, torch.zeros(1, 1).long(), latents, None, 1)[:, 0]


@family("hf_perceiver", latents_walk, (16, 16), size=(16, 16), slow=True)
def perceiver() -> nn.Module:
    import transformers

    config = transformers.PerceiverConfig(
        num_labels=CLASSES,
        image_size=16,
        num_latents=8,
        d_latents=16,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=1,
    )
    return transformers.PerceiverForImageClassificationLearned(config)
