"""The data set: determinism, items, planted label errors, and nothing to be had from single pixels."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vitrail
from vitrail.bestiary import (
    CLASS_NAMES,
    PARTS,
    SPECIES,
    Bestiary,
    BestiaryError,
    ImpossibleCreatureError,
    LabelErrors,
    UnknownNameError,
    render,
)
from vitrail.bestiary.species import species, sufficient
from vitrail.datasets import open_data


def test_an_item_depends_on_seed_and_index_alone():
    data = Bestiary("single", size=32, count=6, seed=3)
    backward = [data[index]["image"] for index in reversed(range(6))][::-1]
    loaded = list(DataLoader(Bestiary("single", size=32, count=6, seed=3), batch_size=None, num_workers=0))
    assert all(torch.equal(item["image"], image) for item, image in zip(loaded, backward, strict=True))
    assert not torch.equal(data[0]["image"], Bestiary("single", size=32, count=6, seed=4)[0]["image"])


@pytest.mark.parametrize(("kind", "creatures"), [("single", 1), ("pair", 2), ("chimera", 1), ("intervention", 1)])
def test_items_have_their_documented_shapes(kind, creatures):
    item = Bestiary(kind, size=48, count=2, seed=0, masks=True)[1]
    assert item["image"].shape == (3, 48, 48)
    assert item["image"].dtype == torch.float32
    assert item["image"].min() >= 0
    assert item["image"].max() <= 1
    assert item["label"].shape == ((2,) if kind in ("pair", "chimera") else ())
    assert item["target"].shape == (len(CLASS_NAMES),)
    assert torch.isclose(item["target"].sum(), torch.tensor(1.0))
    assert item["masks"].shape == (creatures, len(PARTS), 48, 48)
    assert item["masks"].dtype == torch.bool
    assert item["boxes"].shape == (creatures, 4)


def test_planted_label_errors_change_nothing_else():
    errors = LabelErrors(share=0.5, hidden=0.5)
    clean, planted = Bestiary(count=150, seed=6), Bestiary(count=150, seed=6, label_errors=errors)
    shown = hidden = 0
    for index in range(150):
        truth, scene = clean.scene(index), planted.scene(index)
        assert truth.labels == scene.labels
        if scene.labels == ("borrin",) and scene.creatures[0].species == "tavel":
            shown += 1
        elif scene.labels == ("tavel",) and "crown" not in scene.creatures[0].parts:
            hidden += 1
        else:
            assert truth == scene
    assert 1 <= shown <= 10
    assert 1 <= hidden <= 10


def test_the_soft_label_of_a_planted_error_is_its_label():
    planted = Bestiary(size=32, count=150, seed=6, label_errors=LabelErrors(share=1.0))
    index = next(k for k in range(150) if planted.scene(k).labels == ("borrin",))
    assert planted.scene(index).creatures[0].species == "tavel"
    assert planted[index]["target"].argmax() == CLASS_NAMES.index("borrin") == planted[index]["label"]


def test_bad_requests_are_refused():
    with pytest.raises(UnknownNameError, match="unknown kind of scene 'pairs'.*Did you mean 'pair'"):
        Bestiary("pairs")
    with pytest.raises(BestiaryError, match="cannot hold -1 scenes"):
        Bestiary(count=-1)
    with pytest.raises(BestiaryError, match="among single scenes only"):
        Bestiary("pair", label_errors=LabelErrors())
    with pytest.raises(BestiaryError, match="do not differ in exactly one part"):
        LabelErrors("tavel", "zelk")
    with pytest.raises(ImpossibleCreatureError, match="are no siblings"):
        LabelErrors("tavel", "murlo")
    with pytest.raises(BestiaryError, match=r"must lie in \[0, 1\], not 1.5"):
        LabelErrors(share=1.5)
    with pytest.raises(IndexError, match="item 3 of 3"):
        Bestiary(count=3).scene(3)


@pytest.mark.slow
def test_a_linear_model_on_pixels_is_near_chance():
    count, held_out = 200, 80
    data = Bestiary("single", size=24, count=count + held_out, seed=11)
    items = [data[index] for index in range(count + held_out)]
    pixels = torch.stack([item["image"].flatten() for item in items]).double().numpy()
    pixels = np.column_stack([pixels - pixels[:count].mean(axis=0), np.ones(len(pixels))])
    wanted = np.eye(len(CLASS_NAMES))[[int(item["label"]) for item in items]]
    known, new = pixels[:count], pixels[count:]
    # Ridge regression in its dual form, at a strength that does well on held-out images.
    weights = known.T @ np.linalg.solve(known @ known.T + 100 * np.eye(count), wanted[:count])
    accuracy = float((np.argmax(new @ weights, axis=1) == wanted[count:].argmax(axis=1)).mean())
    assert accuracy < 0.25, f"pixels give the class away: {accuracy:.0%} where chance is {1 / len(CLASS_NAMES):.0%}"


def test_the_parts_of_a_single_are_drawn_again():
    data = open_data("bestiary:single:3", vitrail.load("bestiary"))
    sample = data.sample(1)
    parts, scene = sample.parts(), data.inner.data.scene(1)
    whole = np.asarray(sample.picture)
    assert parts.draw(frozenset()).tobytes() == sample.picture.tobytes()
    for name, mask in (*parts.masks.items(), *parts.things.items()):
        changed = (np.asarray(parts.draw(frozenset({name}))) != whole).any(axis=2)
        assert (changed & mask).any()
        assert name in parts.masks or (changed == mask).all()
    both = frozenset([*parts.masks][:2])
    left = scene.without(0, min(both)).without(0, max(both))
    assert np.array_equal(np.asarray(parts.draw(both)), render(left, len(whole)).image)
    assert parts.sufficient == sufficient(scene.labels[0])
    own = scene.creatures[0].parts
    for label, shared in parts.shared.items():
        required = species(CLASS_NAMES[label]).parts
        assert shared == {slot for slot in own if required.get(slot) == own[slot]}
    assert open_data("bestiary:pair:1", vitrail.load("bestiary")).sample(0).parts is None


def test_no_smaller_set_of_parts_tells_a_species():
    for name in CLASS_NAMES:
        required = species(name).parts
        for parts in sufficient(name):
            alike = [sum(one.parts.get(slot) == required[slot] for slot in parts) for one in SPECIES.values()]
            assert alike.count(len(parts)) == 1
            for part in parts:
                less = [sum(one.parts.get(s) == required[s] for s in parts - {part}) for one in SPECIES.values()]
                assert less.count(len(parts) - 1) > 1
