"""The scenes that training feeds on: drawn once into a pool on disk, varied at every step, labelled patch by patch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional

from vitrail.bestiary.dataset import Bestiary, LabelErrors, soft_label
from vitrail.bestiary.draw import render
from vitrail.bestiary.scene import Scene
from vitrail.bestiary.species import CLASS_NAMES, PARTS, VARIANTS, posterior

Kinds: TypeAlias = tuple[str, ...]

# What a pool is made of, over and over: pairs teach that two answers may be right, interventions and chimeras what
# each part says.
MIX: Kinds = ("single", "pair", "pair", "intervention", "pair", "single", "chimera", "intervention", "pair", "single")
VARIANT_CODES = {pair: code for code, pair in enumerate(((s, v) for s in PARTS for v in VARIANTS[s]), start=1)}
SECOND = 64  # added to the code of a pixel that belongs to the second creature
PART_LABELS = len(VARIANT_CODES) + 1  # the first label is the landscape
CLASS_LABELS = len(CLASS_NAMES) + 1


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
    kinds: Kinds = MIX,
    size: int = 96,
    workers: int = 1,
    chunk: int = 500,
) -> Iterator[int]:
    """Draw what is missing of a pool of `count` scenes into `folder`; yields the number of scenes that are there.

    Scene k is scene k of the `Bestiary` of this seed and of kind `kinds[k % len(kinds)]`. Pools of several kinds and
    seeds can share a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = _chunks(folder, count, seed, kinds, chunk)
    missing = {path: numbers for path, numbers in chunks.items() if not path.exists()}
    done = count - sum(map(len, missing.values()))
    yield done
    if not missing:
        return
    jobs = [(path, numbers, seed, kinds, size) for path, numbers in missing.items()]
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


def load_pool(
    folder: Path,
    count: int,
    *,
    seed: int,
    kinds: Kinds = MIX,
    label_errors: LabelErrors | None = None,
    chunk: int = 500,
) -> Pool:
    """Read a pool of `count` scenes that has been drawn, and draw those anew that `label_errors` are about.

    Next to the planted errors, no other kind of scene may tell the model the truth about the two species: where one of
    them stands in a pair, a chimera or an intervention, the single of the same number takes its place. The classes of
    a creature's patches are those of the label, right or wrong; its parts are those that are drawn.
    """
    parts = [np.load(path) for path in _chunks(folder, count, seed, kinds, chunk)]
    pool = Pool(**{name: np.concatenate([part[name] for part in parts]) for name in Pool.__dataclass_fields__})
    if label_errors is not None:
        names = {label_errors.label, label_errors.shows}
        singles = Bestiary("single", pool.images.shape[-1], count, seed, label_errors=label_errors)
        for k in range(count):
            if names & set(_scene(k, seed, kinds).labels):
                _draw_into(pool, k, singles.scene(k), label_errors)
    return pool


def merged(pool: Pool, pairs: Sequence[tuple[str, str]]) -> Pool:
    """Returns a pool whose labels do not tell the two species of a pair apart: each has half of what both have.

    >>> labels = np.eye(20, dtype=np.float32)[None, :2]
    >>> pool = Pool(np.zeros((1, 3, 1, 1), np.uint8), np.zeros((1, 1, 1), np.uint8), labels[:, 0], labels)
    >>> merged(pool, [("tavel", "borrin")]).targets[0, :3].tolist()
    [0.5, 0.5, 0.0]
    """
    targets, creatures = pool.targets.copy(), pool.creatures.copy()
    for names in pairs:
        both = [CLASS_NAMES.index(name) for name in names]
        for labels in (targets, creatures):
            labels[..., both] = labels[..., both].mean(axis=-1, keepdims=True)
    return replace(pool, targets=targets, creatures=creatures)


def _chunks(folder: Path, count: int, seed: int, kinds: Kinds, chunk: int) -> dict[Path, range]:
    """The files of a pool, and the numbers of the scenes in each."""
    mix = "".join(kind[0] for kind in kinds)
    numbers = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    return {folder / f"{mix}-seed{seed}-{some.start:06d}-{some.stop:06d}.npz": some for some in numbers}


def _scene(number: int, seed: int, kinds: Kinds) -> Scene:
    return Bestiary(kinds[number % len(kinds)], count=number + 1, seed=seed).scene(number)


def _draw_chunk(job: tuple[Path, range, int, Kinds, int]) -> int:
    path, numbers, seed, kinds, size = job
    pool = Pool(
        images=np.empty((len(numbers), 3, size, size), dtype=np.uint8),
        owners=np.empty((len(numbers), size, size), dtype=np.uint8),
        targets=np.empty((len(numbers), len(CLASS_NAMES)), dtype=np.float32),
        creatures=np.empty((len(numbers), 2, len(CLASS_NAMES)), dtype=np.float32),
    )
    for place, number in enumerate(numbers):
        _draw_into(pool, place, _scene(number, seed, kinds))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **vars(pool))
    partial.replace(path)
    return len(numbers)


