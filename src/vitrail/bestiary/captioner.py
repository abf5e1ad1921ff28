"""The bestiary's captioner, a LLaVA that answers `vitrail.bestiary.dialogues`, and the causal truth of its words.

Its tower is the bestiary's ViT, moved into Hugging Face's class; projector and decoder are trained by
`training.captioner`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from vitrail.bestiary.causal import Interventions, draw_interventions
from vitrail.bestiary.dialogues import WORDS, Dialogue, caption
from vitrail.bestiary.draw import Rendered
from vitrail.bestiary.model import MEAN, SIZE, STD, load_weights, normalised
from vitrail.bestiary.scene import Scene
from vitrail.bestiary.species import BestiaryError
from vitrail.errors import CheckpointError
from vitrail.models.loading import missing_package

__all__ = ["CaptionTruth", "build_captioner", "build_processor", "caption_truth", "load"]

FOLDER = Path(__file__).parent / "weights" / "captioner"
TOWER = FOLDER.parent / "bestiary.safetensors"
# Not "model.safetensors": `from_pretrained` of the folder would draw the tower at random, and only warn.
WEIGHTS = "projector-and-decoder.safetensors"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
VOCABULARY = (*SPECIAL, *WORDS)  # a word is a token, its place here the token's id


# -- the model -------------------------------------------------------------------------------------------------------


def load(folder: str | Path = FOLDER) -> tuple[Any, Any]:
    """Returns the captioner (float32, evaluation mode) and its processor, without a network.

    They are plain `LlavaForConditionalGeneration` and `LlavaProcessor`; the folder holds the processor, projector and
    decoder, and the tower is the bestiary's own. Raises `MissingPackageError` without transformers, `CheckpointError`
    for a folder without weights or with those of another model.

    >>> model, processor = load()
    >>> type(model).__name__
    'LlavaForConditionalGeneration'
    """
    transformers = _transformers()
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}; train it by `python -m training.captioner`")
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    tower, _ = load_weights(TOWER)
    weights |= {f"vision_tower.{name}": tensor for name, tensor in tower_weights(tower).items()}
    model, told = transformers.LlavaForConditionalGeneration.from_pretrained(
        None,
        config=transformers.LlavaConfig.from_pretrained(folder, local_files_only=True),
        state_dict=weights,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if amiss := sorted({*told["missing_keys"], *told["unexpected_keys"]}):
        raise CheckpointError(f"{path} does not hold the captioner's weights: {amiss[0]} is missing or unknown")
    model.name_or_path = model.config.name_or_path = str(folder)
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)


def build_captioner(*, width: int = 128, layers: int = 3, heads: int = 4) -> Any:
    """Returns a new `LlavaForConditionalGeneration` whose tower fits the bestiary's ViT."""
    transformers = _transformers()
    tower = transformers.ViTConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=384, image_size=SIZE,
        patch_size=8, layer_norm_eps=1e-6, pooler_output_size=1,  # nothing reads the pooler, which cannot be left out
    )  # fmt: skip
    decoder = transformers.LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=decoder, image_token_index=SPECIAL.index("<image>"), image_seq_length=144,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def build_processor() -> Any:
    """Returns the processor: words are tokens, and a picture of 96 pixels goes in as it is."""
    transformers = _transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    images = transformers.ViTImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=list(MEAN), image_std=list(STD), resample=3
    )
    template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}"
        "{% endif %}{% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    return transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip


