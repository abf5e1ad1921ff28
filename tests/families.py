"""Every family of Vision Transformer that Vitrail explains, as tiny modules with lively random weights.

The matrix tests run over `FAMILIES`. All modules are built by the libraries' own classes, without network, in well
under a tenth of a second each; they run in float32 and float64. All weights are redrawn after building, because the
libraries' own initialisation leaves the attention uniform and the logits almost constant, which tests nothing.

    family = FAMILIES["timm_vit"]
    module, images = family.build(), family.images(batch=2)
    module(images)                       # 2 x 7, or an output object that holds it

`build` makes a new module for a test that changes it; `family.model()` is one wrapped module for all tests that leave
it as it is, so that neither its weights nor the layout of its tokens are made again for every one of them.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from vitrail.models import VisionModel

CLASSES = 7


@dataclass(frozen=True)
class Family:
    """One family: how to build it, and what Vitrail must find out about it by itself.

    `readout` is one of "class" (first token), "mean" (of the patches), "class+mean" (both, concatenated), "distilled"
    (the first two tokens, one head each) and "pool" (attention pooling by a learned query after the blocks). `grid`
    is rows, columns of patches; `prefix` counts the tokens before them. `attention` says how the module computes it:
    "sdpa", "mha" (through `F.multi_head_attention_forward`) or "written out" (matrix product, softmax, matrix product).
    """

    build: Callable[[], nn.Module]
    image_size: tuple[int, int]
    prefix: int
    grid: tuple[int, int]
    readout: str
    depth: int
    heads: int
    attention: str = "sdpa"
    classes: int = CLASSES

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    def model(self) -> "VisionModel":
        """The same wrapped module for every test; one that finds it changed fails."""
        model, state = _shared(self)
        assert _state(model.module) == state, (
            "a test has changed the module that all share: it needs a build() of its own"
        )
        return model

    def images(self, batch: int = 2, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """Standard normal images, batch x 3 x height x width; the same for the same seed, whatever the batch."""
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(3, *self.image_size, generator=generator, dtype=torch.float64) for _ in range(batch)]
        return torch.stack(draws).to(dtype)


@cache
def _shared(family: Family) -> "tuple[VisionModel, list[object]]":
    import vitrail

    model = vitrail.wrap(family.build())
    return model, _state(model.module)


def _state(module: nn.Module) -> list[object]:
    """What tells a changed module: writes to its tensors, gradients, modes and hooks."""
    tensors = [*module.parameters(), *module.buffers()]
    return [
        *((id(one), one._version, one.dtype, one.requires_grad, one.grad is None) for one in tensors),
        *((part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()),
    ]


FAMILIES: dict[str, Family] = {}


def family(name: str, requires: str | None = None, **facts: Any):
    """Register a function that builds a module; without the library that it `requires`, building skips the test."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            if requires is not None and importlib.util.find_spec(requires) is None:
                pytest.skip(f"{name} needs {requires}, which is not installed")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(sum(map(ord, name)))
                module = make().eval()
                enliven(module)
            return module

        FAMILIES[name] = Family(build=build, **{"depth": 3, "heads": 3, **facts})
        return make

    return register


def _is_table(name: str) -> bool:
    words = ("position", "pos_emb", "token", "query", "probe", "latent", "embedding")
    return any(word in name for word in words) and "proj" not in name and "patch" not in name


