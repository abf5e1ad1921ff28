"""Answers to what protocols ask: questions of many images and protocols in the same, full passes of the model."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import VitrailError
from ..memory import in_passes
from ..methods.context import AttributionContext
from ..methods.dropped_tokens import TokenDropper
from ..metrics.protocol import AttributionQuery, Evaluation, LogitQuery, Measured, Query, TokenSubsetQuery
from ..models.layout import layout_of
from ..models.vision_model import VisionModel

__all__ = ["Explain", "QueryBatcher"]

# From images, one class for each, the number of layers drawn anew and the groups of patches that are kept apart, to
# maps (images, rows, cols).
Explain = Callable[[Tensor, Sequence[int], int, tuple[int, ...]], Float[Tensor, "images rows cols"]]
MOST = 4  # the factor by which a batch may grow when its rows are short


@runtime_checkable
class FewerTokens(Protocol):
    """Asks a model without some of its patches, of which an image has `patches`."""

    @property
    def patches(self) -> int: ...

    def logits_of(
        self, images: Float[Tensor, "rows channels height width"], patches: Int[Tensor, "rows kept"]
    ) -> Float[Tensor, "rows classes"]:
        """Returns the logits when only these patches are there, row by row."""
        ...


@dataclass(eq=False)
class QueryBatcher:
    """Runs evaluations side by side; `batch` rows go through the model together, fewer once memory has run out.

    `smaller` is called with the new size after each halving. Answers are on the CPU, in float32 (float64 for a model in
    float64).
    """

    model: VisionModel
    batch: int
    smaller: Callable[[int], None] = lambda _: None
    _dropper: FewerTokens | None = field(default=None, init=False)

    def run(self, evaluations: Sequence[Evaluation], explain: Explain) -> list[list[Measured] | VitrailError]:
        """Returns each evaluation's result, in order; or its error, which does not affect the others."""
        results: dict[int, list[Measured] | VitrailError] = {}
        asked: dict[int, Query] = {}
        for number, evaluation in enumerate(evaluations):
            self._go_on(number, evaluation, None, asked, results)
        while asked:
            now, asked = asked, {}
            for number, answer in self._answers(now, explain):
                self._go_on(number, evaluations[number], answer, asked, results)
        return [results[number] for number in range(len(evaluations))]

    @staticmethod
    def _go_on(
        number: int,
        evaluation: Evaluation,
        answer: Tensor | VitrailError | None,
        asked: dict[int, Query],
        results: dict[int, list[Measured] | VitrailError],
    ) -> None:
        try:
            if isinstance(answer, VitrailError):
                asked[number] = evaluation.throw(answer)
            else:
                asked[number] = next(evaluation) if answer is None else evaluation.send(answer)
        except StopIteration as end:
            results[number] = end.value
        except VitrailError as error:
            results[number] = error

    def _answers(self, asked: dict[int, Query], explain: Explain) -> Iterator[tuple[int, Tensor | VitrailError]]:
        images = {number: question for number, question in asked.items() if isinstance(question, LogitQuery)}
        yield from self._of_images(images)
        by_length: dict[int, dict[int, TokenSubsetQuery]] = defaultdict(dict)
        by_model: dict[tuple[int, tuple[int, ...]], dict[int, AttributionQuery]] = defaultdict(dict)
        for number, question in asked.items():
            if isinstance(question, TokenSubsetQuery):
                by_length[question.patches.shape[1]][number] = question
            elif isinstance(question, AttributionQuery):
                by_model[question.randomised, question.apart][number] = question
        for questions in by_length.values():
            yield from self._of_tokens(questions)
        for changed, wanted in by_model.items():
            yield from self._of_maps(wanted, changed, explain)

    # -- logits --------------------------------------------------------------------------------------------------------

    def _of_images(self, asked: dict[int, LogitQuery]) -> Iterator[tuple[int, Tensor]]:
        """Fills whole batches with the rows of one query after the other."""
        waiting: list[tuple[int, range]] = []
        answers: dict[int, list[Tensor]] = defaultdict(list)
        rows = 0

        def flush() -> Iterator[tuple[int, Tensor]]:
            made = torch.cat([asked[number].make(some) for number, some in waiting])
            parts = self.logits(made).split([len(some) for _, some in waiting])
            for (number, some), part in zip(waiting, parts, strict=True):
                answers[number].append(part)
                if some.stop == asked[number].count:
                    yield number, torch.cat(answers.pop(number))
            waiting.clear()

        for number, question in asked.items():
            start = 0
            while start < question.count:
                stop = min(question.count, start + self.batch - rows)
                if stop <= start:  # memory ran out meanwhile, and the batch shrank
                    yield from flush()
                    rows = 0
                    continue
                waiting.append((number, range(start, stop)))
                rows += stop - start
                start = stop
                if rows >= self.batch:
                    yield from flush()
                    rows = 0
        if waiting:
            yield from flush()

    def _of_tokens(self, asked: dict[int, TokenSubsetQuery]) -> Iterator[tuple[int, Tensor | VitrailError]]:
        images = torch.stack([question.image for question in asked.values()])
        patches = torch.cat([question.patches for question in asked.values()])
        owners = [place for place, question in enumerate(asked.values()) for _ in question.patches]
        answers, start = [], 0
        try:
            while start < len(patches):
                some = slice(start, start + self._rows_of(patches.shape[1], images[:1]))
                answers.append(self._fewer(images[owners[some]], patches[some]))
                start += len(answers[-1])
        except VitrailError as error:  # a model whose tokens cannot be left out
            yield from ((number, error) for number in asked)
            return
        parts = torch.cat(answers).split([len(question.patches) for question in asked.values()])
        yield from zip(asked, parts, strict=True)

    def logits(self, images: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows classes"]:
        """Returns the model's logits; where memory runs out, in halves, and so from then on."""
        return self.in_halves(lambda some: self.model.logits(some), images)

    def _rows_of(self, kept: int, image: Tensor) -> int:
        """Returns how many rows of `kept` tokens hold the tokens of a whole batch, at most `MOST` times a batch."""
        return self.batch * min(MOST, max(1, self._drops(image).patches // max(1, kept)))

    def _drops(self, image: Float[Tensor, "1 channels height width"]) -> FewerTokens:
        if self._dropper is None:
            self._dropper = _dropper(self.model, image)
        return self._dropper

    def _fewer(self, images: Tensor, patches: Int[Tensor, "rows kept"]) -> Float[Tensor, "rows classes"]:
        dropper = self._drops(images[:1])
        return self.in_halves(lambda some, kept: dropper.logits_of(some, kept), images, patches)

    def in_halves(self, ask: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """Returns what `ask` makes of the rows, without gradients; where memory runs out, in halves."""

        def answer(some: slice) -> Tensor:
            with torch.no_grad():
                found = ask(*(part[some] for part in rows))
                return found.to("cpu", torch.promote_types(found.dtype, torch.float32))

        def halved(most: int) -> None:
            if most < self.batch:
                self.batch = most
                self.smaller(most)

        return torch.cat(list(in_passes(answer, len(rows[0]), halved=halved)))

    # -- maps ----------------------------------------------------------------------------------------------------------

    def _of_maps(
        self, asked: dict[int, AttributionQuery], changed: tuple[int, tuple[int, ...]], explain: Explain
    ) -> Iterator[tuple[int, Tensor | VitrailError]]:
        """Returns the maps of the model, changed in one way, in one call; where one of them fails, each by itself."""
        counts = [len(question.targets) for question in asked.values()]
        images = torch.cat([question.images for question in asked.values()])
        targets = [target for question in asked.values() for target in question.targets]
        try:
            yield from zip(asked, explain(images, targets, *changed).split(counts), strict=True)
        except VitrailError:
            for number, question in asked.items():
                try:
                    yield number, explain(question.images, question.targets, *changed)
                except VitrailError as error:
                    yield number, error


def _dropper(model: VisionModel, image: Float[Tensor, "1 channels height width"]) -> TokenDropper:
    """Drops tokens; where the sequence is cut is seen on one image."""
    image = image.to(model.device, model.dtype).clone()
    layout = layout_of(model, image)
    run = AttributionContext(
        model=model, images=image, layout=layout, target=None, against=None, objective="logit", readout=layout.readout
    )
    return TokenDropper(run, run.watch(), "auto")
