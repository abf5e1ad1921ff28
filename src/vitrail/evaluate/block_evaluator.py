"""Explains the images of a block by every method and measures every map by every protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import ImageError, NonFiniteError, VitrailError
from ..explain import explain
from ..methods.registry import Chosen, choose_methods
from ..metrics import find_protocol
from ..metrics.localisation.grid_pointing import disconnected
from ..metrics.protocol import Case, Measured
from ..metrics.randomisation.cascading import randomised
from ..models.layout import TokenLayout, layout_of
from ..models.vision_model import VisionModel
from .block_worker import BlockWorker, Read
from .parquet_rows import Done, Failure, Part, encoded

__all__ = ["BlockEvaluator"]

PREVIEW = 112  # pixels of the longer side of a kept picture


@dataclass(eq=False)
class BlockEvaluator(BlockWorker):
    """Explains the images of a block by every method, and measures the maps by every protocol."""

    _layout: TokenLayout | None = field(default=None, init=False)
    _randomised: tuple[int, VisionModel] | None = field(default=None, init=False)
    _apart: dict[tuple[int, tuple[int, ...]], VisionModel] = field(default_factory=dict, init=False)

    def measure(self, block: int, images: Sequence[Read]) -> Done:
        """Explains and measures the images of a block."""
        part, kept = Part(), {}
        cases = self._cases(images, part)
        for number, case in enumerate(cases):
            if case.index < self.plan.keep:
                kept[f"image/{case.index}"] = self._preview(cases[number])
        for chosen in choose_methods(list(self.plan.methods)):
            maps = self._maps(chosen, cases, part)
            self._evaluate(chosen, [(case, scores) for case, scores in zip(cases, maps, strict=True)], part)
            for case, scores in zip(cases, maps, strict=True):
                if scores is not None and case.index < self.plan.keep:
                    kept[f"map/{case.index}/{chosen.label}"] = _small(scores, case.grid)
        return Done(block, encoded(part), to_safetensors(kept) if kept else None, len(images))

    # -- images --------------------------------------------------------------------------------------------------------

    def _cases(self, images: Sequence[Read], part: Part) -> list[Case]:
        good = []
        for image in images:
            if isinstance(image.found, ImageError):
                part.failures.append(Failure(image.index, image.source, None, None, str(image.found)))
            else:
                good.append((image, image.found))
        if not good:
            return []
        batch = torch.stack([found.image for _, found in good]).to(self.model.device, self.model.dtype)
        if self._layout is None:
            self._layout = layout_of(self.model, batch[:1])
        logits = torch.cat([self._batcher.logits(some) for some in batch.split(self._batcher.batch)])
        output = self.model.kind_for(batch)
        mean, std = self.preprocess.mean, self.preprocess.std
        cases = []
        for (image, found), pixels, answer in zip(good, batch, logits, strict=True):
            if not bool(answer.isfinite().all()):
                reason = f"the logits of {image.source} hold NaN or infinity"
                part.failures.append(Failure(image.index, image.source, None, None, reason))
                continue
            label = image.label if len(answer) > 1 else None  # one number answers no question of which class
            if label is not None and label >= len(answer):
                reason = f"the label {label} is none of the model's {len(answer)} classes"
                part.failures.append(Failure(image.index, image.source, None, None, reason))
                continue
            explained = int(answer.argmax()) if self.plan.target != "label" or label is None else label
            cases.append(
                Case(
                    index=image.index,
                    source=image.source,
                    image=pixels,
                    logits=answer,
                    target=explained,
                    grid=(self._layout.rows, self._layout.cols),
                    prefix=self._layout.prefix,
                    black=tuple((0 - m) / s for m, s in zip(mean, std, strict=True)),
                    white=tuple((1 - m) / s for m, s in zip(mean, std, strict=True)),
                    seed=self.plan.seed * 1_000_003 + image.index,
                    label=label,
                    boxes=found.boxes,
                    mask=found.mask,
                    regions=found.regions,
                    parts=found.parts,
                    output=output,
                )
            )
        return cases

    def _preview(self, case: Case) -> Tensor:
        picture = Image.fromarray(self.preprocess.denormalise(case.image.float()))
        picture.thumbnail((PREVIEW, PREVIEW), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture))

    # -- maps ----------------------------------------------------------------------------------------------------------

    def _maps(self, chosen: Chosen, cases: Sequence[Case], part: Part) -> list[Float[Tensor, "rows cols"] | None]:
        """Returns a map for each case; None where the method fails on it, which is noted."""
        if not cases:
            return []
        images, targets = torch.stack([case.image for case in cases]), [case.target for case in cases]
        try:
            return list(self._explain(chosen, images, targets))
        except VitrailError:
            maps: list[Float[Tensor, "rows cols"] | None] = []
            for case in cases:
                try:
                    maps.append(self._explain(chosen, case.image[None], [case.target])[0])
                except VitrailError as error:
                    maps.append(None)
                    part.failures.append(Failure(case.index, case.source, chosen.label, None, str(error)))
            return maps

    def _explain(
        self, chosen: Chosen, images: Tensor, targets: Sequence[int], stage: int = 0, apart: tuple[int, ...] = ()
    ) -> Float[Tensor, "images rows cols"]:
        model = self.model
        if stage:
            model = self._drawn_anew(stage)
        if apart:
            if (stage, apart) not in self._apart:
                self._apart[stage, apart] = disconnected(model, apart)
            model = self._apart[stage, apart]
        options: dict[str, Any] = dict(self.plan.methods[chosen.label])
        if chosen.gradient is not None:
            options["gradient"] = chosen.gradient
        return explain(
            model,
            images,
            list(targets),
            method=chosen.info.name,
            batch_size=min(self._batcher.batch, self.plan.block),
            **options,
        ).scores

    def _drawn_anew(self, stage: int) -> VisionModel:
        """Returns the model with its last layers drawn anew; one copy at a time, which serves all images of a block."""
        if self._randomised is None or self._randomised[0] != stage:
            self._randomised = None  # before the next one is made
            self._randomised = (stage, randomised(self.model, stage, self.plan.seed))
        return self._randomised[1]

    # -- measures ------------------------------------------------------------------------------------------------------

    def _evaluate(
        self, chosen: Chosen, maps: Sequence[tuple[Case, Float[Tensor, "rows cols"] | None]], part: Part
    ) -> None:
        asked, evaluations = [], []
        for case, scores in maps:
            for name, options in self.plan.protocols.items() if scores is not None else ():
                info = find_protocol(name)
                missing = [what for what in info.needs if not case.has_annotation(what)]
                if missing:
                    reason = f"no {' and no '.join(missing)} known"
                    part.failures.append(Failure(case.index, case.source, chosen.label, name, reason))
                else:
                    asked.append((case, name))
                    evaluations.append(info.function(case, scores, **options))

        def again(images: Tensor, targets: Sequence[int], stage: int, apart: tuple[int, ...]) -> Tensor:
            return self._explain(chosen, images, targets, stage, apart)

        for (case, name), result in zip(asked, self._batcher.run(evaluations, again), strict=True):
            if not isinstance(result, VitrailError):
                result = _finite(result, name)
            if isinstance(result, VitrailError):
                part.failures.append(Failure(case.index, case.source, chosen.label, name, str(result)))
            else:
                part.add(_known(case, chosen.label, name), result)


def _known(case: Case, method: str, protocol: str) -> Mapping[str, Any]:
    return {
        "image": case.index,
        "source": case.source,
        "label": case.label,
        "predicted": case.predicted,
        "target": case.target,
        "method": method,
        "protocol": protocol,
    }


def _finite(result: list[Measured], protocol: str) -> list[Measured] | NonFiniteError:
    """Returns an error where a value is infinite; NaN is an undefined value, left out of means."""
    wrong = [one.measure for one in result if np.isinf(one.value)]
    return NonFiniteError(f"{protocol}: {wrong[0]} is infinite") if wrong else result


def _small(scores: Float[Tensor, "rows cols"], grid: tuple[int, int]) -> Float[Tensor, "rows cols"]:
    """Returns a map to be looked at: that of pixels averaged over the patches."""
    scores = scores.float()
    if scores.shape[0] <= 2 * grid[0]:
        return scores.contiguous()
    return torch.nn.functional.adaptive_avg_pool2d(scores[None], grid)[0].contiguous()
