"""explain_generation(): why did it say that word? One forward pass for all words, one backward pass for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from inspect import Parameter, signature
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attention.differentiate import DifferentiatedAttention
from ..attention.gradient_modes import GradientMode, check_gradient_mode
from ..attention.record import CallRecorder
from ..attention.tap import eager
from ..errors import NonFiniteError, NoSignalError, OptionError, UnsupportedAttentionError, UnsupportedOperationError
from ..images import PictureLike
from ..methods import MethodInfo, find_method
from ..methods.context import Progress
from ..models.readiness import model_errors, refuse_training
from ..objectives import Objective, evaluate_objective, objective_name
from .decoder import Calls, GenerationRow, GenerationTap, Relevance, TextVisitor, rollout_rows
from .explanation import GenerationExplanation
from .loading import VisionLanguageModel, as_vlm, text_model_of
from .question import Against, Question, prepare
from .tower import Tower, follow_tower
from .views import Places, Tiles, pictures_of, places_of, put_together

__all__ = ["explain_generation"]

METHODS = {"complete": "complete", "gae": "positive", "absolute": "absolute", "rollout": "", "raw": ""}


@torch.inference_mode(False)
def explain_generation(
    model: VisionLanguageModel | nn.Module,
    image: PictureLike | Sequence[PictureLike] | None = None,
    prompt: str | None = None,
    *,
    answer: str | int | None = None,
    processor: Any = None,
    inputs: Mapping[str, Any] | None = None,
    positions: Sequence[int] | int | None = None,
    against: Against = None,
    objective: Objective | None = None,
    method: str = "complete",
    gradient: GradientMode | str | None = None,
    vision: Literal["patches", "tokens"] = "patches",
    tiles: Tiles = None,
    max_new_tokens: int = 64,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    each: Callable[[GenerationExplanation], None] | None = None,
    streamer: Any = None,
) -> GenerationExplanation:
    """Explains which parts of an image, and which words before it, argue for each word that a model writes.

    Prompt and answer go through the model once, in its own attention kernels and without a change to it. For the token
    at position t the row of relevance starts at t − 1, which predicted it, and streams back through the text model to
    the image tokens, and on through projector and vision tower to the patches.

    Args:
        model: from `load_vlm`, or a model of Hugging Face that turns images and text into text (LLaVA, LLaVA-NeXT,
            LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, PaliGemma, Gemma 3, Idefics3, SmolVLM, InternVL, BLIP-2,
            InstructBLIP, Mistral 3, Pixtral, Florence-2 …).
        image: a path, PIL image or uint8 array, or a list of them, which the processor prepares with `prompt`.
        prompt: what is asked; put into the form of the model's dialogues where it does not hold the image's mark.
        answer: what is explained; None: the model's own answer (greedy). With `inputs`, also the number of tokens at
            the end of `input_ids` that are the answer.
        processor: the model's, where `model` has none.
        inputs: what the processor gives, the answer's tokens at the end of `input_ids` (of `decoder_input_ids` for an
            encoder with a decoder).
        positions: indices in `input_ids` of the tokens that are explained (with an encoder, in both sequences, the
            encoder's first); negative from the end. Default: the whole answer without special tokens.
        against: a token id or a word to compare with, for all tokens or one for each; the objective is then the
            difference of the two logits.
        objective: as in `vitrail.explain`, of the logits at the position that predicts the token.
        method: complete, gae, absolute, rollout or raw.
        gradient: "full", "leaf" or "libra"; default: the method's own.
        vision: "patches" (default) follows the image tokens through the vision part to the patches; "tokens" stops at
            the text model's input.
        tiles: (rows, columns) of the tiles that an image is cut into, or one pair for each image, where neither the
            inputs nor the tiles themselves tell.
        max_new_tokens: the longest answer of the model's own.
        progress: called with (what is being done, tokens done, tokens in all).
        stop: asked after each token; where it answers True, the tokens that are done are returned, and a note says so.
        each: given the explanation of the tokens so far after each token but the last; by rollout and raw, which take
            all at once, never.
        streamer: of Hugging Face, given the model's own answer while it is written (at its end where the model
            searches by beams).

    Returns:
        A `GenerationExplanation`: `image_scores` are (tokens, rows, cols) for each image, `text_scores` (tokens,
        sequence), `grounding` (tokens, 3) the shares of image, prompt and earlier answer.

    Raises:
        VitrailError: one subtype per cause, see `vitrail.errors`; never an empty or silently wrong map.

    Example:
        >>> model = load_vlm("bestiary/captioner")  # doctest: +SKIP
        >>> ex = explain_generation(model, "scene.png", "what is in the picture?")  # doctest: +SKIP
        >>> ex.question(2)  # doctest: +SKIP
        'tavel 97.3 %'
    """
    vlm = as_vlm(model, processor)
    info, mode = _settled(method, gradient, against, objective, vision)
    refuse_training(vlm.module)
    text_model_of(vlm.module, 0, 0)  # of a model of text alone, nothing else is worth saying
    question = prepare(vlm, image, prompt, answer, inputs, positions, against, max_new_tokens, streamer)
    text = text_model_of(vlm.module, question.encoder, len(question.ids))
    marked = _marked(vlm.module, question)
    places = places_of(vlm.module.config, question.inputs, tiles, _runs(marked))

    def run(given: Mapping[str, Any]) -> Any:
        return vlm.module(**_arguments(vlm.module, given))

    named = vlm.name or type(vlm.module).__name__
    with model_errors(named, vlm.module, images=False):
        tower = follow_tower(vlm.module, text.entrance, run, question.inputs, places, marked)
    if vision == "patches" and tower.graph is None:
        raise UnsupportedAttentionError(
            f"the image tokens cannot be followed to the patches ({tower.reason}); vision='tokens' stops at the image "
            "tokens, and works"
        )
    stops = replace(tower, graph=None) if vision == "tokens" else tower
    label = objective_name(objective, against)
    grids = tower.token_grids if vision == "tokens" else tower.patch_grids
    placed = all(
        any(grid.cell[0] and places.views[grid.view].image == i for grid in grids) for i in range(places.images)
    )
    about: dict[str, Any] = {
        "sequence": question.texts,
        "roles": _roles(question, tower.positions),
        "prompt": question.prompt,
        "answer": question.reply,
        "pictures": _pictures(vlm, question, places),
        "method": info.name,
        "objective": label,
        "signed": info.signed,
        "gradient": mode if info.uses_gradient else None,
        "vision": vision,
        "model": vlm.name,
        "versions": {package: version(package) for package in ("vitrail", "torch", "transformers")},
    }

    def explained(answers: Answers, ended: bool = False) -> GenerationExplanation:
        logits, found, replaced = answers
        notes, asked, count = list(question.notes), question.first(len(found)), len(question.positions)
        if ended and len(found) < count:
            notes.append(f"Stopped after {len(found)} of {count} tokens.")
        notes += tower.notes if vision == "patches" else ()
        if not placed:
            notes.append(
                "The image tokens have no place in the image that is known (learnt queries): the map is one row."
            )
        if any(replaced):
            notes.append(f"A logit is zero or negative, where {label} means nothing: the logits' difference is shown.")
        scores = torch.stack([one.image if one.patches is None else one.patches for one in found]).cpu()
        at_text = torch.stack([one.text for one in found]).cpu()
        at_image = torch.stack([one.image for one in found]).cpu()
        at_text[:, tower.positions] = 0
        return GenerationExplanation(
            tokens=tuple(question.texts[at] for at in asked.positions),
            positions=asked.positions,
            image_scores=put_together(scores, grids, places),
            text_scores=at_text,
            grounding=_grounding(at_text, at_image, question.answer),
            logits=logits[: len(found)].cpu(),
            target=asked.target,
            against=asked.against,
            against_tokens=_names(vlm, asked.against),
            notes=tuple(notes),
            **about,
        )

    show = None if each is None else lambda answers: each(explained(answers))
    with model_errors(named, vlm.module, images=False):
        answers = _ask(
            vlm.module, question, stops, METHODS[info.name], info.name, mode, objective or label, progress, stop, show
        )
    return explained(answers, ended=True)


def _settled(
    method: str, gradient: str | None, against: Against, objective: Objective | None, vision: str
) -> tuple[MethodInfo, GradientMode]:
    info = find_method(method, {})
    if info.name not in METHODS:
        raise UnsupportedOperationError(
            f"method {method!r} is made for classifiers of images; for generated words there are {', '.join(METHODS)}"
        )
    if vision not in ("patches", "tokens"):
        raise OptionError(f"vision={vision!r} is neither 'patches' nor 'tokens'")
    if not info.class_specific and (against is not None or objective is not None):
        raise OptionError(
            f"{info.name} follows attention alone, whatever the word: against= and objective= mean nothing to it"
        )
    if not info.uses_gradient and gradient is not None:
        raise OptionError(f"gradient={gradient!r} changes nothing for {info.name}, which uses no gradient")
    objective_name(objective, against)
    if gradient == "gim":
        raise OptionError("gradient='gim' is not defined for generated words: use 'full', 'leaf' or 'libra'")
    return info, check_gradient_mode(gradient or info.gradient)


# -- the passes ------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """The logits at the positions that predict the tokens, what the rows of the first tokens come to, and which of them
    fell back to a plain difference.
    """

    logits: Float[Tensor, "questions vocabulary"]
    found: list[Relevance]
    replaced: list[bool]


def _ask(
    module: nn.Module,
    question: Question,
    tower: Tower,
    rule: str,
    method: str,
    mode: GradientMode,
    objective: Objective,
    progress: Progress | None,
    stop: Callable[[], bool] | None,
    each: Callable[[Answers], None] | None,
) -> Answers:
    text, calls = text_model_of(module, question.encoder, len(question.ids)), Calls()
    if not rule:
        recorder = CallRecorder()
        with torch.no_grad():
            logits = _forward(module, question, TextVisitor(recorder, text, tower, calls), "full")
        readout, raw = _readout(question, logits), method == "raw"
        rows = rollout_rows(recorder.layers, calls, text, tower, readout, only_last=raw)
        for number, one in enumerate(rows):
            _check(logits[number], one, question.positions[number])
        return Answers(logits, rows, [False] * len(readout))
    row = GenerationRow(rule, tower, calls)
    attention = DifferentiatedAttention(row, mode, branches=True)  # an encoder and its decoder are branches, too
    visitor = TextVisitor(attention, text, tower, calls)
    found, replaced = [], []
    with torch.enable_grad():
        logits = _forward(module, question, visitor, mode)
        readout = _readout(question, logits)
        count, vocabulary = logits.shape
        unknown = [] if question.against is None else [n for n in question.against.tolist() if not 0 <= n < vocabulary]
        if unknown:
            raise OptionError(
                f"against={unknown[0]} is none of the model's {vocabulary} tokens: give 0 to {vocabulary - 1}"
            )
        for number in range(count):
            target = question.target[number : number + 1].to(logits.device)
            other = None if question.against is None else question.against[number : number + 1].to(logits.device)
            value, fell_back = evaluate_objective(objective, logits[number : number + 1], target, other)
            row.begin(readout[number : number + 1])
            attention.backward(value.sum(), keep=number + 1 < count)
            found.append(row.result())
            replaced.append(bool(fell_back.any()))
            _check(logits[number].detach(), found[-1], question.positions[number])
            if each is not None and number + 1 < count:
                each(Answers(logits.detach(), found, replaced))
            if progress is not None:
                progress("tokens", number + 1, count)
            if stop is not None and number + 1 < count and stop():
                break
    return Answers(logits.detach(), found, replaced)


def _forward(
    module: nn.Module, question: Question, visitor: TextVisitor, mode: GradientMode
) -> Float[Tensor, "questions vocabulary"]:
    """The logits at the positions that predict the tokens, in float32 (float64 of a model in float64)."""
    given = _arguments(module, question.inputs)
    wanted = question.predicting.to(given["input_ids"].device)
    if _takes(module, "logits_to_keep"):
        unique, place = wanted.unique(return_inverse=True)
        given["logits_to_keep"] = unique
    else:
        place = wanted
    tap = GenerationTap(visitor, mode)
    with eager(), visitor.follows(tap), tap:
        logits = module(**given).logits
    visitor.check()
    chosen = logits[0, place]
    return chosen if chosen.dtype == torch.float64 else chosen.float()


def _arguments(module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(inputs)
    if _takes(module, "use_cache", anyhow=True):
        given["use_cache"] = False
    return given


def _readout(question: Question, logits: Tensor) -> Float[Tensor, "questions sequence"]:
    rows = logits.new_zeros(len(question.positions), len(question.ids))
    rows[torch.arange(len(rows)), torch.tensor(question.positions) - 1] = 1
    return rows.detach()


# -- what is made of them --------------------------------------------------------------------------------------------


def _marked(module: nn.Module, question: Question) -> Int[Tensor, " image_tokens"] | None:
    """Where the sequence holds the token that stands for an image; None where the configuration names none."""
    config: Any = module.config
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return (question.inputs["input_ids"][0] == token).nonzero()[:, 0].cpu()
    return None


def _runs(positions: Tensor | None) -> list[int]:
    """The lengths of the runs of positions that follow each other."""
    if positions is None or not len(positions):
        return []
    starts = (positions.diff() != 1).nonzero()[:, 0] + 1
    return [len(part) for part in positions.tensor_split(starts)]


def _check(logits: Float[Tensor, " vocabulary"], one: Relevance, at: int) -> None:
    """Refuses what was found for the token at a position, where it is no explanation of it."""
    parts = [one.text, one.image, *(() if one.patches is None else (one.patches,))]
    if not all(bool(part.isfinite().all()) for part in (logits, *parts)):
        raise NonFiniteError(
            f"the logits or scores of the token at position {at} hold NaN or infinity: check the weights; run the "
            "model in float32"
        )
    if bool((one.text[at:] != 0).any()):
        raise UnsupportedAttentionError(
            f"position {at - 1}, which predicts the token at {at}, looks at that token and later ones: the model "
            "reads the answer as a part of the prompt; give token_type_ids that mark the answer, or answer= as text"
        )
    if one.patches is not None and bool(one.image.any()) and not bool(one.patches.any()):
        raise NoSignalError(
            f"nothing of the token at position {at} comes through the vision part to the patches: without its "
            "attention, learnt queries lead to none; vision='tokens' stops in front of it"
        )
    if not any(bool(part.any()) for part in parts):
        raise NoSignalError(f"every score of the token at position {at} is zero: nothing before it moves the objective")


def _grounding(
    text: Float[Tensor, "questions sequence"], image: Float[Tensor, "questions image_tokens"], answer: int
) -> Float[Tensor, "questions three"]:
    """The shares of |relevance| at the text model's input: on image, prompt and earlier answer."""
    parts = [one.abs().sum(dim=1) for one in (image, text[:, :answer], text[:, answer:])]
    sizes = torch.stack(parts, dim=1)
    return sizes / sizes.sum(dim=1, keepdim=True)