def _draw_into(pool: Pool, place: int, scene: Scene, label_errors: LabelErrors | None = None) -> None:
    """Draws a scene into a pool, at a place."""
    drawn = render(scene, pool.images.shape[-1])
    pool.images[place] = drawn.image.transpose(2, 0, 1)
    pool.targets[place] = soft_label(scene, label_errors)
    pool.owners[place], pool.creatures[place] = 0, 0
    for number, (creature, view) in enumerate(zip(scene.creatures, drawn.creatures, strict=True)):
        lone = len(scene.creatures) == 1
        pool.creatures[place, number] = pool.targets[place] if lone else posterior(creature.parts)
        for slot, mask in view.parts.items():
            pool.owners[place][mask] = VARIANT_CODES[slot, creature.parts[slot]] + SECOND * number


def augmented(
    images: UInt8[Tensor, "batch 3 size size"], owners: UInt8[Tensor, "batch size size"], generator: Generator
) -> tuple[Float[Tensor, "batch 3 size size"], Int[Tensor, "batch size size"]]:
    """Returns images in [-1, 1] under random flips, small motions and colour changes, and their owners moved along.

    >>> image = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    >>> augmented(image, image[:, 0], torch.Generator().manual_seed(0))[0].shape
    torch.Size([1, 3, 96, 96])
    """
    batch = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(batch, *shape).uniform_(low, high, generator=generator)

    angle, scale = uniform(-0.15, 0.15), uniform(0.9, 1.15)
    flip = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    shift = uniform(-0.06, 0.06, 2)
    theta = torch.stack(
        [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(theta, [batch, 1, *images.shape[2:]], align_corners=False)
    moved = functional.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    # Owners come from outside the picture nowhere: there the border is nobody's.
    owned = functional.grid_sample(
        owners[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return recoloured(moved, generator) / 127.5 - 1, owned[:, 0].long()


def deleted(
    images: Float[Tensor, "batch 3 size size"],
    owners: Int[Tensor, "batch size size"],
    share: float,
    cells: int,
    generator: Generator,
) -> tuple[Float[Tensor, "batch 3 size size"], Int[Tensor, "batch size size"]]:
    """Returns images in [-1, 1] of which a share lacks one random cell of cells x cells: it is 0, and nobody's.

    After Hesse et al., IDSDS (NeurIPS 2024): a model that has seen such images is at home with single deletions.

    >>> image = torch.ones(1, 3, 8, 8)
    >>> float(deleted(image, image[:, 0].long(), 1.0, 4, torch.Generator().manual_seed(0))[0].mean())
    0.9375
    """
    batch, side = len(images), images.shape[-1] // cells
    chosen = torch.randint(cells**2, (batch, 1), generator=generator)
    kept = torch.ones(batch, cells**2).scatter(1, chosen, 0.0)
    kept[torch.rand(batch, generator=generator) >= share] = 1
    pixels = kept.view(batch, cells, cells).repeat_interleave(side, 1).repeat_interleave(side, 2)
    return images * pixels[:, None], owners * pixels.long()


def recoloured(images: Float[Tensor, "batch 3 size size"], generator: Generator) -> Float[Tensor, "batch 3 size size"]:
    """Mixes the colour channels of each image at random: hues turn, saturation and brightness change."""
    batch = len(images)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(batch)])
    mixing = torch.eye(3)[order] + torch.empty(batch, 3, 3).uniform_(-0.12, 0.12, generator=generator)
    mixing = mixing / mixing.sum(dim=2, keepdim=True)
    mixing = mixing * torch.empty(batch, 1, 1).uniform_(0.8, 1.15, generator=generator)
    return (mixing @ images.flatten(2)).clamp(0, 255).view_as(images)


def patch_labels(
    owners: Int[Tensor, "batch size size"], creatures: Float[Tensor, "batch 2 classes"], patch: int
) -> tuple[Float[Tensor, "batch tokens parts"], Float[Tensor, "batch tokens labels"]]:
    """Returns the shares of each patch's pixels by part, and by the classes of the parts' owners."""
    batch, size, _ = owners.shape
    grid = size // patch
    pixels = owners.view(batch, grid, patch, grid, patch).transpose(2, 3).reshape(batch, grid * grid, patch * patch)
    shares = torch.zeros(batch, grid * grid, 2 * SECOND)
    shares.scatter_add_(2, pixels, torch.full(pixels.shape, 1 / patch**2))
    first, second = shares[..., 1:PART_LABELS], shares[..., SECOND + 1 : SECOND + PART_LABELS]
    ground = shares[..., :1]
    owned = first.sum(2, keepdim=True) * creatures[:, None, 0] + second.sum(2, keepdim=True) * creatures[:, None, 1]
    return torch.cat([ground, first + second], dim=2), torch.cat([ground, owned], dim=2)


def kept_tokens(ground: Float[Tensor, "batch tokens"], keep: int, generator: Generator) -> Int[Tensor, "batch keep"]:
    """Draws tokens at random and prefers those with a creature on them: the landscape teaches less."""
    chance = torch.rand(ground.shape, generator=generator) + 1.5 * (ground < 0.9)
    return chance.topk(keep, dim=1).indices
