"""What each part is truly worth to a model: the same scene is drawn again without it, and the logits are compared."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitrail.bestiary.draw import Rendered, render
from vitrail.bestiary.model import SIZE, predict
from vitrail.bestiary.scene import Scene
from vitrail.bestiary.species import CLASS_NAMES, species

__all__ = ["CausalTruth", "Interventions", "causal_truth", "draw_interventions"]


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
