"""Questions of many evaluations share full passes, and each gets its own answers, whatever happens to the others."""

from collections.abc import Iterator

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vitrail
from vitrail.errors import NoSignalError, UnsupportedOperationError
from vitrail.evaluate import batched_queries
from vitrail.evaluate.batched_queries import QueryBatcher
from vitrail.methods.dropped_tokens import TokenDropper
from vitrail.metrics.protocol import AttributionQuery, Evaluation, LogitQuery, Measured, Query, TokenSubsetQuery
from vitrail.models import VisionModel

SIDE = 2


def picture(*numbers: float) -> Tensor:
    """An image that says who it is: its first pixels are the numbers."""
    pixels = torch.zeros(3 * SIDE * SIDE)
    pixels[: len(numbers)] = torch.tensor(numbers)
    return pixels.view(3, SIDE, SIDE)


class Echo(nn.Module):
    """Logits that are the first three pixels; more rows than `room` are too many."""

    def __init__(self, room: int = 10**6) -> None:
        super().__init__()
        self.room, self.passes = room, []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("too many")
        self.passes.append(len(images))
        return images.flatten(1)[:, :3].clone()


class Dropper:
    """Logits that are the first two pixels and the sum of the patches that are left."""

    patches = 8

    def __init__(self) -> None:
        self.passes: list[tuple[int, int]] = []

    def logits_of(self, images: Tensor, patches: Tensor) -> Tensor:
        assert len(images) == len(patches)
        self.passes.append(tuple(patches.shape))
        return torch.cat([images.flatten(1)[:, :2], patches.sum(1, keepdim=True).float()], 1)


def explain(images: Tensor, targets: list[int], stage: int, apart: tuple[int, ...] = ()) -> Tensor:
    """Maps that say of which image, class and stage they are; no map of image 13."""
    first = images.flatten(1)[:, :2]
    if (first[:, 1] == 13).any():
        raise NoSignalError("no map of 13")
    rest = torch.tensor([[float(target), float(stage)] for target in targets])
    return torch.cat([first, rest], 1).view(-1, 2, 2)


def question_of(kind: str, number: int, step: int, count: int) -> tuple[Query, Tensor]:
    """A question and its answer."""
    rows = [picture(number, step, row) for row in range(count)]
    if kind == "images":
        return LogitQuery(count, lambda some: torch.stack([rows[row] for row in some])), torch.stack(
            [row.flatten()[:3] for row in rows]
        )
    if kind == "tokens":
        patches = torch.arange(step + 1).expand(count, -1) + torch.arange(count)[:, None]
        answer = [[number, step, float(patches[row].sum())] for row in range(count)]
        return TokenSubsetQuery(picture(number, step), patches), torch.tensor(answer)
    targets = list(range(count))
    answer = [[[number, step], [float(target), step % 2]] for target in targets]
    return AttributionQuery(torch.stack(rows), targets, step % 2), torch.tensor(answer, dtype=torch.float32)


def asking(number: int, kinds: list[tuple[str, int]]) -> Evaluation:
    """Asks one question after the other, and says for each how far its answer is from the right one."""
    found = []
    for step, (kind, count) in enumerate(kinds):
        question, right = question_of(kind, number, step, count)
        answer = yield question
        assert answer.shape == right.shape
        found.append(Measured(kind, float(step), float((answer - right).abs().max())))
    return found


def batcher(batch: int, room: int = 10**6, smaller=lambda _: None) -> tuple[QueryBatcher, Echo, Dropper]:
    module = Echo(room).eval()
    model = VisionModel(module, "echo")
    model.learn_kind(torch.tensor([[-1.0, 0.0, 1.0]]))  # which takes passes of its own otherwise
    made = QueryBatcher(model, batch, smaller)
    made._dropper = dropper = Dropper()  # pyright: ignore[reportAttributeAccessIssue]
    return made, module, dropper


mixes = st.lists(
    st.lists(st.tuples(st.sampled_from(["images", "tokens", "maps"]), st.integers(1, 9)), max_size=4), max_size=6
)


