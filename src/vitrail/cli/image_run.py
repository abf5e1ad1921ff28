"""One run over many images: what was asked, the model, the passes in batches and threads, and the report."""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from vitrail.cli.console import Reporter, show_json, show_table
from vitrail.cli.inputs import Destination, Found, OutputNames, destination, find_images
from vitrail.errors import MethodError, ModelError, ObjectiveError, OptionError, SameClassError, TargetError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.models import VisionModel

__all__ = [
    "FILES",
    "QUESTION_ERRORS",
    "ImageRun",
    "Request",
    "check_pairs",
    "check_question",
    "classes_of",
    "for_each",
    "images_at_once",
    "in_batches",
    "in_threads",
    "load_model",
    "load_named",
    "named_device",
    "passes_at_once",
    "thread_limit",
]

FILES = ("png", "jpg", "pdf", "svg", "safetensors")  # what a single result can be

# The question is at fault, not the image: it would fail for every other image too, so nothing is retried.
QUESTION_ERRORS = (MethodError, ModelError, ObjectiveError, TargetError)

# Pillow and NumPy let go of Python's lock while they decode, resize and compress.
WORKERS = min(8, os.cpu_count() or 1)

IMAGES_AT_ONCE = {"cpu": 8}  # a CPU is quickest while the activations stay in its cache
IMAGES_AT_ONCE_ELSEWHERE = 64

# Threads of one pass wait for each other at every operation, and all of them for the one that decoding holds up: a pass
# on fewer threads waits less. With more passes it is Python's own lock that they would wait for.
MOST_PASSES = 4

Item = TypeVar("Item")
Made = TypeVar("Made")
Key = TypeVar("Key")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Run = Callable[[list[Key], list[Loaded]], Iterable[Result]]


@dataclass(frozen=True)
class Request:
    """Holds one call of a command, with its words already parsed."""

    images: list[str]
    model: str
    checkpoint: Path | None
    targets: list[str]
    against: list[str]
    question: dict[str, Any]  # method, objective, gradient, …: keyword arguments of vitrail.explain
    options: dict[str, Any]  # the method's own; as words until the method is known
    load: dict[str, Any]  # device, dtype, size: keyword arguments of vitrail.load
    batch_size: int  # 0: as many as memory holds
    output: Path
    formats: tuple[str, ...]  # none: by the number of images
    as_json: bool
    seed: int | None


def check_question(request: Request) -> str:
    """Returns the objective's name, once method, options and objective are found to exist.

    Raises `VitrailError` before any model is loaded, as `vitrail.explain` would after it.
    """
    from vitrail.methods import find_method
    from vitrail.methods.option_values import typed_options
    from vitrail.objectives import objective_name

    info = find_method(request.question["method"], request.options)
    request.options.update(typed_options(info, request.options))
    if request.seed is not None and "seed" in info.options:
        request.options.setdefault("seed", request.seed)
    check_pairs(request.targets, request.against)
    objective = request.question["objective"] or info.default_objective(bool(request.against))
    return objective_name(objective, request.against or None)


def check_pairs(targets: Sequence[str], against: Sequence[str]) -> None:
    """Raises `OptionError` where several targets and several contrastive classes are not equal in number."""
    if len(against) > 1 and len(targets) > 1 and len(against) != len(targets):
        raise OptionError(
            f"{len(targets)} targets against {len(against)} classes; give one --against, or one for each target"
        )


def for_each(classes: list[Any], others: list[Any], count: int) -> Any:
    """Returns the same classes for each of `count` inputs: None, one each, or (where there are several) a list each."""
    if not classes:
        return None
    return [classes] * count if max(len(classes), len(others)) > 1 else classes * count


def load_model(request: Request) -> "VisionModel":
    """Loads the model of the request on its device. Raises the errors of `vitrail.load`."""
    return load_named(request.model, request.checkpoint, **request.load)


def classes_of(request: Request, model: "VisionModel") -> tuple[list[int], list[int]]:
    """Returns the class indices of targets and contrastive targets. Raises `VitrailError` for an unknown class."""
    targets, against = ([model.class_index(name) for name in names] for names in (request.targets, request.against))
    pairs = max(len(targets), len(against)) if targets and against else 0
    for place in range(pairs):
        target, other = targets[place % len(targets)], against[place % len(against)]
        if target == other:
            name = model.class_name(target)
            raise SameClassError(f"{name} ({target}) is held against itself: give two different classes")
    return targets, against


