"""Tiny vision-language models of every class that `vitrail.explain_generation` is held to, with lively random weights.

Each is built by Hugging Face's own classes from a configuration, without network and without a processor: `inputs` are
what a processor would give, the answer's tokens at the end (of `decoder_input_ids` for an encoder with a decoder).

    family = VLMS["llava"]
    model, inputs = family.build()
    model(**inputs).logits               # 1 x sequence x VOCABULARY
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

VOCABULARY, IMAGE, ANSWER = 40, 39, 3
"""Words that the models know, the one that stands for an image token, and the length of every answer."""

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Family:
    """One class of models: how to build it, its inputs, and the map's size by image tokens and by patches."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    tokens: tuple[int, int]
    patches: tuple[int, int]

    def build(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, Tensor]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = self.make().eval()
            enliven(model)
            inputs = self.inputs()
        given = {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}
        return model.to(dtype), given


VLMS: dict[str, Family] = {}


def family(name: str, **facts: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Registers a function that builds a model."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            pytest.importorskip("transformers")
            return make()

        VLMS[name] = Family(build, **facts)
        return make

    return register


def enliven(module: nn.Module) -> None:
    """Redraws all parameters as those of the classifiers are; tables of words among them."""
    tables = ("position", "pos_emb", "embed_tokens", "shared", "query_tokens", "newline")
    families.enliven(module, is_table=lambda name: any(word in name for word in tables), spread=0.7)


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def words(images: int, *, before: int = 2, after: int = 4, answer: int = ANSWER, seed: int = 0) -> Tensor:
    """Returns the words of a prompt with `images` image tokens in it, and of an answer."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, IMAGE, (before + after + answer,), generator=generator)
    return torch.cat([text[:before], torch.full((images,), IMAGE), text[before:]])[None]


def sequence(images: int, **more: Tensor) -> dict[str, Tensor]:
    ids = words(images)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def model_of(kind: str, **config: Any) -> nn.Module:
    """Returns the model that a class's own configuration describes."""
    import transformers

    made = getattr(transformers, f"{kind}Config")(**config)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(made)


def text_config(name: str = "LlamaConfig", **changed: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**{**TEXT, **changed})


def vision_config(name: str, **changed: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**{**VISION, **changed})


# --- one grid of image tokens -----------------------------------------------------------------------------------------


@family("llava", inputs=lambda: sequence(16, pixel_values=pixels(1, 3, 32, 32)), tokens=(4, 4), patches=(4, 4))
def llava() -> nn.Module:
    return model_of(
        "Llava",
        vision_config=vision_config("CLIPVisionConfig"),
        text_config=text_config(),
        image_token_index=IMAGE,
        image_seq_length=16,
    )


def _paligemma() -> dict[str, Tensor]:
    ids = torch.cat([torch.full((1, 16), IMAGE), words(0)], dim=1)
    kinds = torch.zeros_like(ids)
    kinds[:, -ANSWER:] = 1
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": kinds,
        "pixel_values": pixels(1, 3, 32, 32),
    }


def _paligemma_of(text: Any) -> nn.Module:
    return model_of(
        "PaliGemma",
        vision_config=vision_config("SiglipVisionConfig", vision_use_head=False, projection_dim=32),
        text_config=text,
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
        vocab_size=VOCABULARY,
    )


@family("paligemma", inputs=_paligemma, tokens=(4, 4), patches=(4, 4))
def paligemma() -> nn.Module:
    return _paligemma_of(text_config("GemmaConfig", num_key_value_heads=1))


@family("paligemma2", inputs=_paligemma, tokens=(4, 4), patches=(4, 4))
def paligemma2() -> nn.Module:
    more = {"query_pre_attn_scalar": 8, "attn_logit_softcapping": None, "attention_dropout": 0.0}
    return _paligemma_of(text_config("Gemma2Config", sliding_window=8, **more))


def _gemma3() -> dict[str, Tensor]:
    given = sequence(4, pixel_values=pixels(1, 3, 32, 32))
    return {**given, "token_type_ids": (given["input_ids"] == IMAGE).long()}


