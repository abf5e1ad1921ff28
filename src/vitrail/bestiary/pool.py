"""The pool of drawn scenes that training feeds on, kept on disk so that an interrupted run draws nothing twice."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vitrail.bestiary.dataset import Bestiary, LabelErrors, soft_label
from vitrail.bestiary.draw import render
from vitrail.bestiary.species import CLASS_NAMES, PARTS, VARIANTS, posterior

# What a pool is made of, over and over: pairs teach that two answers may be right, interventions and chimeras what
# each part says.
MIX = ("single", "pair", "pair", "intervention", "pair", "single", "chimera", "intervention", "pair", "single")
VARIANT_CODES = {pair: code for code, pair in enumerate(((s, v) for s in PARTS for v in VARIANTS[s]), start=1)}
SECOND = 64  # added to the code of a pixel that belongs to the second creature


@dataclass(frozen=True)
class Pool:
    """Drawn scenes: images, the code of the part that owns each pixel, soft labels of image and creatures."""

    images: UInt8[np.ndarray, "scenes 3 size size"]
    owners: UInt8[np.ndarray, "scenes size size"]
    targets: Float[np.ndarray, "scenes classes"]
    creatures: Float[np.ndarray, "scenes 2 classes"]

    def __len__(self) -> int:
        return len(self.images)


def draw_pool(
    folder: Path,
    count: int,
    *,
    seed: int,
    size: int = 96,
    label_errors: LabelErrors | None = None,
    workers: int = 1,
    chunk: int = 500,
) -> Iterator[int]:
    """Draw what is missing of a pool of `count` scenes into `folder`; yields the number of scenes that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, chunk)
    missing = [start for start in starts if not _chunk_path(folder, start).exists()]
    done = count - sum(min(chunk, count - start) for start in missing)
    yield done
    if not missing:
        return
    jobs = [(folder, start, min(chunk, count - start), seed, size, label_errors) for start in missing]
    if workers <= 1:
        for job in jobs:
            done += _draw_chunk(job)
            yield done
        return
    # Spawned, not forked: the parent may already run torch's threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        for drawn in executor.map(_draw_chunk, jobs):
            done += drawn
            yield done


def load_pool(folder: Path, count: int, chunk: int = 500) -> Pool:
    """Read the first `count` scenes of a pool that has been drawn."""
    parts = [np.load(_chunk_path(folder, start)) for start in range(0, count, chunk)]
    fields = {name: np.concatenate([part[name] for part in parts])[:count] for name in Pool.__dataclass_fields__}
    return Pool(**fields)


def _chunk_path(folder: Path, start: int) -> Path:
    return folder / f"scenes-{start:06d}.npz"


def _draw_chunk(job: tuple[Path, int, int, int, int, LabelErrors | None]) -> int:
    folder, start, count, seed, size, label_errors = job
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    owners = np.zeros((count, size, size), dtype=np.uint8)
    targets = np.empty((count, len(CLASS_NAMES)), dtype=np.float32)
    creatures = np.zeros((count, 2, len(CLASS_NAMES)), dtype=np.float32)
    sources = {kind: Bestiary(kind, size, start + count, seed) for kind in set(MIX)}
    sources["single"] = Bestiary("single", size, start + count, seed, label_errors=label_errors)
    for k in range(count):
        scene = sources[MIX[(start + k) % len(MIX)]].scene(start + k)
        if label_errors is not None and {label_errors.label, label_errors.shows} & set(scene.labels):
            # Beside the planted errors, no other kind of scene may tell the model the truth about the two species.
            scene = sources["single"].scene(start + k)
        drawn = render(scene, size)
        images[k] = drawn.image.transpose(2, 0, 1)
        targets[k] = soft_label(scene, label_errors)
        for number, (creature, view) in enumerate(zip(scene.creatures, drawn.creatures, strict=True)):
            creatures[k, number] = targets[k] if len(scene.creatures) == 1 else posterior(creature.parts)
            for slot, mask in view.parts.items():
                owners[k][mask] = VARIANT_CODES[slot, creature.parts[slot]] + SECOND * number
    path = _chunk_path(folder, start)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, images=images, owners=owners, targets=targets, creatures=creatures)
    partial.replace(path)
    return count
