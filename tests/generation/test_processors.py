"""A picture and a prompt through every class's own processor: tiny, with words that the tiny models know."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vlm_families import IMAGE, VLMS, VOCABULARY

from vitrail.errors import ForwardError, ImageError, TextError
from vitrail.generation import explain_generation
from vitrail.generation.loading import VisionLanguageModel

transformers: Any = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SQUARE = {"height": 32, "width": 32}
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
DIALOGUE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def tokenizer(image: str | None = "<image>", *others: str, **named: str) -> Any:
    """Words w3, w4, … by their number; `others` are special, from 38 downwards; `named` are what a processor reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"<pad>": 0, "<s>": 1, "</s>": 2, (image or "<image>"): IMAGE}
    special |= {other: IMAGE - 1 - number for number, other in enumerate(others)}
    words = [number for number in range(3, VOCABULARY) if number not in special.values()]
    known = {**special, ".": words.pop(), **{f"w{number}": number for number in words}}
    made = Tokenizer(models.WordLevel(known, unk_token="w3"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment]
    extra = {**({"image_token": image} if image else {}), **named}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=extra
    )


def build(kind: str, **options: Any) -> Any:
    return getattr(transformers, kind)(**options)


def with_length(image_processor: Any, length: int) -> Any:
    image_processor.image_seq_length = length
    return image_processor


def clip() -> Any:
    return build("CLIPImageProcessor", size=SQUARE, crop_size=SQUARE)


