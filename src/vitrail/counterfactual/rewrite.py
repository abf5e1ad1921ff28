"""Class rewriting: change a photograph until the model names another class, and keep the file that proves it.

    x ← x − η ∇ₓ (l_source − l_target)        (Cui, Fan, Chen, "pixel rewriting")

Within a budget, which the paper does not have, the default is `x ← x + η ∇ₓ log p_target`, see `step_rule`.

**What it is for**: auditing one's own model. If a change that no eye finds turns a zebra into a bull mastiff, then
what the model reads in those pixels is not what people read, and its maps before and after show where. The numbers
to quote are the PSNR and the largest change at which the answer turns.

**The file counts.** At each step the pixels are rounded to 8 bits and pass through the model's own preprocessing, just
as the saved file will: the curves are those of files, and a file decides when to stop. The gradient is taken at the
unrounded pixels, where a step of less than half a level is seen too, through the crop and the resizing as the linear
map that they are but for rounding. The last picture is encoded, decoded and classified once more before success is
reported.

**Compared with FGSM and PGD.** Targeted FGSM takes one step of the whole budget along the sign of ∇ log p_target, PGD
many small ones within it and to the last of them, on pixels that are rounded only at the end. The default within an L∞
budget steps as PGD does, but through the photograph's own resizing, and only until a file reaches the class, which
leaves it nearer to the photograph. `benchmarks/equal_budget.py` compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..errors import ImageError, ModelError, NonFiniteError, OptionError, TargetError
from ..explain import explain
from ..images import PictureLike, read_image
from ..models import wrap
from ..models.readiness import refuse_training
from ..models.vision_model import VisionModel
from ..objectives import evaluate_objective
from ..outputs import Output
from .resample import linear_view
from .rewrite_result import Rewrite, encode, similarity
from .step_rule import StepRule, project, step_rule, to_levels

__all__ = ["PLACES", "Progress", "classify", "rewrite", "takes_for", "unresized"]

PLACES = ("photograph", "input")


@dataclass(frozen=True)
class Progress:
    """Says where the search stands: the step, of at most `steps`, and the probabilities of both classes."""

    step: int
    steps: int
    source: float
    target: float


@torch.inference_mode(False)
def rewrite(
    model: VisionModel | nn.Module,
    image: PictureLike | Tensor,
    *,
    target: str | int,
    source: str | int | None = None,
    until: float | int = 0.9,
    objective: str | None = None,
    variant: str | None = None,
    budget: float | int | None = None,
    norm: str = "linf",
    steps: int = 500,
    step: float | int | None = None,
    at: str = "photograph",
    method: str | None = "complete",
    gradient: str | None = None,
    progress: Callable[[Progress], Any] | None = None,
) -> Rewrite:
    """Changes a photograph, at its own resolution, until the model takes it for the target class.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`, with its preprocessing; a bare module is wrapped.
        image: a path, PIL image or uint8 array. (Not a float tensor: the result is an 8-bit file.)
        target: the class to reach, by name or index.
        source: the class to leave; default: the predicted one.
        until: the target's probability at which to stop, between 0 and 1.
        objective: what goes down: "difference" (l_source − l_target, the paper's) or "log_probability"
            (−log p_target); default: the difference, and within a budget the log-probability.
        variant: "gradient" (steps along the raw gradient, scaled to a largest change of `step`), "sign" (along its
            sign) or "adam"; default: gradient, and within an L∞ budget sign.
        budget: the largest change allowed in all, for pixels from 0 to 1 (as in 8/255), or None.
        norm: the budget's norm: "linf" or "l2".
        steps: how many to take at most.
        step: the largest change of a pixel in one step, for pixels from 0 to 1; default: 0.01 for "gradient", half a
            level of 255 else; within a budget a quarter of it, in its norm (where the variant fits the norm).
        at: "photograph" (its own resolution) or "input": only what the model sees of it is rewritten, at the model's
            input size, as in the paper. That picture is classified as it is (`unresized`), without another resizing.
        method: of the signed maps before and after (see `vitrail.list_methods`), or None for no maps.
        gradient: the gradient mode of those maps; default: the method's own.
        progress: called at each step with a `Progress`.

    Returns:
        A `Rewrite`. Nothing is random: the same call gives the same picture. Where the target cannot be reached,
        `reached` is False, and the picture is the best that was found.

    Raises:
        TargetError: for a target that is the source, and for a class that is not the model's.
        OptionError: for numbers out of range.
        ModelError: for a model without preprocessing or in training mode.
        ImageError: for what is no picture.
        OutputKindError: for a model that gives scores or an embedding.

    Example:
        >>> import vitrail
        >>> from vitrail.bestiary import render, sample_scene
        >>> picture = render(sample_scene("single", seed=23, species="tavel")).image
        >>> result = rewrite(vitrail.load("bestiary"), picture, target="borrin", until=0.8)
        >>> result.reached, result.picture.shape, result.similarity.psnr > 30
        (True, (96, 96, 3), True)
    """
    if not isinstance(model, VisionModel):
        model = wrap(model)
    if model.preprocess is None:
        raise ModelError(
            f"{model.name} comes without preprocessing, so no file can be classified: give wrap(…, preprocess=…)"
        )
    if model.preprocess.channels != 3:
        raise ModelError(f"{model.name} takes pictures of one channel, and only colour pictures can be rewritten")
    _check(until, steps)
    how = step_rule(objective, variant, step, budget, norm)
    if at not in PLACES:
        raise OptionError(f"at={at!r} is not one of {', '.join(PLACES)}")
    refuse_training(model.module)
    if isinstance(image, Tensor):
        raise ImageError("a tensor is no file of 8 bits: give a path, a PIL image or a uint8 array")
    opened = read_image(image)
    photograph = np.array(model.preprocess.view(opened) if at == "input" else opened)
    model = unresized(model) if at == "input" else model
    first, output = classify(model, photograph), _output(model)
    if output.link is None:
        raise output.refusal("rewriting, which goes on until a probability is reached,")
    goal = _class(model, target, len(first))
    start = int(first.argmax()) if source is None else _class(model, source, len(first))
    if start == goal:
        why = "which the model predicts already" if source is None else "which is the source as well"
        raise TargetError(f"target {goal} is {model.class_name(goal)}, {why}; name another class")

    search = _Search(model, photograph, start, goal, how, budget, norm, output)
    curves: list[tuple[float, float]] = []
    best, picture, reason = 0, photograph, f"{steps} steps taken"
    for number in range(steps + 1):
        seen = search.see()
        curves.append(seen)
        if progress is not None:
            progress(Progress(number, steps, *seen))
        if number == 0 or seen[1] > curves[best][1]:
            best, picture = number, search.picture
        if seen[1] >= until and search.is_target:
            best, picture, reason = number, search.picture, "reached"
            break
        if number < steps and not search.advance():
            reason = f"no gradient is left after {number} steps"
            break

    # The proof: a file's bytes, read and classified as any other file.
    reached = takes_for(model, encode(picture), goal, until)[0]
    names = (model.class_name(start), model.class_name(goal))
    return Rewrite(
        original=photograph,
        picture=picture,
        source=start,
        target=goal,
        until=until,
        reached=reached,
        reason=reason if budget is None or reached else f"{reason}, budget {norm} {budget:.4g}",
        step=best,
        curves=np.array(curves),
        similarity=similarity(photograph, picture),
        names=names,
        before=_maps(model, photograph, start, goal, method, gradient),
        after=_maps(model, picture, start, goal, method, gradient),
        metadata={
            "model": model.name,
            **model.metadata,
            **output.record(),
            "at": at,
            "objective": how.objective,
            "variant": how.variant,
            "step_size": how.step,
            "step_norm": "l2" if how.euclidean else "linf",
            "steps": steps,
            "budget": budget,
            "norm": norm,
        },
    )


def unresized(model: VisionModel) -> VisionModel:
    """Returns the same model for pictures of its own input size, which it takes as they are.

    Raises:
        ModelError: for a model without preprocessing.
    """
    if model.preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so no file can be classified")
    return replace(model, preprocess=model.preprocess.squashed())


def classify(model: VisionModel, image: PictureLike) -> Float[Tensor, " classes"]:
    """Returns the logits of one picture (path, bytes, PIL image, uint8 array) through the model's own preprocessing.

    Raises:
        ModelError: for a model without preprocessing.
        NonFiniteError: for logits that are NaN or infinite.
    """
    if model.preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so no file can be classified")
    with torch.no_grad():
        logits = model.logits(model.preprocess(read_image(image))[None])[0]
    return _finite(logits.detach().cpu().double())


def takes_for(model: VisionModel, image: Any, index: int, until: float | int) -> tuple[bool, float]:
    """Returns whether the model takes a picture for a class with a probability of at least `until`, and that
    probability.

    Raises:
        OutputKindError: for a model whose numbers are no classes.
        ModelError, NonFiniteError: as `classify`.
    """
    logits, output = classify(model, image), _output(model)
    share = output.probabilities(logits)[index]
    return bool(share >= until) and bool(output.wins(logits, index)), float(share)


def _output(model: VisionModel) -> Output:
    assert model.preprocess is not None
    return model.kind_for(torch.zeros(1, 3, *model.preprocess.size))


class _Search:
    """The unrounded pixels on their way, and the picture of 8 bits that they stand for."""

    def __init__(
        self,
        model: VisionModel,
        photograph: UInt8[np.ndarray, "height width 3"],
        source: int,
        target: int,
        how: StepRule,
        budget: float | int | None,
        norm: str,
        output: Output,
    ) -> None:
        assert model.preprocess is not None
        self.model, self.preprocess, self.classes = model, model.preprocess, (source, target)
        self.how, self.budget, self.norm, self.output = how, budget, norm, output
        self.levels = torch.from_numpy(photograph).permute(2, 0, 1).contiguous()
        self.original = self.levels.float() / 255
        self.pixels = self.original.clone()
        self.view = linear_view(self.preprocess, *photograph.shape[:2])
        self.adam = torch.optim.Adam([self.pixels], lr=how.step) if how.variant == "adam" else None
        self.picture, self.is_target = photograph, False
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (self.preprocess.mean, self.preprocess.std))
        self.gradient = torch.zeros_like(self.pixels)

    def see(self) -> tuple[float, float]:
        """Classifies the rounded image, takes the gradient at the unrounded one; returns the two probabilities."""
        source, target = self.classes
        rounded = to_levels(self.pixels, self.levels, self.budget, self.norm)
        self.picture = rounded.permute(1, 2, 0).contiguous().numpy()
        answer = classify(self.model, self.picture)
        probabilities = self.output.probabilities(answer)
        view = ((self.view(self.pixels) - self.mean) / self.std).requires_grad_()
        with torch.enable_grad():
            logits = self.model.logits(view[None])[0].cpu()
            loss = logits[source] - logits[target]
            if self.how.objective == "log_probability":
                goal = torch.tensor([target])
                loss = -evaluate_objective("log_probability", logits[None], goal, None, output=self.output)[0][0]
            (slope,) = torch.autograd.grad(loss, view)
        self.gradient = self.view.back(slope.float().cpu() / self.std)
        self.is_target = bool(self.output.wins(answer, target))
        return probabilities[source].item(), probabilities[target].item()

    def advance(self) -> bool:
        """Takes one step, back into the budget; returns False where no gradient is left."""
        largest = self.gradient.abs().max()
        if not bool(largest.isfinite()):
            raise NonFiniteError("the gradient holds NaN or infinity: run the model in float32")
        if largest == 0:
            return False
        if self.adam is not None:
            # Divided by its largest value, as for the raw gradient: Adam's own small number must not swallow it.
            self.pixels.grad = self.gradient / largest
            self.adam.step()
        else:
            direction = self.gradient.sign() if self.how.variant == "sign" else self.gradient / largest
            if self.how.euclidean:
                direction /= direction.norm()
            self.pixels -= self.how.step * direction
        self.pixels.copy_(project(self.pixels, self.original, self.budget, self.norm))
        return True


def _maps(model: VisionModel, picture: Any, source: int, target: int, method: str | None, gradient: str | None) -> Any:
    if method is None:
        return None
    return explain(model, picture, [[source, target]], method=method, gradient=gradient)


def _class(model: VisionModel, wanted: str | int, count: int) -> int:
    if isinstance(wanted, bool):
        raise TargetError(f"{wanted!r} is no class: give a name or an index")
    return model.class_index(wanted, count)


def _finite(logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    if not bool(logits.isfinite().all()):
        raise NonFiniteError("the logits hold NaN or infinity: check the image and the weights; try float32")
    return logits


def _check(until: float | int, steps: int) -> None:
    if not 0 < until < 1:
        raise OptionError(
            f"until={until:g} is no probability to reach: give a number between 0 and 1, without the ends"
        )
    if steps < 1:
        raise OptionError(f"steps={steps} must be 1 or more")