@settings(deadline=None, max_examples=100)
@given(mixes, st.integers(1, 12), st.integers(1, 12))
def test_each_evaluation_gets_its_own_answers(mix, batch, room):
    made, module, dropper = batcher(batch, room)
    results = made.run([asking(number, kinds) for number, kinds in enumerate(mix)], explain)
    assert len(results) == len(mix)
    for kinds, result in zip(mix, results, strict=True):
        assert result == [Measured(kind, float(step), 0.0) for step, (kind, _) in enumerate(kinds)]
    assert max(module.passes, default=0) <= min(batch, room)
    for rows, kept in dropper.passes:  # few tokens: more rows, no more tokens, and no more than four times as many
        assert rows <= batch * max(1, min(4, Dropper.patches // kept))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 16))
def test_questions_of_several_share_full_passes(counts, batch):
    made, module, dropper = batcher(batch)
    made.run([asking(number, [("images", count)]) for number, count in enumerate(counts)], explain)
    total = sum(counts)
    full = [batch] * (total // batch) + ([total % batch] if total % batch else [])
    assert module.passes == full
    made.run([asking(number, [("tokens", count)]) for number, count in enumerate(counts)], explain)
    more = 4 * batch
    assert dropper.passes == [(more, 1)] * (total // more) + ([(total % more, 1)] if total % more else [])


def test_images_are_made_when_their_turn_comes():
    """A question of many rows never holds more than a batch of them."""
    made, module, _ = batcher(4)
    asked: list[range] = []

    def make(rows: range) -> Tensor:
        assert len(module.passes) == len(asked)  # those before have been through the model
        asked.append(rows)
        return torch.stack([picture(0, 0, row) for row in rows])

    def one() -> Evaluation:
        answer = yield LogitQuery(10, make)
        return [Measured("row", None, float(row)) for row in answer[:, 2]]

    (result,) = made.run([one()], explain)
    assert [found.value for found in result] == list(range(10))
    assert asked == [range(4), range(4, 8), range(8, 10)]


def failing_after(answers: int, number: int) -> Evaluation:
    for step in range(answers):
        yield question_of("images", number, step, 3)[0]
    raise NoSignalError("here it ends")


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_an_error_in_one_leaves_the_others_alone(answers):
    made, _, _ = batcher(4)
    kinds = [("images", 3), ("maps", 2), ("images", 5)]
    first, failed, last = made.run([asking(0, kinds), failing_after(answers, 1), asking(2, kinds)], explain)
    assert isinstance(failed, NoSignalError)
    assert first == last == [Measured(kind, float(step), 0.0) for step, (kind, _) in enumerate(kinds)]


def test_a_map_that_cannot_be_made_fails_by_itself():
    def unlucky(catching: bool) -> Evaluation:
        try:
            yield AttributionQuery(picture(5, 13)[None], [0])
        except NoSignalError:
            if not catching:
                raise
        return [Measured("caught", None, 1.0)]

    made, _, _ = batcher(4)
    kinds = [("maps", 2)]
    first, failed, caught, last = made.run([asking(0, kinds), unlucky(False), unlucky(True), asking(3, kinds)], explain)
    assert isinstance(failed, NoSignalError)
    assert caught == [Measured("caught", None, 1.0)]
    assert first == last == [Measured("maps", 0.0, 0.0)]


def test_memory_that_runs_out_halves_the_batch_for_good():
    told: list[int] = []
    made, module, _ = batcher(16, room=5, smaller=told.append)
    (result,) = made.run([asking(0, [("images", 40)])], explain)
    assert result == [Measured("images", 0.0, 0.0)]
    assert told == [8, 4]
    assert (made.batch, max(module.passes), sum(module.passes)) == (4, 4, 40)
    with pytest.raises(torch.OutOfMemoryError):
        batcher(16, room=0)[0].run([asking(0, [("images", 3)])], explain)


# -- tokens of a real architecture -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> VisionModel:
    torch.manual_seed(0)
    return vitrail.wrap(timm.create_model("test_vit", num_classes=4, img_size=64).eval())


def tokens_of(images: list[Tensor], patches: list[Tensor], found: dict[int, Tensor]) -> Iterator[Evaluation]:
    def one(number: int, image: Tensor, kept: Tensor) -> Evaluation:
        found[number] = yield TokenSubsetQuery(image, kept)
        return []

    for number, (image, kept) in enumerate(zip(images, patches, strict=True)):
        yield one(number, image, kept)


def test_tokens_of_several_images_equal_the_masked_answers(model):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, 64, 64, generator=generator) for _ in range(4)]
    patches = [
        torch.stack([torch.randperm(16, generator=generator)[:kept].sort().values for _ in range(rows)])
        for kept, rows in ((4, 3), (9, 2), (4, 2), (16, 1))  # two of one length, which go together
    ]
    found: dict[int, Tensor] = {}
    assert QueryBatcher(model, 4).run(list(tokens_of(images, patches, found)), explain) == [[], [], [], []]
    for number, (image, kept) in enumerate(zip(images, patches, strict=True)):
        masked = masked_logits(model, image, kept)
        torch.testing.assert_close(found[number], masked, rtol=1e-4, atol=1e-5)


def masked_logits(model: VisionModel, image: Tensor, kept: Tensor) -> Tensor:
    dropper = batched_queries._dropper(model, image[None])
    masking = TokenDropper(dropper.context, dropper.streams, "mask")
    return masking.logits_of(image.expand(len(kept), -1, -1, -1), kept).detach()


def test_a_model_whose_tokens_cannot_be_left_out_fails_those_questions_alone():
    made, _, dropper = batcher(4)

    def refuse(images: Tensor, patches: Tensor) -> Tensor:
        raise UnsupportedOperationError("its tokens cannot be cut")

    dropper.logits_of = refuse
    kinds = [("images", 3)]
    first, failed = made.run([asking(0, kinds), asking(1, [("tokens", 2)])], explain)
    assert first == [Measured("images", 0.0, 0.0)]
    assert isinstance(failed, UnsupportedOperationError)
