"""The dialogues of the captioner: what the words of an answer are, and which scenes have none."""

from pathlib import Path

import pytest

from vitrail.bestiary import BestiaryError, UnknownNameError, sample_scene
from vitrail.bestiary.dialogues import HELD_OUT, ask, caption


@pytest.fixture(scope="module")
def pair():
    return sample_scene("pair", seed=3, species=("tavel", "murlo"))


def test_sentences_say_what_is_in_the_scene_and_where(pair):
    assert caption(pair).answer == "a spiral murlo left of a horned tavel"
    assert ask(pair, "place", "murlo").answer == "left of the tavel"
    assert ask(pair, "neighbour", "tavel").prompt == "what is left of the tavel?"
    assert ask(pair, "neighbour", "tavel").answer == "a spiral murlo"
    assert ask(pair, "traits", "tavel").answer == "it is horned and plumed"
    assert ask(pair, "presence", "oozel").prompt == "is there an oozel?"
    assert [ask(pair, "presence", name).answer for name in ("oozel", "murlo")] == ["no", "yes"]
    words = {word.text: word for word in caption(pair).words}
    assert words["horned"] == ("horned", "trait", (0,))
    assert words["murlo"] == ("murlo", "name", (1,))
    assert words["left"] == ("left", "relation", (1, 0))


def test_a_trait_that_is_not_drawn_is_not_said():
    scene = sample_scene("single", seed=0, species="tavel").without(0, "crown")
    with pytest.raises(BestiaryError, match="of no species: give a name"):
        caption(scene)
    assert caption(scene, ["tavel"]).answer == "a tavel"
    assert ask(scene, "traits", "tavel", names=["tavel"]).answer == "it is plumed"


def test_questions_without_an_answer_are_refused(pair):
    with pytest.raises(BestiaryError, match="no oozel in this scene of tavel, murlo"):
        ask(pair, "place", "oozel")
    with pytest.raises(UnknownNameError, match="unknown species 'tavl'"):
        ask(pair, "presence", "tavl")
    with pytest.raises(BestiaryError, match="two creatures, not 1"):
        ask(pair.without(1), "neighbour", "tavel")
    with pytest.raises(BestiaryError, match="one or two creatures, not 0"):
        caption(pair.without(1).without(0))


def test_held_out_scenes_are_no_training_scenes():
    recipe = (Path(__file__).parents[2] / "training" / "captioner.py").read_text()
    assert "pool_seed = seed + 101" in recipe
    assert HELD_OUT > 1_000_000
