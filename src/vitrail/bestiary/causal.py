"""What each part, and each small cell of the picture, is truly worth to a model: drawn again without it, what changes?

A part is left out by itself. A single cell of a few pixels moves the logits by less than what the edges of the change
do, so cells are redrawn many together: with half of a creature's cells as they are, at random, and the others as the
scene without the creature has them, the logits are regressed on which cells were kept.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from vitrail.bestiary.draw import Rendered, render
from vitrail.bestiary.model import SIZE, predict
from vitrail.bestiary.scene import Scene
from vitrail.bestiary.species import CLASS_NAMES, species

__all__ = ["CausalTruth", "CellTruth", "Interventions", "causal_truth", "cell_truth", "draw_interventions"]

RIDGE = 5.0  # of the regression on cells, in samples: little beside hundreds of them


@dataclass(frozen=True, eq=False)
class CausalTruth:
    """One scene, its visible parts, and the model's logits with all of them and without each.

    `parts` are (creature, slot) pairs; `masks` says which pixels each owns, and `creatures` the same for whole
    creatures; row p of `without` holds the logits of the scene drawn without part p.
    """

    scene: Scene
    drawn: Rendered
    parts: tuple[tuple[int, str], ...]
    masks: Bool[Tensor, "parts height width"]
    creatures: Bool[Tensor, "creatures height width"]
    logits: Float[Tensor, " classes"]
    without: Float[Tensor, "parts classes"]

    def importance(self, target: str, against: str | None = None) -> Float[Tensor, " parts"]:
        """Returns how much each part raises the target's logit, or its difference to that of `against`; negative:
        lowers.

        Raises `UnknownNameError` for a class that is not in the bestiary.
        """
        gain = self.logits - self.without
        worth = gain[:, CLASS_NAMES.index(species(target).name)]
        return worth if against is None else worth - gain[:, CLASS_NAMES.index(species(against).name)]

    @property
    def size(self) -> tuple[int, int]:
        """Returns height and width of the picture."""
        return self.drawn.image.shape[0], self.drawn.image.shape[1]

    @property
    def image(self) -> Float[Tensor, "3 height width"]:
        """Returns the picture of the whole scene, values in [0, 1]."""
        return _pixels(self.drawn)


def causal_truth(
    model: nn.Module, scenes: Iterable[Scene], *, size: int = SIZE, batch: int = 64
) -> Iterator[CausalTruth]:
    """Draws each scene without each visible part in turn, and runs the model on all these images.

    Parts that are hidden behind others or behind grass have no pixels and are left out. The model takes pictures of
    `size` pixels, scaled to [-1, 1], as the bestiary's own models do. After Hesse et al., FunnyBirds (ICCV 2023).

    >>> from vitrail.bestiary import sample_scene
    >>> from vitrail.bestiary.model import build_model
    >>> truth = next(causal_truth(build_model().eval(), [sample_scene("single", seed=0, species="tavel")]))
    >>> truth.importance("tavel", "borrin").shape == (len(truth.parts),)
    True
    """
    for scene in scenes:
        asked = draw_interventions(scene, size)
        logits = torch.cat([predict(model, some) for some in asked.pictures.split(batch)])
        yield CausalTruth(
            scene=scene,
            drawn=asked.drawn,
            parts=asked.parts,
            masks=asked.masks,
            creatures=asked.creatures,
            logits=logits[0],
            without=logits[1:],
        )


@dataclass(frozen=True, eq=False)
class CellTruth:
    """What the cells of one creature are worth: how much each raises the logits, alone among random others.

    `cells` are (row, column) in the grid of cells; a cell counts where redrawing changes it. `halves` are the same
    effects from either half of the samples, which tell how far they can be relied on.
    """

    drawn: Rendered
    cells: Int[Tensor, "cells 2"]
    effects: Float[Tensor, "cells classes"]
    halves: tuple[Float[Tensor, "cells classes"], Float[Tensor, "cells classes"]]

    @property
    def image(self) -> Float[Tensor, "3 height width"]:
        """Returns the picture of the whole scene, values in [0, 1]."""
        return _pixels(self.drawn)


def cell_truth(
    model: nn.Module,
    scenes: Iterable[Scene],
    *,
    side: int,
    creature: int = 0,
    samples: int = 1600,
    size: int = SIZE,
    batch: int = 100,
    seed: int = 0,
) -> Iterator[CellTruth]:
    """Redraws random halves of one creature's cells, of `side` × `side` pixels, and regresses the logits on them.

    >>> from vitrail.bestiary import sample_scene
    >>> from vitrail.bestiary.model import build_model
    >>> scene = sample_scene("single", seed=0)
    >>> truth = next(cell_truth(build_model().eval(), [scene], side=8, samples=20))
    >>> len(truth.cells) == len(truth.effects) > 10
    True
    """
    for scene in scenes:
        drawn = render(scene, size)
        full, gone = _pixels(drawn), _pixels(render(scene.without(creature), size))
        changed = avg_pool2d(((full - gone).abs().sum(dim=0) > 0.02).float()[None], side)[0]
        cells = (changed > 0.1).nonzero()
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(samples, len(cells), generator=generator) < 0.5
        logits = []
        for some in kept.split(batch):
            mask = torch.ones(len(some), *changed.shape)
            mask[:, cells[:, 0], cells[:, 1]] = some.float()
            mask = mask.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)[:, None]
            logits.append(predict(model, full * mask + gone * (1 - mask)))
        found = torch.cat(logits).double()
        middle = samples // 2
        halves = _effects(kept[:middle], found[:middle]), _effects(kept[middle:], found[middle:])
        yield CellTruth(drawn, cells, _effects(kept, found), halves)


def _effects(kept: Bool[Tensor, "samples cells"], logits: Float[Tensor, "samples classes"]) -> Tensor:
    """Ridge regression with an intercept, of the logits on which cells were kept."""
    centred = kept.double() - kept.double().mean(dim=0)
    matrix = centred.T @ centred + RIDGE * torch.eye(kept.shape[1], dtype=torch.float64)
    return torch.linalg.solve(matrix, centred.T @ (logits - logits.mean(dim=0)))


class Interventions(NamedTuple):
    """A scene as it is and without each of its parts: `pictures` in [0, 1], the whole scene first.

    With `whole=True` the scene without each creature comes before those without a part.
    """

    drawn: Rendered
    parts: tuple[tuple[int, str], ...]
    masks: Bool[Tensor, "parts height width"]
    creatures: Bool[Tensor, "creatures height width"]
    pictures: Float[Tensor, "pictures 3 height width"]


def draw_interventions(scene: Scene, size: int = SIZE, *, whole: bool = False) -> Interventions:
    """Draws a scene, and again without each visible part in turn."""
    drawn = render(scene, size)
    seen = [
        (number, slot, mask)
        for number, view in enumerate(drawn.creatures)
        for slot, mask in view.parts.items()
        if mask.any()
    ]
    left_out: list[tuple[int, str | None]] = [(number, None) for number in range(len(drawn.creatures)) if whole]
    left_out += [(number, slot) for number, slot, _ in seen]
    return Interventions(
        drawn,
        tuple((number, slot) for number, slot, _ in seen),
        _stack([mask for *_, mask in seen], size),
        _stack([view.mask for view in drawn.creatures], size),
        torch.stack([_pixels(drawn), *(_pixels(render(scene.without(*one), size)) for one in left_out)]),
    )


def _pixels(drawn: Rendered) -> Float[Tensor, "3 height width"]:
    return torch.from_numpy(drawn.image).permute(2, 0, 1).float() / 255


def _stack(masks: list[np.ndarray], size: int) -> Bool[Tensor, "some height width"]:
    return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, size, size, dtype=torch.bool)