@torch.no_grad()
def enliven(module: nn.Module, is_table: Callable[[str], bool] = _is_table, spread: float = 0.5) -> None:
    """Redraws all parameters so that attention is uneven, every token matters and the logits differ by about one.

    Parameters that are tables, such as those of positions, get the spread.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            continue
        if parameter.ndim == 1 and name.endswith("weight"):  # norms; Gemma's are less one
            gemma = "Gemma" in type(module.get_submodule(name.rpartition(".")[0])).__name__
            parameter.copy_(0.2 * torch.randn_like(parameter) + (0 if gemma else 1))
        elif "gamma" in name or "lambda" in name:  # layer scales, which start near zero and would silence the blocks
            parameter.copy_(0.7 + 0.2 * torch.rand_like(parameter))
        elif is_table(name):
            parameter.copy_(spread * torch.randn_like(parameter))
        elif parameter.ndim == 1:
            parameter.copy_(0.2 * torch.randn_like(parameter))
        else:
            fan_in = parameter[0].numel()
            parameter.copy_(1.2 * torch.randn_like(parameter) * fan_in**-0.5)


# --- timm -------------------------------------------------------------------------------------------------------------

_TIMM = {"num_classes": CLASSES, "embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 16, "img_size": 64}


def _timm_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**{**_TIMM, **options})


@family("timm_vit", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class")
def timm_vit() -> nn.Module:
    return _timm_vit()


@family("timm_vit_average", image_size=(64, 64), prefix=1, grid=(4, 4), readout="mean")
def timm_vit_average() -> nn.Module:
    return _timm_vit(global_pool="avg")


@family("timm_vit_non_square", image_size=(32, 64), prefix=1, grid=(2, 4), readout="class")
def timm_vit_non_square() -> nn.Module:
    return _timm_vit(img_size=(32, 64))


@family("timm_deit_distilled", image_size=(64, 64), prefix=2, grid=(4, 4), readout="distilled")
def timm_deit_distilled() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(**_TIMM)


@family("timm_deit3", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class")
def timm_deit3() -> nn.Module:
    return _timm_vit(init_values=1e-6, no_embed_class=True)


@family("timm_beit", image_size=(64, 64), prefix=1, grid=(4, 4), readout="mean")
def timm_beit() -> nn.Module:
    from timm.models.beit import Beit

    return Beit(**_TIMM, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)


@family("timm_eva02", image_size=(56, 56), prefix=1, grid=(4, 4), readout="mean")
def timm_eva02() -> nn.Module:
    from timm.models.eva import Eva

    return Eva(
        **{**_TIMM, "img_size": 56, "patch_size": 14},
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
    )


@family("timm_dinov2_registers", image_size=(56, 42), prefix=5, grid=(4, 3), readout="class")
def timm_dinov2_registers() -> nn.Module:
    return _timm_vit(img_size=(56, 42), patch_size=14, init_values=1e-5, reg_tokens=4, no_embed_class=True)


def _timm_dinov3(**options: Any) -> nn.Module:
    from timm.layers import LayerNorm
    from timm.models.eva import Eva

    return Eva(
        **_TIMM,
        dynamic_img_size=True,
        qkv_bias=False,
        init_values=1e-5,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        num_reg_tokens=4,
        use_fc_norm=False,
        norm_layer=partial(LayerNorm, eps=1e-5),
        **options,
    )


@family("timm_dinov3", image_size=(64, 64), prefix=5, grid=(4, 4), readout="mean")
def timm_dinov3() -> nn.Module:
    return _timm_dinov3()


@family("timm_dinov3_class", image_size=(48, 64), prefix=5, grid=(3, 4), readout="class")
def timm_dinov3_class() -> nn.Module:
    return _timm_dinov3(global_pool="token")


@family("timm_clip", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class")
def timm_clip() -> nn.Module:
    from timm.layers import LayerNorm

    return _timm_vit(pre_norm=True, act_layer="quick_gelu", norm_layer=partial(LayerNorm, eps=1e-5))


@family("timm_siglip", image_size=(64, 64), prefix=0, grid=(4, 4), readout="pool")
def timm_siglip() -> nn.Module:
    return _timm_vit(class_token=False, global_pool="map")


@family("timm_siglip_average", image_size=(64, 64), prefix=0, grid=(4, 4), readout="mean")
def timm_siglip_average() -> nn.Module:
    return _timm_vit(class_token=False, global_pool="avg", fc_norm=False)


# --- Hugging Face -----------------------------------------------------------------------------------------------------

_HF = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": CLASSES,
}


def _hugging_face(config: str, model: str, **options: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**{**_HF, **options}))


@family("hf_vit", requires="transformers", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class")
def hf_vit() -> nn.Module:
    return _hugging_face("ViTConfig", "ViTForImageClassification")


@family("hf_deit", requires="transformers", image_size=(64, 64), prefix=2, grid=(4, 4), readout="class")
def hf_deit() -> nn.Module:
    return _hugging_face("DeiTConfig", "DeiTForImageClassification")


@family("hf_deit_teacher", requires="transformers", image_size=(64, 64), prefix=2, grid=(4, 4), readout="distilled")
def hf_deit_teacher() -> nn.Module:
    return _hugging_face("DeiTConfig", "DeiTForImageClassificationWithTeacher")


@family("hf_dinov2", requires="transformers", image_size=(56, 56), prefix=1, grid=(4, 4), readout="class+mean")
def hf_dinov2() -> nn.Module:
    return _hugging_face("Dinov2Config", "Dinov2ForImageClassification", image_size=56, patch_size=14)


@family(
    "hf_dinov2_registers", requires="transformers", image_size=(56, 56), prefix=5, grid=(4, 4), readout="class+mean"
)
def hf_dinov2_registers() -> nn.Module:
    options = {"image_size": 56, "patch_size": 14, "num_register_tokens": 4}
    return _hugging_face("Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", **options)


@family("hf_beit", requires="transformers", image_size=(64, 64), prefix=1, grid=(4, 4), readout="mean")
def hf_beit() -> nn.Module:
    options = {"use_relative_position_bias": True, "use_mean_pooling": True, "layer_scale_init_value": 0.1}
    return _hugging_face("BeitConfig", "BeitForImageClassification", **options)


@family("hf_clip", requires="transformers", image_size=(64, 64), prefix=1, grid=(4, 4), readout="mean")
def hf_clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPForImageClassification

    return CLIPForImageClassification(CLIPConfig(vision_config=_HF, num_labels=CLASSES))


@family("hf_siglip", requires="transformers", image_size=(64, 64), prefix=0, grid=(4, 4), readout="mean")
def hf_siglip() -> nn.Module:
    from transformers import SiglipConfig, SiglipForImageClassification

    # The tower's own attention pooling runs too, but the classifier ignores it and averages the tokens. The text half
    # of the configuration is not built; its default token numbers make the library complain.
    text = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return SiglipForImageClassification(SiglipConfig(vision_config=_HF, text_config=text, num_labels=CLASSES))


# --- torchvision and open_clip ----------------------------------------------------------------------------------------


@family("torchvision_vit", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class", attention="mha")
def torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=CLASSES
    )


def _open_clip(output_dim: int = CLASSES, **options: Any) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=64, patch_size=16, width=48, layers=3, heads=3, mlp_ratio=2.0, output_dim=output_dim, **options
    )


@family("open_clip", requires="open_clip", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class", attention="mha")
def open_clip_class() -> nn.Module:
    return _open_clip()


@family(
    "open_clip_average",
    requires="open_clip",
    image_size=(64, 64),
    prefix=1,
    grid=(4, 4),
    readout="mean",
    attention="mha",
)
def open_clip_average() -> nn.Module:
    return _open_clip(pool_type="avg")


@family(
    "open_clip_pooler",
    requires="open_clip",
    image_size=(64, 64),
    prefix=1,
    grid=(4, 4),
    readout="pool",
    attention="mha",
    classes=9,
)
def open_clip_pooler() -> nn.Module:
    # As CoCa does: three learned queries read all tokens, and the first query's answer is the image's embedding, whose
    # width the pooler's heads must divide.
    return _open_clip(output_dim=9, attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=3)


# --- modules as users write them --------------------------------------------------------------------------------------


class WrittenOutAttention(nn.Module):
    """Attention as in countless course notebooks: no fused kernel, the maps in plain sight."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class FusedAttention(WrittenOutAttention):
    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UserViT(nn.Module):
    """A user's own ViT: class token, learned positions, blocks, a head on the class token."""

    def __init__(
        self, blocks: nn.Module, image_size: tuple[int, int] = (64, 64), patch: int = 16, width: int = 48
    ) -> None:
        super().__init__()
        tokens = (image_size[0] // patch) * (image_size[1] // patch)
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@family("user_written_out", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class", attention="written out")
def user_written_out() -> nn.Module:
    return UserViT(nn.Sequential(*(Block(48, WrittenOutAttention(48, 3)) for _ in range(3))))


@family("user_non_square", image_size=(48, 32), prefix=1, grid=(3, 2), readout="class", heads=4, depth=4)
def user_non_square() -> nn.Module:
    return UserViT(nn.Sequential(*(Block(48, FusedAttention(48, 4)) for _ in range(4))), image_size=(48, 32))


@family("user_patch_14", image_size=(42, 56), prefix=1, grid=(3, 4), readout="class")
def user_patch_14() -> nn.Module:
    return UserViT(nn.Sequential(*(Block(48, FusedAttention(48, 3)) for _ in range(3))), image_size=(42, 56), patch=14)


@family("user_encoder", image_size=(64, 64), prefix=1, grid=(4, 4), readout="class", attention="mha")
def user_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(48, 3, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    # Nested tensors are never used with norm_first=True; saying so avoids the library's warning.
    return UserViT(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