@torch.no_grad()
def tower_weights(vit: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of timm's `VisionTransformer` under the names of Hugging Face's checkpoints of `ViTModel`.

    The head is left out, and the pooler, which timm has not, is zero.
    """
    found = vit.state_dict()
    weights = {
        "embeddings.cls_token": found["cls_token"],
        "embeddings.position_embeddings": found["pos_embed"],
        "pooler.dense.weight": torch.zeros(1, found["cls_token"].shape[2]),
        "pooler.dense.bias": torch.zeros(1),
    }
    plain = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    for end in ("weight", "bias"):
        weights[f"embeddings.patch_embeddings.projection.{end}"] = found[f"patch_embed.proj.{end}"]
        weights[f"layernorm.{end}"] = found[f"norm.{end}"]
        for block in range(sum(name.endswith("attn.qkv.weight") for name in found)):
            stacked = found[f"blocks.{block}.attn.qkv.{end}"].chunk(3)
            for name, part in zip(("query", "key", "value"), stacked, strict=True):
                weights[f"encoder.layer.{block}.attention.attention.{name}.{end}"] = part
            for timm_name, name in plain.items():
                weights[f"encoder.layer.{block}.{name}.{end}"] = found[f"blocks.{block}.{timm_name}.{end}"]
    return {name: tensor.clone() for name, tensor in weights.items()}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "hf") from error
    return transformers


# -- what each word is due to ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CaptionTruth:
    """A scene, a dialogue about it, and the logits at its content words with and without all that is drawn.

    `inputs` is what the model takes (`input_ids` with the answer at the end, `pixel_values`, `attention_mask`),
    `answer` the positions of the answer's tokens in it, `content` the numbers of the content words in
    `dialogue.words`. Rows of `without_part` and `without_creature` are those of `parts` and `creatures`; columns are
    the content words; the last axis is the vocabulary, at the position that predicts the word.
    """

    scene: Scene
    drawn: Rendered
    dialogue: Dialogue
    inputs: Mapping[str, Tensor]
    answer: tuple[int, ...]
    content: tuple[int, ...]
    parts: tuple[tuple[int, str], ...]
    masks: Bool[Tensor, "parts height width"]
    creatures: Bool[Tensor, "creatures height width"]
    logits: Float[Tensor, "content vocabulary"]
    without_part: Float[Tensor, "parts content vocabulary"]
    without_creature: Float[Tensor, "creatures content vocabulary"]

    @property
    def positions(self) -> tuple[int, ...]:
        """Returns the positions of the content words in `input_ids`."""
        return tuple(self.answer[word] for word in self.content)

    def part_effects(self, word: int, against: str | None = None) -> Float[Tensor, " parts"]:
        """Returns how much each part raises the logit of content word `word`, or its lead over another word."""
        return self._effects(self.without_part, word, against)

    def creature_effects(self, word: int, against: str | None = None) -> Float[Tensor, " creatures"]:
        """Returns the same for whole creatures."""
        return self._effects(self.without_creature, word, against)

    def _effects(self, without: Tensor, word: int, against: str | None) -> Tensor:
        gain = self.logits[word] - without[:, word]
        own = gain[:, _token(self.dialogue.words[self.content[word]].text)]
        return own if against is None else own - gain[:, _token(against)]


def caption_truth(
    model: Any,
    processor: Any,
    scenes: Iterable[Scene],
    *,
    dialogue: Callable[[Scene], Dialogue] = caption,
    batch: int = 32,
) -> Iterator[CaptionTruth]:
    """Yields the causal truth of each scene: the logits of its words, also without each creature and visible part.

    The answer is that of `dialogue`, teacher-forced, so that every drawing is asked for the same words; `batch` is the
    number of drawings in a forward pass.

    >>> from vitrail.bestiary import sample_scene
    >>> model, processor = load()
    >>> scene = sample_scene("single", seed=0, species="tavel")
    >>> truth = next(caption_truth(model, processor, [scene]))
    >>> [truth.dialogue.words[word].text for word in truth.content]
    ['horned', 'tavel']
    """
    for scene in scenes:
        said = dialogue(scene)
        asked = draw_interventions(scene, SIZE, whole=True)
        inputs = prepare(processor, asked.drawn, said)
        length, words = inputs["input_ids"].shape[1], len(said.words)
        answer = tuple(range(length - words, length))
        content = tuple(number for number, word in enumerate(said.words) if word.kind != "function")
        logits = _logits(model, asked, inputs["input_ids"], [answer[word] - 1 for word in content], batch)
        creatures = len(asked.creatures)
        yield CaptionTruth(
            scene=scene,
            drawn=asked.drawn,
            dialogue=said,
            inputs=inputs,
            answer=answer,
            content=content,
            parts=asked.parts,
            masks=asked.masks,
            creatures=asked.creatures,
            logits=logits[0],
            without_part=logits[1 + creatures :],
            without_creature=logits[1 : 1 + creatures],
        )


def prepare(processor: Any, drawn: Rendered, dialogue: Dialogue, *, answered: bool = True) -> dict[str, Tensor]:
    """Returns what the model takes for a drawn scene: the prompt and, if `answered`, the answer's words after it."""
    text = f"<image> {dialogue.prompt}" + (f" {dialogue.answer}" if answered else "")
    return dict(processor(images=Image.fromarray(drawn.image), text=text, return_tensors="pt"))


@torch.no_grad()
def _logits(
    model: Any, asked: Interventions, ids: Int[Tensor, "1 sequence"], places: list[int], batch: int
) -> Float[Tensor, "images content vocabulary"]:
    keep = torch.tensor(places, dtype=torch.long)
    run = partial(model, use_cache=False, logits_to_keep=keep)
    return torch.cat(
        [
            run(input_ids=ids.expand(len(some), -1), pixel_values=some).logits.float()
            for some in normalised(asked.pictures).split(batch)
        ]
    )


def _token(word: str) -> int:
    if word not in VOCABULARY:
        raise BestiaryError(f"{word!r} is not among the {len(VOCABULARY)} words of the captioner")
    return VOCABULARY.index(word)
