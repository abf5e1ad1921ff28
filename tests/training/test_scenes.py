"""The pool of scenes: shared between trainings, and with label errors that nothing in it gives away."""

import numpy as np
import pytest

from training.scenes import MIX, draw_pool, load_pool, merged
from vitrail.bestiary import CLASS_NAMES, Bestiary, LabelErrors
from vitrail.bestiary.dataset import soft_label

COUNT = 60
ERRORS = LabelErrors("lindle", "vesk", share=0.8, hidden=0.0)
PAIR = [CLASS_NAMES.index(name) for name in (ERRORS.label, ERRORS.shows)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool")
    for kinds in (MIX, ("single",)):
        assert list(draw_pool(path, COUNT, seed=5, kinds=kinds, chunk=40)) == [0, 40, 60]
        assert list(draw_pool(path, COUNT, seed=5, kinds=kinds, chunk=40)) == [60]
    return path


def read(folder, kinds, errors=None):
    return load_pool(folder, COUNT, seed=5, kinds=kinds, label_errors=errors, chunk=40)


def test_pools_of_several_kinds_share_a_folder(folder):
    mixed, singles = read(folder, MIX), read(folder, ("single",))
    assert len(mixed) == len(singles) == COUNT
    for k in (0, 5, 9):  # singles in either
        np.testing.assert_array_equal(mixed.images[k], singles.images[k])
    assert not (mixed.images[1] == singles.images[1]).all()
    assert (singles.creatures[:, 1] == 0).all()
    data = Bestiary(count=COUNT, seed=5)
    for k in (0, 41, 59):
        np.testing.assert_array_equal(singles.images[k], (255 * data[k]["image"]).byte().numpy())


def test_label_errors_change_nothing_but_their_own_scenes(folder):
    clean, planted = read(folder, ("single",)), read(folder, ("single",), ERRORS)
    data = Bestiary(count=COUNT, seed=5, label_errors=ERRORS)
    wrong = [data.scene(k).labels[0] != data.scene(k).creatures[0].species for k in range(COUNT)]
    assert 1 <= sum(wrong) < 5
    changed = (clean.images != planted.images).any((1, 2, 3))
    np.testing.assert_array_equal(changed, wrong)
    np.testing.assert_allclose(clean.targets, planted.targets, atol=0.02)
    np.testing.assert_array_equal(clean.targets.argmax(1), planted.targets.argmax(1))


def test_patches_of_a_wrong_label_are_labelled_as_wrongly(folder):
    planted = read(folder, ("single",), ERRORS)
    np.testing.assert_array_equal(planted.creatures[:, 0], planted.targets)
    data = Bestiary(count=COUNT, seed=5, label_errors=ERRORS)
    for k in range(COUNT):
        scene = data.scene(k)
        if set(scene.labels) & {ERRORS.label, ERRORS.shows}:
            assert planted.targets[k].argmax() == CLASS_NAMES.index(scene.labels[0])
            np.testing.assert_allclose(planted.targets[k], soft_label(scene, ERRORS), atol=1e-7)


def test_next_to_label_errors_no_other_scene_tells_the_truth(folder):
    clean, planted = read(folder, MIX), read(folder, MIX, ERRORS)
    several = np.array([kind != "single" for kind in MIX * (COUNT // len(MIX))])
    about = (clean.creatures[..., PAIR] > 0.3).any((1, 2)) & several
    assert about.sum() > 3
    assert (planted.creatures[about, 1] == 0).all()  # singles took their place
    alike = (clean.images == planted.images).all((1, 2, 3))
    assert alike[~about & several].mean() > 0.9
    assert not alike[about].any()


def test_merged_labels_do_not_tell_a_pair_apart(folder):
    clean = read(folder, ("single",))
    found = merged(clean, [(ERRORS.label, ERRORS.shows)])
    for before, after in ((clean.targets, found.targets), (clean.creatures[:, 0], found.creatures[:, 0])):
        np.testing.assert_array_equal(after[:, PAIR[0]], after[:, PAIR[1]])
        np.testing.assert_allclose(after.sum(1), before.sum(1), rtol=1e-6)
        np.testing.assert_array_equal(np.delete(after, PAIR, axis=1), np.delete(before, PAIR, axis=1))
    assert clean.targets[:, PAIR[0]].max() > 0.9  # the pool itself stays