@family("gemma3", inputs=_gemma3, tokens=(2, 2), patches=(4, 4))
def gemma3() -> nn.Module:
    return model_of(
        "Gemma3",
        vision_config=vision_config("SiglipVisionConfig", vision_use_head=False),
        text_config=text_config(
            "Gemma3TextConfig",
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=8,
        ),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=36,
        eoi_token_index=37,
    )


@family("mistral3", inputs=lambda: _pixtral(6), tokens=(2, 3), patches=(4, 6))
def mistral3() -> nn.Module:
    return model_of(
        "Mistral3",
        vision_config=vision_config("PixtralVisionConfig", image_size=64, head_dim=8, hidden_size=24),
        text_config=text_config("MistralConfig", sliding_window=None),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def _pixtral(tokens: int) -> dict[str, Tensor]:
    return sequence(tokens, pixel_values=pixels(1, 3, 32, 48), image_sizes=torch.tensor([[32, 48]]))


@family("pixtral", inputs=lambda: _pixtral(24), tokens=(4, 6), patches=(4, 6))
def pixtral() -> nn.Module:
    return model_of(
        "Llava",
        vision_config=vision_config("PixtralVisionConfig", image_size=64, head_dim=8),
        text_config=text_config("MistralConfig", sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


# --- images of any size, cut into patches by the processor ------------------------------------------------------------


def _qwen(frames: int = 2) -> dict[str, Tensor]:
    grid = torch.tensor([[1, 4, 6]])
    given = sequence(6, pixel_values=pixels(24, 3 * frames * 8 * 8), image_grid_thw=grid)
    return {**given, "mm_token_type_ids": (given["input_ids"] == IMAGE).int()}


def _qwen_of(kind: str, rope: dict[str, Any] | None = None, **vision: Any) -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], **(rope or {})}
    return model_of(
        kind,
        vision_config={"depth": 3, "num_heads": 3, "patch_size": 8, **vision},
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=38,
        vision_start_token_id=36,
        vision_end_token_id=37,
    )


QWEN_WIDTHS = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 40}


@family("qwen2_vl", inputs=_qwen, tokens=(2, 3), patches=(4, 6))
def qwen2_vl() -> nn.Module:
    return _qwen_of("Qwen2VL", embed_dim=24, hidden_size=32, mlp_ratio=2)


@family("qwen2_5_vl", inputs=_qwen, tokens=(2, 3), patches=(4, 6))
def qwen2_5_vl() -> nn.Module:
    return _qwen_of("Qwen2_5_VL", **QWEN_WIDTHS, window_size=32, fullatt_block_indexes=[1])


@family("qwen3_vl", inputs=_qwen, tokens=(2, 3), patches=(4, 6))
def qwen3_vl() -> nn.Module:
    added = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return _qwen_of("Qwen3VL", {"mrope_interleaved": True}, **QWEN_WIDTHS, **added)


# --- tiles ------------------------------------------------------------------------------------------------------------


def _idefics3() -> dict[str, Tensor]:
    """Two rows of three tiles, then the whole image: four tokens each, words between them."""
    ids = torch.cat([torch.cat([words(4, before=1, after=0, answer=0, seed=i) for i in range(7)], dim=1), words(0)], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(1, 7, 3, 32, 32),
        "pixel_attention_mask": torch.ones(1, 7, 32, 32, dtype=torch.long),
    }


