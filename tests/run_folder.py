"""Folders of runs for the tests, in the format that the runner writes: from drawn numbers, or really evaluated."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

import vitrail
from vitrail.bestiary import CLASS_NAMES
from vitrail.bestiary.dataset import Bestiary
from vitrail.bestiary.model import normalised
from vitrail.errors import VitrailError
from vitrail.metrics import find_protocol
from vitrail.metrics.protocol import Case, LogitQuery

SCHEMA = pa.schema(
    [
        ("image", pa.int32()),
        ("source", pa.string()),
        ("label", pa.int32()),
        ("predicted", pa.int32()),
        ("target", pa.int32()),
        ("method", pa.string()),
        ("protocol", pa.string()),
        ("measure", pa.string()),
        ("step", pa.float64()),
        ("value", pa.float64()),
    ]
)


def manifest(images: int, methods: Sequence[str], protocols: Mapping[str, Any], **other: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "data": {"kind": "bestiary", "scenes": "single", "count": images, "digest": "5f1c" * 16},
        "model": {"name": "bestiary", "class_names": list(CLASS_NAMES)},
        "methods": list(methods),
        "protocols": dict(protocols),
        "preset": "bi",
        "seed": 0,
        "block": 16,
        "batch": 64,
        "images": images,
        "versions": {"vitrail": "0.1.0", "torch": torch.__version__, "timm": "1.0.15"},
        "checkpoint": "9a0b" * 16,
        "date": "2026-01-31T12:00:00+00:00",
        **other,
    }


def write_run(
    folder: Path,
    told: Mapping[str, Any],
    rows: Iterable[tuple[int, str, str, str, float | None, float]],
    *,
    failures: Sequence[Mapping[str, Any]] = (),
    labels: Mapping[int, tuple[int | None, int, int]] | None = None,
    pictures: Mapping[int, np.ndarray] | None = None,
    maps: Mapping[tuple[int, str], np.ndarray] | None = None,
) -> Path:
    """Rows are (image, method, protocol, measure, step, value); `labels` hold (label, predicted, target)."""
    (folder / "rows").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(told))
    about = labels or {}
    block = told["block"]
    parts: dict[int, list[tuple[Any, ...]]] = {b: [] for b in range(-(-told["images"] // block))}
    for image, method, protocol, measure, step, value in rows:
        known = about.get(image, (image % 3, image % 3, image % 3))
        source = f"scene-{image:05d}"
        parts[image // block].append((image, source, *known, method, protocol, measure, step, value))
    for b, some in parts.items():
        columns = list(zip(*some, strict=True)) or [[]] * len(SCHEMA)
        table = pa.table([pa.array(c, kind) for c, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)
        own = [one for one in failures if one["image"] // block == b]
        table = table.replace_schema_metadata({"failures": json.dumps(own)})
        pq.write_table(table, folder / "rows" / f"block-{b:06d}.parquet")
        tensors = {f"image/{i}": p for i, p in (pictures or {}).items() if i // block == b}
        tensors |= {f"map/{i}/{m}": s for (i, m), s in (maps or {}).items() if i // block == b}
        if tensors:
            (folder / "maps").mkdir(exist_ok=True)
            save_file(tensors, folder / "maps" / f"block-{b:06d}.safetensors")
    return folder


def evaluated(
    folder: Path,
    methods: Sequence[str] = ("gae", "complete:libra"),
    protocols: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    images: int = 4,
    kind: str = "single",
    seed: int = 7,
    kept: int = 500,
    **other: Any,
) -> Path:
    """A real evaluation of the bestiary's model on its own scenes, put in a run's folder."""
    model = vitrail.load("bestiary")
    data = Bestiary(kind, count=images, seed=seed)
    asked = protocols if protocols is not None else {"perturbation": {"unit": "patch"}}
    full = {name: {**find_protocol(name).options, **options} for name, options in asked.items()}
    rows, labels, pictures, maps, lost = [], {}, {}, {}, []
    for i in range(images):
        item = data[i]
        label = int(item["label"].flatten()[0])
        x = normalised(item["image"][None])
        with torch.no_grad():
            logits = model.module(x)[0]
        predicted = int(logits.argmax())
        labels[i] = (label, predicted, predicted)
        if i < kept:
            pictures[i] = np.rint(255 * item["image"].permute(1, 2, 0).numpy()).astype(np.uint8)
        for method in methods:
            name, _, gradient = method.partition(":")
            options = {"gradient": gradient} if gradient else {}
            try:
                scores = vitrail.explain(model, x, predicted, method=name, **options).map().float()
            except VitrailError as error:
                lost += [
                    {"image": i, "source": f"scene-{i:05d}", "method": method, "protocol": p, "reason": str(error)}
                    for p in full
                ]
                continue
            if i < kept:
                maps[i, method] = scores.numpy()
            for protocol, own in full.items():
                case = Case(
                    index=i,
                    source=f"scene-{i:05d}",
                    image=x[0],
                    logits=logits,
                    target=predicted,
                    grid=(12, 12),
                    prefix=1,
                    black=tuple(normalised(torch.zeros(1, 3, 1, 1))[0, :, 0, 0].tolist()),
                    label=label,
                )
                rows += [(i, method, protocol, *one) for one in _answered(model, protocol, case, scores, own)]
    told = manifest(images, methods, full, **other)
    return write_run(folder, told, rows, failures=lost, labels=labels, pictures=pictures, maps=maps)


def _answered(model: Any, protocol: str, case: Case, scores: torch.Tensor, options: Mapping[str, Any]) -> list[Any]:
    going = find_protocol(protocol).function(case, scores, **options)
    try:
        question = next(going)
        while True:
            assert isinstance(question, LogitQuery)
            with torch.no_grad():
                answer = model.module(question.make(range(question.count)))
            question = going.send(answer)
    except StopIteration as end:
        return list(end.value)
