"""The two passes of an audit over its images: what the model answers, then the maps of those that are shown.

Both are workers over blocks of images, which the engines of `vitrail.evaluate` run, resume and share out.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ..datasets.base import Sample
from ..errors import ImageError, VitrailError
from ..evaluate.block_worker import BlockWorker, Read
from ..evaluate.parquet_rows import Done
from ..explain import explain
from ..objectives import classifier
from .duplicates import perceptual_hash
from .examine import Wanted

__all__ = ["AnswerPass", "AuditPlan", "MapPass", "decoded_rows"]

PHOTO, THUMB, QUALITY = 640, 144, 88  # pixels of the longer side of a whole photograph and of a small one; of JPEG


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """All that decides the numbers of a pass, apart from the model and the data."""

    classes: int
    method: str = "complete"
    wanted: tuple[Wanted, ...] = ()
    seed: int = 0
    block: int = 16
    batch: int = 32
    threads: int = 1
    fit: str = field(default="model", init=False)
    interpolation: str | None = field(default=None, init=False)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain JSON values."""
        return asdict(self)


@dataclass(eq=False)
class AnswerPass(BlockWorker):
    """First pass: the logits of every image, the features that the classifier sees, and a perceptual hash.

    A block's rows have an entry per image; its tensors are `logits` and `features`, in the order of the images that
    could be read. Features are the input of the linear classifier, or the logits where there is none.
    """

    def _kept(self, sample: Sample) -> Sample:
        return sample

    def measure(self, block: int, images: Sequence[Read]) -> Done:
        """Asks the model about the images of a block."""
        rows, good = [], []
        for image in images:
            row: dict[str, Any] = {"image": image.index, "source": image.source, "labels": [], "hash": 0, "failure": ""}
            if isinstance(image.found, ImageError) or image.sample is None:
                row["failure"] = str(image.found)
            else:
                label = [] if image.label is None else [image.label]
                row |= {"labels": list(image.sample.labels) or label, "hash": perceptual_hash(image.sample.picture)}
                good.append((row, image.found.image))
            rows.append(row)
        tensors = {}
        if good:
            batch = torch.stack([view for _, view in good]).to(self.model.device, self.model.dtype)
            logits, features = self._answers(batch)
            finite = logits.isfinite().all(dim=1)
            for (row, _), fine in zip(good, finite.tolist(), strict=True):
                if not fine:
                    row["failure"] = f"the logits of {row['source']} hold NaN or infinity"
            tensors = {"logits": logits[finite].contiguous(), "features": features[finite].contiguous()}
        return Done(block, _encoded(rows, ROWS), to_safetensors(tensors), len(images))

    def _answers(
        self, batch: Float[Tensor, "images channels height width"]
    ) -> tuple[Float[Tensor, "images classes"], Float[Tensor, "images features"]]:
        head = classifier(self.model, self.plan.classes)
        ask = partial(self._pass, head)
        found = torch.cat([self._batcher.in_halves(ask, some) for some in batch.split(self._batcher.batch)])
        logits, features = found.float().split([self.plan.classes, found.shape[1] - self.plan.classes], dim=1)
        return logits, features if features.shape[1] else logits

    def _pass(self, head: nn.Linear | None, images: Tensor) -> Float[Tensor, "images classes_and_features"]:
        """Returns the logits, and behind them what the classifier was given, where that is one vector an image."""
        seen: list[Tensor] = []
        if head is None:
            return self.model.logits(images)
        handle = head.register_forward_hook(lambda *call: seen.append(call[1][0].detach()))
        try:
            logits = self.model.logits(images)
        finally:
            handle.remove()
        # The last pass is that of the images: others may come before it, to see what kind of numbers the model gives.
        features = seen[-1] if seen and seen[-1].shape[:-1] == logits.shape[:1] else logits[:, :0]
        return torch.cat([logits, features.to(logits)], dim=1)


@dataclass(frozen=True, eq=False)
class Question:
    """A map that is wanted: its kind ("single", "typical" or "contrast"), the image and the classes."""

    kind: str
    image: int
    view: Float[Tensor, "channels height width"]
    target: int
    against: int | None

    @property
    def name(self) -> str:
        """Returns the name of the map's tensor."""
        end = "" if self.against is None else f"/{self.against}"
        return f"{self.kind}/{self.image}/{self.target}{end}"


