"""The bestiary's captioner: a LLaVA that says what is in a scene, and how each of its words depends on what is drawn.

Its tower is the bestiary's ViT, moved into Hugging Face's class; projector and decoder are trained by
`training.captioner` on the dialogues of this file. Every content word of an answer is caused by something visible:

    what is in the picture?     a spotted balloo above a horned tavel
    is there a tavel?           yes
    where is the tavel?         below the balloo
    what is below the balloo?   a horned tavel
    describe the tavel.         it is horned and plumed
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from vitrail.bestiary.causal import Interventions, draw_interventions
from vitrail.bestiary.dataset import Bestiary
from vitrail.bestiary.draw import Rendered
from vitrail.bestiary.model import MEAN, SIZE, STD
from vitrail.bestiary.scene import Scene, extent
from vitrail.bestiary.species import CLASS_NAMES, BestiaryError, difference, siblings, species
from vitrail.errors import CheckpointError
from vitrail.models.loading import missing_package

__all__ = ["CaptionTruth", "Dialogue", "Word", "ask", "caption", "caption_truth", "held_out", "load"]

FOLDER = Path(__file__).parent / "weights" / "captioner"
HELD_OUT = 2**22  # seed of the scenes that no training has seen; 2**22 + 1 is for choices, such as a gradient mode
QUESTION = "what is in the picture?"
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
# The word for each variant of a diagnostic part.
TRAITS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("crown", "antlers"): "horned",
        ("crown", "curls"): "curly",
        ("crown", "spike"): "spiked",
        ("crown", "crest"): "crested",
        ("crown", "stalks"): "stalked",
        ("tail", "plume"): "plumed",
        ("tail", "tuft"): "tufted",
        ("tail", "fan"): "fanned",
        ("tail", "fork"): "forked",
        ("wings", "feather"): "feathered",
        ("wings", "bat"): "leathery",
        ("wings", "petal"): "petalled",
        ("shell", "spiral"): "spiral",
        ("shell", "cone"): "conical",
        ("shell", "spines"): "spiny",
        ("coat", "spots"): "spotted",
        ("coat", "stripes"): "striped",
        ("coat", "saddle"): "saddled",
    }
)
FUNCTION = ("?", ".", "what", "is", "in", "the", "picture", "there", "a", "an", "where", "describe", "it", "and", "of")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
VOCABULARY = (*SPECIAL, *FUNCTION, "yes", "no", *OPPOSITE, *TRAITS.values(), *CLASS_NAMES)

Kind = Literal["name", "trait", "relation", "answer", "function"]


# -- what is said ----------------------------------------------------------------------------------------------------


class Word(NamedTuple):
    """A word of an answer, its kind, and the creatures (numbers in the scene) that it speaks of."""

    text: str
    kind: Kind = "function"
    creatures: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A question about a scene, and the words of its answer."""

    prompt: str
    words: tuple[Word, ...]

    @property
    def answer(self) -> str:
        """Returns the answer as text."""
        return " ".join(word.text for word in self.words)


def caption(scene: Scene, names: Sequence[str] | None = None) -> Dialogue:
    """Returns what is in the picture, the left or upper creature first.

    `names` replaces the creatures' own species, for creatures that are of none. Raises `BestiaryError` for those
    without it, and for an empty scene.

    >>> from vitrail.bestiary import sample_scene
    >>> caption(sample_scene("single", seed=0, species="tavel")).answer
    'a horned tavel'
    """
    return ask(scene, "picture", names=names)


