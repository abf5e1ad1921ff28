"""The captioner's recipe in miniature: it resumes bit by bit, and a packed step is the model's own loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.captioner import PREFIX, Recipe, Round, Run, draw_dialogues, mirrored, mixed_scene, train
from vitrail.bestiary.captioner import WEIGHTS, load
from vitrail.bestiary.dialogues import ask
from vitrail.bestiary.scene import extent
from vitrail.bestiary.species import species
from vitrail.errors import CheckpointError

pytest.importorskip("transformers")
ROUNDS = (Round(1, 3, 1.0, 2, 1), Round(1, 4, 0.1, 3, 2))
TINY = Recipe(scenes=6, rounds=ROUNDS, batch=3, warmup=1, interval=1)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = train(tmp_path / "a", recipe=TINY)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tokens").symlink_to(tmp_path / "a" / "tokens")
    assert train(tmp_path / "b", recipe=TINY, minutes=0.0) is None  # stops at the first checkpoint
    resumed = train(tmp_path / "b", recipe=TINY)
    assert (resumed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert sorted(path.name for path in whole.glob("*.safetensors")) == [WEIGHTS]
    model, processor = load(resumed)
    assert model.dtype == torch.float32
    assert processor.tokenizer("is there a tavel?")["input_ids"][0] == processor.tokenizer.bos_token_id
    with pytest.raises(CheckpointError, match="another seed; choose another folder"):
        train(tmp_path / "b", recipe=TINY, seed=1)


def test_a_packed_step_is_the_loss_of_the_model_asked_one_by_one():
    run = Run(TINY, 0)
    scenes = [mixed_scene(0, index) for index in range(3)]
    said = [draw_dialogues(scene, ROUNDS[0], np.random.default_rng(index)) for index, scene in enumerate(scenes)]
    tokens = torch.randn(3, 144, 128, generator=torch.Generator().manual_seed(0))
    losses, weights, tokenizer = [], [], run.processor.tokenizer
    for picture, dialogues in zip(tokens, said, strict=True):
        for dialogue in dialogues:
            ids = tokenizer(f"{'<image>' * 144} {dialogue.prompt} {dialogue.answer}</s>", return_tensors="pt")
            embedded = run.model.get_input_embeddings()(ids["input_ids"])
            embedded[:, 1:PREFIX] = run.model.model.multi_modal_projector(picture)
            logits = run.model(inputs_embeds=embedded).logits[0, :-1]
            asked = len(dialogue.words) + 1
            losses.append(
                torch.nn.functional.cross_entropy(logits[-asked:], ids["input_ids"][0, -asked:], reduction="none")
            )
            weights += [0.1 if word.kind == "function" else 1.0 for word in dialogue.words] + [0.1]
    mean = torch.cat(losses) @ torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(run._loss(tokens, said, 0.1), mean, rtol=1e-5, atol=1e-6)


def test_a_mirrored_scene_has_its_creatures_on_the_other_side():
    scene = mixed_scene(5, 0)
    for one, other in zip(scene.creatures, mirrored(scene).creatures, strict=True):
        left, bottom, right, top = extent(one)
        np.testing.assert_allclose(extent(other), (1 - right, bottom, 1 - left, top), atol=1e-9)
    assert "right" in ask(scene, "place", scene.labels[0]).answer
    assert "left" in ask(mirrored(scene), "place", scene.labels[0]).answer


def test_a_creature_of_no_species_is_called_by_what_its_parts_speak_for():
    scene = replace(mixed_scene(5, 1), labels=())
    scene = scene.without(0, species(scene.creatures[0].species).family.diagnostic[0])
    names = {draw_dialogues(scene, ROUNDS[0], np.random.default_rng(k))[0].words[-1].text for k in range(20)}
    assert len(names) > 1


def test_each_round_has_a_schedule_of_its_own():
    assert TINY.steps == 2
    assert [TINY.round_of(step) for step in range(3)] == [(ROUNDS[0], 0), (ROUNDS[1], 0), (ROUNDS[1], 1)]