@dataclass(eq=False)
class MapPass(BlockWorker):
    """Second pass, over the chosen images alone: maps and pictures; its data are those of `plan.wanted`, in order.

    A block's tensors are `single/IMAGE/CLASS`, `typical/IMAGE/CLASS` and `contrast/IMAGE/CLASS/AGAINST` (rows x cols,
    float32), and JPEG files as bytes: `photo/IMAGE`, `view/IMAGE`, `thumb/IMAGE`. Its rows say what failed.
    """

    def _kept(self, sample: Sample) -> Sample:
        return sample

    def measure(self, block: int, images: Sequence[Read]) -> Done:
        """Explains the images of a block."""
        failures: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        asked: dict[str, list[Question]] = {"single": [], "typical": [], "contrast": []}
        for image in images:
            wanted = self.plan.wanted[image.index]
            if isinstance(image.found, ImageError) or image.sample is None:
                failures.append({"image": wanted.image, "map": "", "failure": str(image.found)})
                continue
            tensors |= self._pictures(wanted, image.sample, image.found.image)
            for kind, target, against in _questions(wanted):
                asked[kind].append(Question(kind, wanted.image, image.found.image, target, against))
        for questions in asked.values():
            for start in range(0, len(questions), self._batcher.batch):
                self._explain(questions[start : start + self._batcher.batch], tensors, failures)
        return Done(block, _encoded(failures, FAILURES), to_safetensors(tensors), len(images))

    def _pictures(self, wanted: Wanted, sample: Sample, view: Tensor) -> dict[str, Tensor]:
        number = wanted.image
        found = {f"thumb/{number}": _jpeg(sample.picture, THUMB)}
        if wanted.singles or wanted.contrasts:
            found[f"view/{number}"] = _jpeg(Image.fromarray(self.preprocess.denormalise(view.float())), PHOTO)
        if wanted.picture:
            found[f"photo/{number}"] = _jpeg(sample.picture, PHOTO)
        return found

    def _explain(
        self, questions: Sequence[Question], tensors: dict[str, Tensor], failures: list[dict[str, Any]]
    ) -> None:
        """Adds the maps of questions of one kind; where a batch fails, each is asked alone, and the failure noted."""
        first = questions[0]
        try:
            scores = explain(
                self.model,
                torch.stack([one.view for one in questions]).to(self.model.device, self.model.dtype),
                [one.target for one in questions],
                against=None if first.against is None else [one.against for one in questions],
                method=self.plan.method,
                compete=False if first.kind == "typical" else None,
                batch_size=self._batcher.batch,
            ).scores
        except VitrailError as error:
            if len(questions) > 1:
                for one in questions:
                    self._explain([one], tensors, failures)
            else:
                failures.append({"image": first.image, "map": first.name, "failure": str(error)})
            return
        tensors |= {one.name: map_.float().contiguous() for one, map_ in zip(questions, scores, strict=True)}


def _questions(wanted: Wanted) -> list[tuple[str, int, int | None]]:
    """Returns the maps that are wanted of an image, each once: kind, class, and the class it is held against."""
    found: list[tuple[str, int, int | None]] = [("single", index, None) for index in wanted.singles]
    for one in wanted.contrasts:
        found.append(("contrast", one.target, one.against))
        if one.typical:
            found.append(("typical", one.target, None))
    return list(dict.fromkeys(found))


def _jpeg(picture: Image.Image, side: int) -> Tensor:
    """Returns a picture as the bytes of a JPEG file, its longer side at most `side` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return torch.from_numpy(np.frombuffer(file.getvalue(), dtype=np.uint8).copy())


# -- rows as Parquet ---------------------------------------------------------------------------------------------------

ROWS = (("image", "int64"), ("source", "string"), ("labels", "labels"), ("hash", "uint64"), ("failure", "string"))
FAILURES = (("image", "int64"), ("map", "string"), ("failure", "string"))


def _encoded(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {name: pa.list_(pa.int64()) if kind == "labels" else pa.type_for_alias(kind) for name, kind in columns}
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=pa.schema(kinds)), file, compression="zstd")
    return file.getvalue()


def decoded_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a block's file."""
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()