def ask(
    scene: Scene,
    about: Literal["picture", "presence", "place", "neighbour", "traits"],
    name: str | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Dialogue:
    """Returns one of the five dialogues of this file's head, about the creature `name`.

    Raises `BestiaryError` where the scene has no answer: a creature that is not there, or no neighbour.

    >>> from vitrail.bestiary import sample_scene
    >>> ask(sample_scene("single", seed=0, species="tavel"), "presence", "murlo")
    Dialogue(prompt='is there a murlo?', words=(Word(text='no', kind='answer', creatures=()),))
    """
    known = _names(scene, names)
    if about == "picture":
        return Dialogue(QUESTION, _whole(scene, known))
    subject = species(name or "").name
    if about == "presence":
        there = tuple(number for number, other in enumerate(known) if other == subject)
        answer = Word("yes" if there else "no", "answer", there)
        return Dialogue(f"is there {_article(subject)} {subject}?", (answer,))
    if subject not in known:
        raise BestiaryError(f"there is no {subject} in this scene of {', '.join(known) or 'no creatures'}")
    number = known.index(subject)
    if about == "traits":
        return Dialogue(f"describe the {subject}.", _described(scene, number, subject))
    if len(known) != 2:
        raise BestiaryError(f"a place or a neighbour is asked for in scenes of two creatures, not {len(known)}")
    other = 1 - number
    relation = _relation(scene, number, other)
    if about == "place":
        called = Word(known[other], "name", (other,))
        return Dialogue(
            f"where is the {subject}?", (*_related(relation, (number, other)), Word("the", "function"), called)
        )
    words = " ".join(word.text for word in _related(OPPOSITE[relation], ()))
    return Dialogue(f"what is {words} the {subject}?", _noun(scene, known, other))


def held_out(kind: str = "pair", count: int = 500, seed: int = HELD_OUT) -> list[Scene]:
    """Returns scenes that no training has seen: of `HELD_OUT` to judge on, of `HELD_OUT + 1` to choose on."""
    data = Bestiary(kind, count=count, seed=seed)
    return [data.scene(index) for index in range(count)]


def _names(scene: Scene, names: Sequence[str] | None) -> tuple[str, ...]:
    found = tuple(names) if names is not None else tuple(creature.species or "" for creature in scene.creatures)
    if "" in found or len(found) != len(scene.creatures):
        raise BestiaryError("a creature of this scene is of no species: give a name for each by names=")
    return found


def _whole(scene: Scene, names: Sequence[str]) -> tuple[Word, ...]:
    if not 1 <= len(names) <= 2:
        raise BestiaryError(f"the captioner speaks of one or two creatures, not {len(names)}")
    if len(names) == 1:
        return _noun(scene, names, 0)
    first = 0 if _relation(scene, 0, 1) in ("left", "above") else 1
    relation = _related(_relation(scene, first, 1 - first), (first, 1 - first))
    return (*_noun(scene, names, first), *relation, *_noun(scene, names, 1 - first))


def _noun(scene: Scene, names: Sequence[str], number: int) -> tuple[Word, ...]:
    """Returns article, the trait that tells this species from its nearest sibling (where it is drawn), and name."""
    name = names[number]
    trait = _trait(scene, number, difference(name, siblings(name)[0])[0])
    called = (*trait, Word(name, "name", (number,)))
    return (Word(_article(called[0].text)), *called)


def _described(scene: Scene, number: int, name: str) -> tuple[Word, ...]:
    first, second = (_trait(scene, number, slot) for slot in species(name).family.diagnostic)
    joined = (*first, Word("and"), *second) if first and second else first + second
    if not joined:
        raise BestiaryError(f"creature {number} shows no part that could be described")
    return (Word("it"), Word("is"), *joined)


def _trait(scene: Scene, number: int, slot: str) -> tuple[Word, ...]:
    text = TRAITS.get((slot, scene.creatures[number].parts.get(slot, "")))
    return (Word(text, "trait", (number,)),) if text is not None else ()


def _relation(scene: Scene, first: int, second: int) -> str:
    """Returns where the middle of the first creature's box lies, seen from the second's, along the longer way."""
    a, b = (extent(scene.creatures[number]) for number in (first, second))
    right, up = a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]
    if abs(right) > abs(up):
        return "right" if right > 0 else "left"
    return "above" if up > 0 else "below"


def _related(relation: str, creatures: tuple[int, ...]) -> tuple[Word, ...]:
    word = Word(relation, "relation", creatures)
    return (word, Word("of")) if relation in ("left", "right") else (word,)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# -- the model -------------------------------------------------------------------------------------------------------


def load(folder: str | Path = FOLDER) -> tuple[Any, Any]:
    """Returns the captioner (float32, evaluation mode) and its processor, without a network.

    They are plain `LlavaForConditionalGeneration` and `LlavaProcessor`. Raises `MissingPackageError` without
    transformers, `CheckpointError` for a folder without weights.

    >>> model, processor = load()
    >>> type(model).__name__
    'LlavaForConditionalGeneration'
    """
    transformers = _transformers()
    if not (Path(folder) / "model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds no model.safetensors; train it by `python -m training.captioner`")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
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
    """Returns the weights of timm's `VisionTransformer` under the names of Hugging Face's `ViTModel`.

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
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    for end in ("weight", "bias"):
        weights[f"embeddings.patch_embeddings.projection.{end}"] = found[f"patch_embed.proj.{end}"]
        weights[f"layernorm.{end}"] = found[f"norm.{end}"]
        for block in range(sum(name.endswith("attn.qkv.weight") for name in found)):
            stacked = found[f"blocks.{block}.attn.qkv.{end}"].chunk(3)
            for letter, part in zip("qkv", stacked, strict=True):
                weights[f"layers.{block}.attention.{letter}_proj.{end}"] = part
            for timm_name, name in plain.items():
                weights[f"layers.{block}.{name}.{end}"] = found[f"blocks.{block}.{timm_name}.{end}"]
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
    """Draws each scene without each creature and each visible part in turn, and reads the logits of its words.

    The answer is that of `dialogue`, teacher-forced, so that every picture is asked for the same words.

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
    pictures = (asked.pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    keep = torch.tensor(places, dtype=torch.long)
    run = partial(model, use_cache=False, logits_to_keep=keep)
    return torch.cat(
        [run(input_ids=ids.expand(len(some), -1), pixel_values=some).logits.float() for some in pictures.split(batch)]
    )


def _token(word: str) -> int:
    if word not in VOCABULARY:
        raise BestiaryError(f"{word!r} is not among the {len(VOCABULARY)} words of the captioner")
    return VOCABULARY.index(word)