def _idefics3_of(kind: str) -> nn.Module:
    return model_of(
        kind,
        vision_config=vision_config(f"{kind}VisionConfig").to_dict(),
        text_config=text_config(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


@family("idefics3", inputs=_idefics3, tokens=(4, 6), patches=(8, 12))
def idefics3() -> nn.Module:
    return _idefics3_of("Idefics3")


@family("smolvlm", inputs=_idefics3, tokens=(4, 6), patches=(8, 12))
def smolvlm() -> nn.Module:
    return _idefics3_of("SmolVLM")


@family("internvl", inputs=lambda: sequence(12, pixel_values=pixels(3, 3, 32, 32)), tokens=(2, 4), patches=(4, 8))
def internvl() -> nn.Module:
    vision: dict[str, Any] = {
        **VISION,
        "image_size": [32, 32],
        "patch_size": [8, 8],
        "use_absolute_position_embeddings": True,
    }
    return model_of(
        "InternVL",
        vision_config={"model_type": "internvl_vision", **vision},
        text_config=text_config("Qwen2Config"),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )


@family(
    "llava_next",
    # A square of 32 pixels, and two tiles next to each other, of whose rows one above and one below are padding.
    inputs=lambda: sequence(16 + 2 * 9, pixel_values=pixels(1, 3, 3, 32, 32), image_sizes=torch.tensor([[16, 64]])),
    tokens=(2, 8),
    patches=(2, 8),
)
def llava_next() -> nn.Module:
    return model_of(
        "LlavaNext",
        vision_config=vision_config("CLIPVisionConfig"),
        text_config=text_config(),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )


@family(
    "llava_onevision",
    # Two by two tiles, more than "anyres_max_1" keeps: 8 x 8 tokens are resampled to 4 x 4.
    inputs=lambda: sequence(16 + 4 * 5, pixel_values=pixels(1, 5, 3, 32, 32), image_sizes=torch.tensor([[64, 64]])),
    tokens=(4, 4),
    patches=(8, 8),
)
def llava_onevision() -> nn.Module:
    return model_of(
        "LlavaOnevision",
        vision_config=vision_config("SiglipVisionConfig", vision_use_head=False),
        text_config=text_config("Qwen2Config"),
        image_token_index=IMAGE,
        video_token_index=38,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_aspect_ratio="anyres_max_1",
    )


# --- resamplers, and an encoder with a decoder ------------------------------------------------------------------------


QFORMER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "encoder_hidden_size": 24,
    "cross_attention_frequency": 1,
}


def _blip_of(kind: str, text: Any) -> nn.Module:
    import transformers

    return model_of(
        kind,
        vision_config=vision_config(f"{kind}VisionConfig").to_dict(),
        qformer_config=getattr(transformers, f"{kind}QFormerConfig")(**QFORMER).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=5,
        image_token_index=IMAGE,
    )


def _opt() -> Any:
    return text_config("OPTConfig", ffn_dim=48, word_embed_proj_dim=32, dropout=0.0, attention_dropout=0.0)


@family("blip_2", inputs=lambda: sequence(5, pixel_values=pixels(1, 3, 32, 32)), tokens=(1, 5), patches=(4, 4))
def blip_2() -> nn.Module:
    return _blip_of("Blip2", _opt())


def _instructblip() -> dict[str, Tensor]:
    asked = words(0, answer=0)
    given = sequence(5, pixel_values=pixels(1, 3, 32, 32))
    return {**given, "qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked)}


@family("instructblip", inputs=_instructblip, tokens=(1, 5), patches=(4, 4))
def instructblip() -> nn.Module:
    return _blip_of("InstructBlip", _opt())


def _seq2seq(start: int) -> dict[str, Tensor]:
    ids = words(5, answer=0)
    answer = words(0, before=0, after=0)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(1, 3, 32, 32),
        "decoder_input_ids": torch.cat([torch.tensor([[start]]), answer], dim=1),
    }


@family("florence2", inputs=lambda: _seq2seq(2), tokens=(2, 2), patches=(16, 16))
def florence2() -> nn.Module:
    from transformers import BartConfig

    text = BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    vision: dict[str, Any] = {
        "depths": (1, 1, 1, 1),
        "patch_size": (7, 3, 3, 3),
        "patch_stride": (2, 2, 2, 2),
        "patch_padding": (3, 1, 1, 1),
        "embed_dim": (8, 12, 16, 24),
        "num_heads": (2, 3, 4, 3),
        "num_groups": (2, 3, 4, 3),
        "window_size": 4,
        "projection_dim": 32,
        "max_position_embeddings": 10,
        "drop_path_rate": 0.0,
    }
    return model_of(
        "Florence2", vision_config=vision, text_config=text.to_dict(), image_token_id=IMAGE, is_encoder_decoder=True
    )


@family("blip_2_t5", inputs=lambda: _seq2seq(0), tokens=(1, 5), patches=(4, 4))
def blip_2_t5() -> nn.Module:
    from transformers import T5Config

    text = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return _blip_of("Blip2", text)
