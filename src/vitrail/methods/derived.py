"""Maps made of another method's maps: VAR, which holds several classes against each other patch by patch, and MDA,
which orders patches by what the model answers.

VAR (Walter, Vreeken, Fischer 2026): of the classes C, a patch j belongs to the one whose attribution is the largest.

    p_c(j)   = softmax over C of T |A_c(j)| / max |A|
    map_t(j) = A_t(j) p_t(j), where p_t(j) − 1/|C| > τ, else 0

MDA (Walker, Jha, Ewetz 2025): the order of patches that does best in insertion and deletion, found greedily, and sizes
that fall along it as the model's answer does.

    first     from a blurred image, again and again the patch that raises the score the most, until nine tenths are back
    the rest  from an image of nothing, again and again the patch that raises it the least; the last comes first
    sizes     of the k-th of n patches (1/pixels + (n − k)/n) (f_{k−1} − f_k), f the convex curve nearest to the mean of
              both curves; patches of one size keep their order by a millionth of the largest
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.visitors import Replacement
from ..errors import NoSignalError, OptionError
from ..targets import Targets
from .block_inputs import smoothed
from .context import AttributionContext
from .registry import METHODS, MethodInfo, find_method, register_method

__all__ = ["falling_curve", "mda", "var"]


def _base(name: str, option: str) -> MethodInfo:
    """Returns the method that the map is made of.

    Raises:
        OptionError: for one that is the same for every class, or gives pixels.
    """
    info, derived = find_method(name, {}), (var, mda)
    able = [
        one.name
        for one in METHODS.values()
        if one.class_specific and one.level == "patch" and one.function not in derived
    ]
    if info.name not in able:
        raise OptionError(f"{option}={name!r} must give each class a map of the patches: {', '.join(able)}")
    return info


def _maps_of(
    context: AttributionContext, info: MethodInfo, classes: Int[Tensor, "images targets"]
) -> Float[Tensor, "images targets tokens"]:
    """Returns the method's own maps of the logits of these classes."""
    run = replace(
        context,
        target=Targets(classes.cpu(), nested=True),
        against=None,
        objective="logit",
        start_layer=info.first_layer(context.layout.layers),
        by_difference=None,
        competes=False,
    )
    return info.function(run)


@register_method(
    "var",
    aliases=("attribution_distribution",),
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="2F 3B",
    reference="Walter, Vreeken, Fischer 2026",
    gradient="libra",
    objectives=("logit", "difference"),
)
def var(
    context: AttributionContext,
    *,
    base: str = "complete",
    classes: int = 2,
    temperature: float = 10.0,
    threshold: float = 0.01,
) -> Float[Tensor, "images targets tokens"]:
    """VAR: the class's map where it is larger than those of other classes, weighted by its share of them.

    The others are the `classes` most probable ones and the least probable, or the one that `against` names. `base` is
    the method whose maps are compared. A share of up to `threshold` above chance counts as none.
    """
    if classes < 1 or not temperature > 0 or not 0 <= threshold < 1:
        raise OptionError(
            f"classes={classes} must be 1 or more, temperature={temperature} above 0, and threshold={threshold} at "
            "least 0 and below 1"
        )
    info, layout = _base(base, "base"), context.layout
    against = context.against
    if context.objective != ("logit" if against is None else "difference"):
        raise OptionError("var holds logits of several classes against each other by itself: leave objective= out")
    context.forward(Replacement({}))
    count = context.logits.shape[1]
    if context.targets.functions is not None or count < 2:
        raise OptionError("var compares classes: with target= a function, or a single number, use its base")
    targets = context.targets.index.to(context.logits.device)
    if against is not None:
        compared = torch.stack([targets, against.index.to(targets)], dim=2)
    else:
        rows = [_compared(context.logits, one, min(classes, count - 1)) for one in targets.unbind(1)]
        compared = torch.stack(rows, dim=1)
    maps = _maps_of(context, info, compared.flatten(1)).unflatten(1, compared.shape[1:])
    size = maps.abs()
    largest = layout.as_grid(size.flatten(1, 2)).unflatten(1, compared.shape[1:]).amax(dim=(2, 3, 4))
    shares = (temperature * size / largest.clamp(min=torch.finfo(size.dtype).tiny)[..., None, None]).softmax(dim=2)
    own = shares[:, :, 0]
    found = maps[:, :, 0] * own * (own - 1 / compared.shape[2] > threshold)
    nowhere = (layout.as_grid(found) == 0).all(dim=(2, 3)).nonzero()
    if len(nowhere):
        image, number = nowhere[0].tolist()
        raise NoSignalError(
            f"the map of class {int(targets[image, number])} for image {image} is nowhere larger than those of the "
            f"{compared.shape[2] - 1} classes that it is compared with, so nothing is left of it: use its base, "
            f"method={base!r}, or threshold=0 and fewer classes"
        )
    return found