def pixtral(patch: int, merge: int) -> Any:
    images = build("PixtralImageProcessor", size={"longest_edge": 48}, patch_size={"height": patch, "width": patch})
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return transformers.PixtralProcessor(images, words, patch_size=patch // merge, spatial_merge_size=merge)


def qwen(kind: str, video: str = "Qwen2VL") -> Any:
    names = ("<|video_pad|>", "<|vision_end|>", "<|vision_start|>")
    named = dict(zip(("video_token", "vision_end_token", "vision_start_token"), names, strict=True))
    return getattr(transformers, f"{kind}Processor")(
        build("Qwen2VLImageProcessor", patch_size=8, merge_size=2, min_pixels=256, max_pixels=3072),
        tokenizer("<|image_pad|>", *names, **named),
        video_processor=build(f"{video}VideoProcessor", patch_size=8),
        chat_template=DIALOGUE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def idefics(kind: str, **more: Any) -> Any:
    rows = [f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2, 3)]
    named = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    images = build(f"{kind}ImageProcessor", size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    words = tokenizer("<image>", *named.values(), "<end_of_utterance>", *rows, **named)
    return getattr(transformers, f"{kind}Processor")(images, words, image_seq_len=4, **more)


def smolvlm() -> Any:
    pytest.importorskip("num2words")  # which the class's own processor needs
    return idefics("SmolVLM", video_processor=build("SmolVLMVideoProcessor"))


def internvl() -> Any:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    words = tokenizer("<IMG_CONTEXT>", *named.values(), context_image_token="<IMG_CONTEXT>", **named)
    return transformers.InternVLProcessor(
        build("GotOcr2ImageProcessor", size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4),
        words,
        build("InternVLVideoProcessor"),
        image_seq_length=4,
        chat_template=DIALOGUE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )


def llava(kind: str = "Llava", image_processor: Callable[[], Any] = clip) -> Any:
    cut = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return getattr(transformers, f"{kind}Processor")(image_processor(), tokenizer(), **cut)


def llava_next() -> Any:
    size = {"size": {"shortest_edge": 32}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS}
    return llava("LlavaNext", lambda: build("LlavaNextImageProcessor", **size))


def llava_onevision() -> Any:
    return transformers.LlavaOnevisionProcessor(
        build("LlavaOnevisionImageProcessor", size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer("<image>", "<video>", video_token="<video>"),
        build("LlavaOnevisionVideoProcessor", size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_1",
    )


def gemma3() -> Any:
    named = {"eoi_token": "<end_of_image>", "boi_token": "<start_of_image>"}
    words = tokenizer("<image_soft_token>", *named.values(), **named)
    return transformers.Gemma3Processor(build("Gemma3ImageProcessor", size=SQUARE), words, image_seq_length=4)


def blip(kind: str, **more: Any) -> Any:
    images = build("BlipImageProcessor", size=SQUARE)
    return getattr(transformers, f"{kind}Processor")(images, tokenizer(None), num_query_tokens=5, **more)


# The processor of each class, and the map's size for a picture of 60 x 90 pixels.
PROCESSORS: dict[str, tuple[Callable[[], Any], tuple[int, int]]] = {
    "llava": (llava, (4, 4)),
    "pixtral": (lambda: pixtral(8, 1), (4, 6)),
    "mistral3": (lambda: pixtral(16, 2), (4, 6)),
    "paligemma": (
        lambda: transformers.PaliGemmaProcessor(
            with_length(build("SiglipImageProcessor", size=SQUARE), 16), tokenizer()
        ),
        (4, 4),
    ),
    "gemma3": (gemma3, (4, 4)),
    "qwen2_vl": (lambda: qwen("Qwen2VL"), (4, 8)),
    "qwen2_5_vl": (lambda: qwen("Qwen2_5_VL"), (4, 8)),
    "qwen3_vl": (lambda: qwen("Qwen3VL", "Qwen3VL"), (4, 8)),
    "idefics3": (lambda: idefics("Idefics3"), (8, 12)),
    "smolvlm": (smolvlm, (8, 12)),
    "internvl": (internvl, (8, 8)),
    "llava_next": (llava_next, (6, 8)),
    "llava_onevision": (llava_onevision, (6, 8)),
    "blip_2": (lambda: blip("Blip2"), (4, 4)),
    "instructblip": (lambda: blip("InstructBlip", qformer_tokenizer=tokenizer(None)), (4, 4)),
    "florence2": (lambda: transformers.Florence2Processor(with_length(clip(), 5), tokenizer()), (16, 16)),
    "blip_2_t5": (lambda: blip("Blip2"), (4, 4)),
}
QUICK = ("qwen2_5_vl", "idefics3")


def model_with_processor(name: str) -> VisionLanguageModel:
    module: Any = VLMS[name].build()[0]
    for part in (module, getattr(module, "language_model", None)):
        if (config := getattr(part, "generation_config", None)) is not None:
            config.pad_token_id = 0
            config.suppress_tokens = [0, 1, 2, *range(26, VOCABULARY)]  # words alone, and no end
    return VisionLanguageModel(module, PROCESSORS[name][0](), name)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROCESSORS]
)
def test_a_picture_and_a_prompt(name: str, picture: Image.Image) -> None:
    vlm = model_with_processor(name)
    own = explain_generation(vlm, picture, "w4 w5 w6", max_new_tokens=3)
    given = explain_generation(vlm, picture, "w4 w5 w6", answer=own.answer)
    assert given.tokens == own.tokens
    assert own.prompt == "w4 w5 w6"
    torch.testing.assert_close(given.image_scores, own.image_scores, rtol=0, atol=0)
    assert tuple(own.image_scores[0].shape[1:]) == PROCESSORS[name][1]
    assert own.pictures is not None
    height, width = own.pictures[0].shape[:2]
    assert (height, width) == (32, 32) or 1.3 <= width / height <= 2 or name == "internvl"  # as its own cutting has it
    explained = explain_generation(vlm, picture, "w4 w5 w6", answer="w9 w12", positions=-1, against="w20")
    assert explained.question().startswith("w12 ")


def test_what_a_processor_or_a_model_cannot_take_is_said(picture: Image.Image) -> None:
    vlm = model_with_processor("blip_2")
    vlm.processor.image_token = None  # an AttributeError of its own
    with pytest.raises(ImageError, match="the processor cannot prepare 1 image"):
        explain_generation(vlm, picture, "w4")
    vlm = model_with_processor("florence2")
    vlm.processor.num_image_tokens = vlm.processor.image_seq_length = 4
    with pytest.raises(ForwardError, match="do not match"):
        explain_generation(vlm, picture, "w4")
    with pytest.raises(TextError, match="cannot join"):
        explain_generation(model_with_processor("llava"), picture, "w4", answer="unheard")