def named_device(device: str, dtype: str = "float32") -> str:
    """Returns the device's name; "auto" becomes the fastest device of this machine that supports `dtype`."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and dtype != "float64" else "cpu"  # which mps lacks


def load_named(
    name: str,
    checkpoint: Path | None,
    *,
    device: str,
    dtype: str = "float32",
    size: tuple[int, int] | None = None,
    resize: int | None = None,
    texts: list[str] | None = None,
    output: str | None = None,
    num_classes: int | None = None,
    class_names: Path | None = None,
) -> "VisionModel":
    """Loads a model as `vitrail.load` does, from the words of a command.

    Device "auto" is the fastest of this machine. `texts` are the classes of a CLIP model, `output` is the kind of the
    model's output, and `resize` replaces the shorter side in pixels before the crop. Raises the errors of
    `vitrail.load`, and `ModelError` where `resize` meets a model without preprocessing.
    """
    from vitrail.models import load

    model = load(
        name,
        checkpoint=checkpoint,
        device=named_device(device, dtype),
        dtype=dtype,
        size=size,
        texts=texts,
        output=output,
        num_classes=num_classes,
        class_names=class_names,
    )
    if resize is None:
        return model
    if model.preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so resize={resize} means nothing to it")
    return replace(model, preprocess=replace(model.preprocess, resize=resize))


@dataclass(frozen=True)
class ImageRun:
    """Runs a command over its images, and reports the results."""

    request: Request
    place: Destination
    found: list[Found]
    missing: list[tuple[str, Exception]]  # arguments that name no image
    names: OutputNames
    reporter: Reporter

    @classmethod
    def of(cls, request: Request) -> "ImageRun":
        """Finds the images of a request and tries its output. Raises the errors of `destination` and `OutputNames`."""
        place = destination(request.output, FILES, request.formats)
        reporter = Reporter(as_json=request.as_json)
        found, missing = find_images(request.images, leave_out=place.leave_out)
        return cls(request, place, found, missing, OutputNames(place.folder, found, place.file), reporter)

    @property
    def formats(self) -> tuple[str, ...]:
        """Returns the kinds of file that are written: those asked for, else png."""
        return self.place.formats or ("png",)

    def failed(self, image: Found, error: Exception) -> None:
        """Counts an image as done, and reports why it has no result."""
        self.reporter.fail(str(image.path), error)
        self.reporter.advance()

    def report(
        self,
        model: "VisionModel",
        results: Generator[dict[str, Any], None, None],
        header: Sequence[str],
        rows: Callable[[dict[str, Any]], Iterable[Sequence[Any]]],
        asked: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        bar: bool = True,
    ) -> bool:
        """Computes the results, prints them as a table or as one JSON document, and returns whether an image failed.

        `rows` gives the rows of the table for one result; `asked` gives, for all of them, the fields of the document
        that repeat the question.
        """
        for argument, error in self.missing:
            self.reporter.fail(argument, error)
        at_the_end = self.request.as_json or sys.stdout.isatty()  # a table would run into the progress bar
        kept: list[dict[str, Any]] = []
        try:
            with self.reporter.working(len(self.found), bar=bar), closing(results):
                if at_the_end:
                    kept = list(results)
                else:
                    show_table(header, (row for result in results for row in rows(result)))
        except KeyboardInterrupt:
            done = f"{self.reporter.done} of {len(self.found)} images"
            self.reporter.say(f"interrupted after {done}: every file in {self.place.folder} is whole")
            raise typer.Exit(130) from None
        if self.request.as_json:
            document = {"model": model.name, "metadata": dict(model.metadata), **asked(kept)}
            show_json({**document, "results": kept, "failures": self.reporter.failures})
        elif at_the_end:
            show_table(header, (row for result in kept for row in rows(result)))
        return bool(self.reporter.failures)


def in_batches(
    keys: Iterable[Key],
    load: Callable[[Key], Loaded],
    run: Run[Key, Loaded, Result],
    *,
    size: int,
    failed: Callable[[Key, Exception], None],
    parallel: Callable[[Loaded], int] = lambda _: 1,
) -> Generator[tuple[Key, Result], None, None]:
    """Loads each key, runs `size` of them at a time, and yields each with its result, in order.

    The keys of the next batch are loaded in threads while this one runs, so `load` must be safe there. The first batch
    runs in the caller's thread; of those after it `parallel`, asked once with a loaded image, says how many run at the
    same time, each in a thread with its share of the processor. A key that cannot be loaded goes to `failed`, called in
    the caller's thread. When a batch fails, its members are run one by one, so that only the faulty ones go to
    `failed`. Errors of the question (`QUESTION_ERRORS`) are raised at once, except `SameClassError`, which may be one
    image's.
    """
    with closing(in_threads(load, keys, depth=size)) as loading:
        batches = _full_batches(loading, size, failed)
        for first in islice(batches, 1):
            yield from _successes(_run(run, first), failed)
        second = next(batches, None)
        if second is None:
            return
        batches = chain([second], batches)
        passes = parallel(second[0][1])
        if passes == 1:
            for batch in batches:
                yield from _successes(_run(run, batch), failed)
            return
        with (
            thread_limit(passes) as enter,
            closing(in_threads(partial(_run, run), batches, workers=passes, depth=passes, enter=enter)) as running,
        ):
            for _, results in running:
                yield from _successes(results.result(), failed)


def _full_batches(
    loading: Iterable[tuple[Key, Future[Loaded]]], size: int, failed: Callable[[Key, Exception], None]
) -> Iterator[list[tuple[Key, Loaded]]]:
    """Yields what was loaded in lists of `size`; what cannot be loaded goes to `failed`."""
    waiting: list[tuple[Key, Loaded]] = []
    for key, loaded in loading:
        try:
            waiting.append((key, loaded.result()))
        except QUESTION_ERRORS:
            raise
        except Exception as error:
            failed(key, error)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _run(run: Run[Key, Loaded, Result], members: list[tuple[Key, Loaded]]) -> list[tuple[Key, Result | Exception]]:
    """Returns each member with its result, or with the reason why it has none."""
    keys = [key for key, _ in members]
    try:
        results = list(run(keys, [loaded for _, loaded in members]))
    except Exception as error:  # whatever a model or a device may raise: out of memory, say
        # What a prediction is held against may be itself on one image only; other such faults are the question's.
        if isinstance(error, QUESTION_ERRORS) and not isinstance(error, SameClassError):
            raise
        if len(members) == 1:
            return [(keys[0], error)]
        return [result for member in members for result in _run(run, [member])]
    return list(zip(keys, results, strict=True))


def _successes(
    results: Iterable[tuple[Key, Result | Exception]], failed: Callable[[Key, Exception], None]
) -> Iterator[tuple[Key, Result]]:
    for key, result in results:
        if isinstance(result, Exception):
            failed(key, result)
        else:
            yield key, result


def in_threads(
    function: Callable[[Item], Made],
    items: Iterable[Item],
    *,
    workers: int = WORKERS,
    depth: int = 16,
    prompt: bool = False,
    enter: Callable[[], None] | None = None,
) -> Generator[tuple[Item, "Future[Made]"], None, None]:
    """Yields each item with its future, in order, while the `depth` items after it are being worked on.

    `items` is drawn from in the caller's thread. With `prompt` an item is yielded as soon as it is done and its turn;
    otherwise the queue behind it is filled first. Each thread begins with `enter`. When the generator is closed, or the
    caller is interrupted, what has not begun is dropped, and what has begun is waited for.

    Example:
        >>> [(item, made.result()) for item, made in in_threads(abs, [-1, -2, 3], depth=2)]
        [(-1, 1), (-2, 2), (3, 3)]
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vitrail", initializer=enter)
    waiting: deque[tuple[Item, Future[Made]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            while waiting and (len(waiting) > depth or (prompt and waiting[0][1].done())):
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def images_at_once(model: "VisionModel") -> int:
    """Returns the largest useful number of images per pass: more gain no speed, and would fail together."""
    return IMAGES_AT_ONCE.get(model.device.type, IMAGES_AT_ONCE_ELSEWHERE)


def passes_at_once(model: "VisionModel", image: "Tensor", size: int) -> int:
    """Returns the number of passes over `size` images like this one (C, H, W) that run in parallel on a CPU.

    It is more than 1 only where all of them take a small part of the free memory.
    """
    import torch

    from vitrail.memory import free_memory
    from vitrail.memory.batch_size import SURELY, kept_bytes

    if model.device.type != "cpu":
        return 1
    passes = min(MOST_PASSES, torch.get_num_threads())
    kept = passes * size * kept_bytes(model, image[None].to(model.dtype))
    return passes if kept < SURELY * free_memory(model.device) else 1


@contextmanager
def thread_limit(passes: int) -> Iterator[Callable[[], None]]:
    """Yields the initialiser that limits PyTorch's threads per worker."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield partial(torch.set_num_threads, max(1, threads // passes))
    finally:
        torch.set_num_threads(threads)  # the last number that anybody sets is that of all threads to come
