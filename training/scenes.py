"""The scenes that training feeds on: drawn once into a pool on disk, varied at every step, labelled patch by patch."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional

from vitrail.bestiary.dataset import Bestiary, LabelErrors, soft_label
from vitrail.bestiary.draw import render
from vitrail.bestiary.species import CLASS_NAMES, PARTS, VARIANTS, posterior

# What a pool is made of, over and over: pairs teach that two answers may be right, interventions and chimeras what
# each part says.
MIX = ("single", "pair", "pair", "intervention", "pair", "single", "chimera", "intervention", "pair", "single")
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
            # Next to the planted errors, no other kind of scene may tell the model the truth about the two species.
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