def _compared(
    logits: Float[Tensor, "images classes"], target: Int[Tensor, " images"], classes: int
) -> Int[Tensor, "images compared"]:
    """Returns the target, and the others of the most probable classes and the least probable one; where it is none of
    these, it takes the place of the least probable.
    """
    chosen = torch.cat([logits.topk(classes, dim=1).indices, logits.argmin(dim=1, keepdim=True)], dim=1)
    # The target to the front: a stable sort of what is not the target keeps the others' order.
    order = (chosen != target[:, None]).to(torch.uint8).argsort(dim=1, stable=True)
    own = (chosen == target[:, None]).any(dim=1, keepdim=True)
    without = torch.cat([target[:, None], chosen[:, :-1]], dim=1)
    return torch.where(own, chosen.gather(1, order), without)


@register_method(
    "mda",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="prior + up to 28 patches F",
    reference="Walker, Jha, Ewetz 2025",
    objectives=("probability", "difference"),
)
def mda(
    context: AttributionContext,
    *,
    prior: str = "gae",
    candidates: int | None = None,
    until: float = 0.9,
    blur: float = 5.0,
    patches_per_pass: int = 28,
) -> Float[Tensor, "images targets tokens"]:
    """MDA: the patches in the order that does best in insertion and deletion, found by trying; the ceiling of both.

    At each step the `candidates` patches that `prior`, another method, puts next are tried (twice the square root of
    their number where None, at most 28). Insertion begins at the image blurred by `blur` pixels and ends where the part
    `until` of the score is back; the rest is ordered from an image of nothing, 0 in the model's input space.
    """
    layout = context.layout
    tried = min(2 * int(layout.patches**0.5), 28) if candidates is None else candidates
    side = min(context.images.shape[-2:])
    if tried < 1 or not 0 < until <= 1 or not 0 <= blur < side / 4 or patches_per_pass < 1:
        raise OptionError(
            f"candidates={candidates} and patches_per_pass={patches_per_pass} must be 1 or more, until={until} above 0 "
            f"and at most 1, and blur={blur} at least 0 and below {side / 4:g} pixels"
        )
    info = _base(prior, "prior")
    context.forward(Replacement({}))
    targets = context.targets
    if targets.functions is not None:
        raise OptionError("mda orders patches by a class's score: with target= a function, use tis")
    ranks = layout.as_grid(_maps_of(context, info, targets.index)).flatten(2)
    places = layout.as_grid(torch.arange(layout.all_tokens, dtype=torch.float32)).flatten().long().to(ranks.device)
    maps = torch.zeros(*ranks.shape[:2], layout.all_tokens, dtype=context.readout_row().dtype, device=ranks.device)
    for image, number in torch.cartesian_prod(torch.arange(len(ranks)), torch.arange(ranks.shape[1])).tolist():
        trial = _Trial(context, image, number, patches_per_pass)
        best_first = ranks[image, number].argsort(descending=True, stable=True).tolist()
        start = smoothed(context.images[image : image + 1].detach(), blur)[0]
        front = trial.insert(start, best_first, tried, largest=True, until=until)
        back = trial.insert(torch.zeros_like(start), [p for p in reversed(best_first) if p not in front], tried)
        order = [*front, *reversed(back)]
        curve = falling_curve(trial.curve(start, order))
        if not float(curve[0]) > float(curve[-1]):
            raise NoSignalError(
                f"no order of the patches of image {image} raises the score of class "
                f"{int(targets.index[image, number])} above that of the blurred image: it does not show that class"
            )
        steps = (curve[:-1] - curve[1:]).clamp(min=0).to(maps)
        behind = torch.arange(len(order) - 1, -1, -1).to(maps) / len(order)
        sizes = steps * (behind + 1 / trial.pixels)
        maps[image, number, places[torch.tensor(order)]] = sizes + 1e-6 * sizes.max() * behind
        context.report("ordering patches", image * ranks.shape[1] + number + 1, ranks.shape[0] * ranks.shape[1])
    return maps


