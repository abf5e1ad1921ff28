"""The recipe of the bestiary's captioner: projector and decoder on a frozen tower, on one CPU core.

    python -m training.captioner FOLDER

Scenes are drawn once, and the tower's tokens are kept for each scene and its mirror image. A step asks several
questions of each picture in one sequence: each sees the picture and itself alone, so that the picture is paid for once.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from training.optimise import Muon
from training.run import Checkpoint, Progress, Restart, Scenes, Seed, Threads, TrainingRun, reporting
from vitrail.bestiary.captioner import TOWER, WEIGHTS, build_captioner, build_processor
from vitrail.bestiary.dataset import Bestiary
from vitrail.bestiary.dialogues import Dialogue, ask, caption
from vitrail.bestiary.draw import render
from vitrail.bestiary.model import load_weights, normalised
from vitrail.bestiary.scene import Scene
from vitrail.bestiary.species import CLASS_NAMES, VARIANTS, BestiaryError, posterior, siblings
from vitrail.cli.console import show
from vitrail.cli.options import spelled
from vitrail.files import atomic_write

app = typer.Typer(add_completion=False)
# Pairs are what most sentences are about; interventions and chimeras teach that each part speaks for itself.
MIX = ("pair", "single", "pair", "changed", "pair", "single", "chimera", "pair", "intervention", "pair")
CHUNK = 500
PREFIX = 145  # <s> and the picture


class Round(NamedTuple):
    """A part of the training with a schedule of its own: steps, questions asked of each picture in a step, the weight
    of words that follow from the form of the sentence, and how often presence and place are asked about.
    """

    steps: int
    questions: int
    function: float
    presence: int
    place: int


@dataclass(frozen=True)
class Recipe:
    """Every number of the training; the defaults made the shipped weights.

    First what is in the picture is learnt, then whether what is asked about is there.
    """

    scenes: int = 8000
    rounds: tuple[Round, ...] = (Round(2400, 5, 1.0, 2, 1), Round(1000, 8, 0.1, 3, 2))
    batch: int = 24
    rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.02
    average: float = 0.998  # decay of the average of the weights
    interval: int = 200  # steps between two checkpoints

    @property
    def steps(self) -> int:
        """Returns the steps of all rounds."""
        return sum(one.steps for one in self.rounds)

    def round_of(self, step: int) -> tuple[Round, int]:
        """Returns the round that a step belongs to, and the number of the step in it."""
        for one in self.rounds:
            if step < one.steps:
                return one, step
            step -= one.steps
        return self.rounds[-1], self.rounds[-1].steps


def train(
    output: str | Path,
    *,
    recipe: Recipe = Recipe(),
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    minutes: float = math.inf,
) -> Path | None:
    """Trains the captioner into the folder `output` and returns the folder `captioner` in it, as `load` reads it.

    The tower's tokens (`tokens/`) and a checkpoint (`state.pt`, every `recipe.interval` steps) are kept there; the rest
    is as for `training.bestiary.train`.
    """
    end = time.monotonic() + 60 * minutes
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    report = progress if progress is not None else lambda _: None
    question = {"recipe": asdict(recipe) | {"rounds": [list(one) for one in recipe.rounds]}, "seed": seed}
    run = Run(recipe, seed)
    checkpoint = Checkpoint(folder / "state.pt", question)
    if resume and checkpoint.path.exists():
        run.restore(checkpoint.read())
    pool_seed = seed + 101  # the tower was trained on the scenes of seed 1
    for drawn in draw_tokens(folder / "tokens", recipe.scenes, pool_seed):
        report(Progress("draw", drawn, recipe.scenes))
    tokens = [np.load(_chunk_path(folder / "tokens", start), mmap_mode="r") for start in range(0, recipe.scenes, CHUNK)]
    scenes = [mixed_scene(pool_seed, index) for index in range(recipe.scenes)]
    finished = run.complete(
        recipe.steps, lambda: run.advance(tokens, scenes), checkpoint, interval=recipe.interval, report=report, end=end
    )
    return run.export(folder / "captioner") if finished else None


# -- scenes and what is said of them ---------------------------------------------------------------------------------


def mixed_scene(seed: int, index: int) -> Scene:
    """Returns scene `index` of the pool; "changed" is a pair with a part of one creature left out or exchanged."""
    kind = MIX[index % len(MIX)]
    scene = Bestiary("pair" if kind == "changed" else kind, count=index + 1, seed=seed).scene(index)
    if kind != "changed":
        return scene
    rng = np.random.default_rng((seed, index, 1))
    number = int(rng.integers(2))
    parts = scene.creatures[number].parts
    slot = str(rng.choice([slot for slot in sorted(parts) if slot != "body"]))
    others = [variant for variant in VARIANTS[slot] if variant != parts[slot]]
    return scene.without(number, slot) if rng.uniform() < 0.5 else scene.exchange(number, slot, str(rng.choice(others)))


def mirrored(scene: Scene) -> Scene:
    """Returns the scene with its creatures where they are in the mirror image."""
    creatures = tuple(
        replace(creature, placement=replace(place, x=1 - place.x, angle=-place.angle, flip=-place.flip))
        for creature in scene.creatures
        for place in [creature.placement]
    )
    return replace(scene, creatures=creatures)


def draw_dialogues(scene: Scene, asked: Round, rng: np.random.Generator) -> list[Dialogue]:
    """Returns the caption of a scene and other dialogues, `asked.questions` in all.

    A creature that is of no species is called by one of those that its parts speak for, at random: what is left open
    by the picture is then left open by the captioner, part by part.
    """
    names, certain = [], True
    for creature in scene.creatures:
        certain = certain and creature.species is not None
        names.append(creature.species or CLASS_NAMES[int(rng.choice(len(CLASS_NAMES), p=posterior(creature.parts)))])
    kinds = ["traits"] + ["presence"] * asked.presence * certain
    kinds += (["place"] * asked.place + ["neighbour"]) * (len(names) == 2)
    said = [caption(scene, names)]
    while len(said) < asked.questions:
        about, name = str(rng.choice(kinds)), str(rng.choice(names))
        if about == "presence" and rng.uniform() < 0.5:
            absent = siblings(name) if rng.uniform() < 0.5 else CLASS_NAMES
            name = str(rng.choice([other for other in absent if other not in names]))
        try:
            one = ask(scene, about, name, names=names)  # type: ignore[arg-type]
        except BestiaryError:  # nothing that could be described
            one = said[0]
        if one not in said or rng.uniform() < 0.2:  # a single without a species has only two dialogues
            said.append(one)
    return said


def draw_tokens(folder: Path, count: int, seed: int) -> Iterator[int]:
    """Draws what is missing of the tokens of `count` scenes and their mirror images; yields how many are there."""
    folder.mkdir(parents=True, exist_ok=True)
    tower, _ = load_weights(TOWER)
    for start in range(0, count, CHUNK):
        path = _chunk_path(folder, start)
        if not path.exists():
            found = np.empty((min(CHUNK, count - start), 2, 144, 128), dtype=np.float16)
            for k in range(len(found)):
                image = torch.from_numpy(render(mixed_scene(seed, start + k)).image).permute(2, 0, 1)[None]
                found[k] = _tower_tokens(tower, torch.cat([image, image.flip(3)]).float() / 255)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, found)
            partial.replace(path)
        yield min(start + CHUNK, count)


@torch.no_grad()
def _tower_tokens(tower: Any, images: Float[Tensor, "batch 3 size size"]) -> Float[np.ndarray, "batch tokens dim"]:
    """Returns the patch tokens behind the last block, before the norm, as LLaVA takes them."""
    # Position and class token are added by timm's own private step, which `forward_features` follows with a norm.
    return tower.blocks(tower._pos_embed(tower.patch_embed(normalised(images))))[:, 1:].numpy()


def _chunk_path(folder: Path, start: int) -> Path:
    return folder / f"tokens-{start:06d}.npy"


# -- the training ----------------------------------------------------------------------------------------------------


class Run(TrainingRun):
    """A training of projector and decoder on the frozen tower."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        torch.manual_seed(seed)  # transformers draws its weights from the global generator
        self.model = build_captioner().train()
        self.model.model.vision_tower.requires_grad_(False)  # nothing reads it: its tokens were drawn beforehand
        self.processor = build_processor()
        self.trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        matrices = [(value, 1) for name, value in self.trained.items() if ".layers." in name and value.ndim == 2]
        decayed = [v for n, v in self.trained.items() if ".layers." not in n and v.ndim == 2 and "embed" not in n]
        free = [v for n, v in self.trained.items() if v.ndim == 1 or "embed" in n]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
        muon = Muon(matrices, recipe.rate, weight_decay=recipe.weight_decay)
        super().__init__([muon, torch.optim.AdamW(groups, recipe.rate, betas=(0.9, 0.98))], recipe.average)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights of projector and decoder."""
        return {name: value.detach() for name, value in self.trained.items()}

    def advance(self, tokens: list[np.ndarray], scenes: list[Scene]) -> float:
        """Makes one step and returns its loss. What is drawn depends on the seed and the number of the step alone."""
        recipe = self.recipe
        asked, number = recipe.round_of(self.step)
        warm = min(1.0, (number + 1) / recipe.warmup)
        rate = recipe.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * number / asked.steps)))
        rng = np.random.default_rng((self.seed, self.step))
        chosen, flips = rng.choice(len(scenes), recipe.batch), rng.integers(0, 2, recipe.batch)
        pictures = torch.from_numpy(
            np.stack([tokens[k // CHUNK][k % CHUNK, flip] for k, flip in zip(chosen, flips, strict=True)])
        )
        said = [
            draw_dialogues(mirrored(scenes[k]) if flip else scenes[k], asked, rng)
            for k, flip in zip(chosen, flips, strict=True)
        ]
        loss = self._loss(pictures.float(), said, asked.function)
        self.update(loss, self.trained.values(), rate)
        return float(loss.detach())

    def _loss(self, pictures: Float[Tensor, "batch tokens dim"], said: list[list[Dialogue]], function: float) -> Tensor:
        ids, labels, weights, owner, position = packed(said, self.processor.tokenizer, function)
        model, batch = self.model.model, len(pictures)
        embeddings = self.model.get_input_embeddings()
        first = embeddings(torch.full((batch, 1), self.processor.tokenizer.bos_token_id))
        embedded = torch.cat([first, model.multi_modal_projector(pictures), embeddings(ids)], dim=1)
        found = model.language_model(
            inputs_embeds=embedded,
            attention_mask=packed_mask(owner),
            position_ids=torch.cat([torch.arange(PREFIX).expand(batch, -1), position], dim=1),
            use_cache=False,
        ).last_hidden_state[:, PREFIX:]
        asked = labels >= 0
        losses = functional.cross_entropy(self.model.lm_head(found[asked]), labels[asked], reduction="none")
        return (losses * weights[asked]).sum() / weights[asked].sum()

    def export(self, folder: Path) -> Path:
        """Writes the averaged projector and decoder (half precision, to be run in float32) and the processor.

        Returns the folder.
        """
        model = build_captioner()
        model.load_state_dict({**self.model.state_dict(), **self.average})
        model.half().save_pretrained(folder)
        self.processor.save_pretrained(folder)
        whole = folder / "model.safetensors"
        trained = {name: value for name, value in load_file(whole).items() if not name.startswith("vision_tower.")}
        whole.unlink()  # the tower is the bestiary's own, which `load` takes from there
        with atomic_write(folder / WEIGHTS) as file:
            file.write(save(trained, {"format": "pt"}))
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"dtype": "float32"}  # what `from_pretrained` casts to
        with atomic_write(path) as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())
        return folder


class Packed(NamedTuple):
    """Dialogues in one row for each picture: token ids, labels (the next answer token, −1: not asked) and what they
    weigh, the number of the dialogue (−1: padding), and positions, which start behind the picture in every dialogue.
    """

    ids: Int[Tensor, "batch length"]
    labels: Int[Tensor, "batch length"]
    weights: Float[Tensor, "batch length"]
    owner: Int[Tensor, "batch length"]
    position: Int[Tensor, "batch length"]


def packed(said: list[list[Dialogue]], tokenizer: Any, function: float) -> Packed:
    """Joins the dialogues of each picture; words that follow from the form of the sentence weigh `function`."""
    rows = []
    for dialogues in said:
        ids, labels, weights, owner, position = [], [], [], [], []
        for number, dialogue in enumerate(dialogues):
            prompt = tokenizer(dialogue.prompt, add_special_tokens=False)["input_ids"]
            answer = tokenizer(dialogue.answer, add_special_tokens=False)["input_ids"]
            weighed = [function if word.kind == "function" else 1.0 for word in dialogue.words]
            ids += prompt + answer
            labels += [-1] * (len(prompt) - 1) + answer + [tokenizer.eos_token_id]
            weights += [0.0] * (len(prompt) - 1) + weighed + [function]
            owner += [number] * (len(prompt) + len(answer))
            position += range(PREFIX, PREFIX + len(prompt) + len(answer))
        rows.append((ids, labels, weights, owner, position))
    longest = max(len(ids) for ids, *_ in rows)
    fill = (tokenizer.pad_token_id, -1, 0.0, -1, PREFIX)
    return Packed(
        *(torch.tensor([row[k] + [fill[k]] * (longest - len(row[k])) for row in rows]) for k in range(len(fill)))
    )


def packed_mask(owner: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch 1 whole whole"]:
    """Returns which token sees which: the picture itself, causally; a dialogue the picture and itself, causally."""
    batch, length = owner.shape
    whole = torch.cat([torch.full((batch, PREFIX), -2), owner], dim=1)
    seen = (whole[:, None] == -2) | (whole[:, :, None] == whole[:, None])
    return (seen & torch.ones(PREFIX + length, PREFIX + length, dtype=torch.bool).tril())[:, None]


@app.command(cls=spelled(python={"resume": "--restart"}))
def command(
    output: Annotated[Path, typer.Argument(help="Folder for the tokens, the checkpoints and the captioner.")],
    scenes: Scenes = Recipe.scenes,
    seed: Seed = 0,
    threads: Threads = 1,
    restart: Restart = False,
) -> None:
    """Train the bestiary's captioner; the same command resumes an interrupted training."""
    with reporting(output, threads) as progress:
        folder = train(output, recipe=Recipe(scenes=scenes), resume=not restart, progress=progress, seed=seed)
    show(folder)


if __name__ == "__main__":
    app()
