"""The captioner: a plain LLaVA from its folder, the bestiary's ViT in it, right sentences, and what they are due to."""

import sys
from pathlib import Path

import pytest
import torch

from vitrail.bestiary import BestiaryError, UnknownNameError, captioner, sample_scene
from vitrail.bestiary.model import load_weights
from vitrail.errors import CheckpointError, ModelError

transformers = pytest.importorskip("transformers")
TIMM = captioner.FOLDER.parent / "bestiary.safetensors"


@pytest.fixture(scope="module")
def pair():
    return sample_scene("pair", seed=3, species=("tavel", "murlo"))


def test_sentences_say_what_is_in_the_scene_and_where(pair):
    assert captioner.caption(pair).answer == "a spiral murlo left of a horned tavel"
    assert captioner.ask(pair, "place", "murlo").answer == "left of the tavel"
    assert captioner.ask(pair, "neighbour", "tavel").prompt == "what is left of the tavel?"
    assert captioner.ask(pair, "neighbour", "tavel").answer == "a spiral murlo"
    assert captioner.ask(pair, "traits", "tavel").answer == "it is horned and plumed"
    assert captioner.ask(pair, "presence", "oozel").prompt == "is there an oozel?"
    assert [captioner.ask(pair, "presence", name).answer for name in ("oozel", "murlo")] == ["no", "yes"]
    words = {word.text: word for word in captioner.caption(pair).words}
    assert words["horned"] == ("horned", "trait", (0,))
    assert words["murlo"] == ("murlo", "name", (1,))
    assert words["left"] == ("left", "relation", (1, 0))


def test_a_trait_that_is_not_drawn_is_not_said(pair):
    scene = sample_scene("single", seed=0, species="tavel").without(0, "crown")
    with pytest.raises(BestiaryError, match="of no species: give a name"):
        captioner.caption(scene)
    assert captioner.caption(scene, ["tavel"]).answer == "a tavel"
    assert captioner.ask(scene, "traits", "tavel", names=["tavel"]).answer == "it is plumed"


def test_questions_without_an_answer_are_refused(pair):
    with pytest.raises(BestiaryError, match="no oozel in this scene of tavel, murlo"):
        captioner.ask(pair, "place", "oozel")
    with pytest.raises(UnknownNameError, match="unknown species 'tavl'"):
        captioner.ask(pair, "presence", "tavl")
    with pytest.raises(BestiaryError, match="two creatures, not 1"):
        captioner.ask(pair.without(1), "neighbour", "tavel")
    with pytest.raises(BestiaryError, match="one or two creatures, not 0"):
        captioner.caption(pair.without(1).without(0))


def test_the_tower_is_the_bestiarys_vit():
    vit, _ = load_weights(TIMM)
    config = captioner.build_captioner().config.vision_config
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tower = transformers.ViTModel(config).eval().to(dtype)
        tower.load_state_dict(captioner.tower_weights(vit))
        found = tower(pixels.to(dtype), output_hidden_states=True)
        vit.to(dtype)
        with torch.no_grad():
            blocks = vit.blocks(vit._pos_embed(vit.patch_embed(pixels.to(dtype))))
        torch.testing.assert_close(found.hidden_states[-1], blocks, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.last_hidden_state, vit.norm(blocks), rtol=tolerance, atol=tolerance)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no model.safetensors; train it by `python -m training"):
        captioner.load(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="transformers is not installed; install it with"):
        captioner.load()


def test_held_out_scenes_are_no_training_scenes():
    recipe = (Path(__file__).parents[2] / "training" / "captioner.py").read_text()
    assert "pool_seed = seed + 101" in recipe
    assert captioner.HELD_OUT > 1_000_000