class _Trial(NamedTuple):
    """One image and one of its targets, asked with patches of it laid into another image."""

    context: AttributionContext
    image: int
    number: int
    per_pass: int

    @property
    def pixels(self) -> float:
        """Returns the number of pixels of a patch."""
        return self.context.images[0, 0].numel() / self.context.layout.patches

    def whole(self) -> Float[Tensor, "channels height width"]:
        return self.context.images[self.image].detach()

    def laid(self, under: Tensor, patches: Sequence[int]) -> Float[Tensor, "channels height width"]:
        """Returns the picture `under` with these patches of the image."""
        layout = self.context.layout
        cells = torch.zeros(layout.patches, dtype=under.dtype, device=under.device)
        cells[list(patches)] = 1
        size = under.shape[-2:]
        mask = F.interpolate(cells.view(1, 1, layout.rows, layout.cols), size=size, mode="nearest-exact")[0]
        return torch.where(mask > 0, self.whole(), under)

    def scores(self, pictures: Sequence[Tensor]) -> Float[Tensor, " pictures"]:
        """Returns the objective of each picture."""
        found = []
        for first in range(0, len(pictures), self.per_pass):
            some = torch.stack(list(pictures[first : first + self.per_pass]))
            row = self.context.at(some, torch.full((len(some),), self.image, device=some.device))
            row.forward(Replacement({}))
            found.append(row.objective_values(row.logits, self.number)[0].double())
        return torch.cat(found)

    def insert(
        self, start: Tensor, ranked: Sequence[int], tried: int, *, largest: bool = False, until: float | None = None
    ) -> list[int]:
        """Returns the patches in the order in which they are laid into `start`: each time the one of the first `tried`
        left that gives the least score, or the `largest`.
        """
        left, order, picture = list(ranked), [], start
        blank, whole = self.scores([start, self.whole()]).tolist()
        while left:
            values = self.scores([self.laid(picture, [patch]) for patch in left[:tried]])
            chosen = int(values.argmax() if largest else values.argmin())
            patch = left.pop(chosen)
            order.append(patch)
            picture = self.laid(picture, [patch])
            if until is not None and float(values[chosen]) - blank >= until * abs(whole - blank):
                break
        return order

    def curve(self, start: Tensor, order: Sequence[int]) -> Float[Tensor, " steps"]:
        """Returns the mean of the deletion curve and of the insertion curve turned over, from 1 to 0.

        Each is scaled by the scores at its ends, cut to [0, 1], and made to run in one direction.
        """
        nothing = torch.zeros_like(start)
        steps = range(len(order) + 1)
        inserted = self.scores([self.laid(start, order[:count]) for count in steps])
        deleted = self.scores([self.laid(nothing, order[count:]) for count in steps])
        tiny = torch.finfo(inserted.dtype).tiny
        rising = (inserted - inserted[0]) / (inserted[-1] - inserted[0]).abs().clamp(min=tiny)
        falling = (deleted - deleted[-1]) / (deleted[0] - deleted[-1]).abs().clamp(min=tiny)
        rising, falling = rising.clamp(0, 1).cummax(dim=0).values, falling.clamp(0, 1).cummin(dim=0).values
        return (1 - rising + falling) / 2


def falling_curve(values: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """Returns the nearest curve (least squares) that falls from the first value to the last ever more slowly.

    Such a curve is a mean of lines that fall from the first value to the last until step j and are level from there.
    A curve that does not fall becomes level.

    Example:
        >>> falling_curve(torch.tensor([1.0, 0.5, 0.5, 0.0])).round(decimals=3)
        tensor([1.0000, 0.6000, 0.3000, 0.0000])
    """
    from scipy.optimize import nnls

    first, last = values[0], values[-1]
    count = len(values) - 1
    if not float(first - last) > 0:
        return first.expand(len(values)).clone()
    wanted = ((values - last) / (first - last)).double().cpu()
    step = torch.arange(count + 1, dtype=torch.float64)
    until = torch.arange(1, count + 1, dtype=torch.float64)
    lines = (1 - step[:, None] / until).clamp(min=0)
    # The weights sum to one: a row that counts a million times as much as the others.
    stiff = torch.full((1, count), 1e6, dtype=torch.float64)
    system, goal = torch.cat([lines, stiff]), torch.cat([wanted, stiff[0, :1]])
    weights = torch.from_numpy(nnls(system.numpy(), goal.numpy(), maxiter=50 * count)[0])
    found = lines @ (weights / weights.sum())
    return (last + (first - last) * found.to(values)).to(values.dtype)