def _roles(question: Question, image: Int[Tensor, " image_tokens"]) -> tuple[str, ...]:
    held = set(image.tolist())
    return tuple(
        "image" if at in held else "prompt" if at < question.answer else "answer" for at in range(len(question.ids))
    )


def _names(vlm: VisionLanguageModel, tokens: Tensor | None) -> tuple[str, ...] | None:
    if tokens is None:
        return None
    decode = getattr(vlm.tokenizer, "decode", None)
    return tuple(f"[{one}]" if decode is None else decode([one]) for one in tokens.tolist())


def _pictures(vlm: VisionLanguageModel, question: Question, places: Places) -> tuple[Tensor, ...] | None:
    """The images as the model was shown them, where its processor says what white and black are."""
    images = getattr(vlm.processor, "image_processor", None)
    mean, std = (getattr(images, name, None) for name in ("image_mean", "image_std"))
    pixels = question.inputs["pixel_values"]
    if mean is None or std is None or (pixels.dim() > 2 and pixels.shape[-3] != 3):
        return None
    patch = getattr(images, "patch_size", None)
    return pictures_of(pixels, places, mean, std, patch if pixels.dim() == 2 else None)


def _takes(module: Any, name: str, *, anyhow: bool = False) -> bool:
    """Returns whether a model's forward names an argument, or (`anyhow`) takes any by name."""
    parameters = signature(module.forward).parameters
    return name in parameters or (anyhow and any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()))
