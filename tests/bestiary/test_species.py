"""The table of species keeps the promises of its head comment."""

import numpy as np
import pytest

from vitrail.bestiary import CLASS_NAMES, FAMILIES, SPECIES, ImpossibleCreatureError, UnknownNameError
from vitrail.bestiary.species import check_parts, crossings, difference, posterior, siblings, species


def test_at_least_sixteen_classes_in_families_of_four():
    assert len(CLASS_NAMES) >= 16
    assert {len(siblings(name)) for name in CLASS_NAMES} == {3}


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_differ_in_exactly_one_or_two_diagnostic_parts(family):
    first, second, third, fourth = (name for name in CLASS_NAMES if SPECIES[name].family.name == family)
    slot_x, slot_y = FAMILIES[family].diagnostic
    assert difference(first, second) == (slot_x,)
    assert difference(third, fourth) == (slot_y,)
    for one in (first, second):
        for other in (third, fourth):
            assert difference(one, other) == (slot_x, slot_y)


def test_every_species_shares_a_diagnostic_variant_with_another_family():
    for name, candidate in SPECIES.items():
        families = {
            other.family.name
            for other in SPECIES.values()
            for slot in candidate.family.diagnostic
            if other.parts.get(slot) == candidate.parts[slot]
        }
        assert len(families) > 1, name


def test_a_chimera_is_no_species():
    for first, second in crossings():
        x, y = SPECIES[first].family.diagnostic
        crossed = (SPECIES[first].parts[x], SPECIES[second].parts[y])
        assert crossed not in {
            sibling.traits for sibling in SPECIES.values() if sibling.family is SPECIES[first].family
        }


def test_posterior_of_a_whole_creature_is_nearly_certain():
    for index, name in enumerate(CLASS_NAMES):
        belief = posterior(SPECIES[name].parts)
        assert np.isclose(belief.sum(), 1)
        assert belief.argmax() == index
        assert belief[index] > 0.9


def test_posterior_without_the_telling_part_is_shared_by_the_siblings_it_tells_apart():
    belief = posterior({"body": "strider", "tail": "plume"})
    tavel, borrin = CLASS_NAMES.index("tavel"), CLASS_NAMES.index("borrin")
    assert np.isclose(belief[tavel], belief[borrin])
    assert belief[tavel] > 0.45


def test_posterior_of_a_chimera_is_shared_by_its_two_species():
    belief = posterior({"body": "strider", "crown": "antlers", "tail": "tuft"})
    tavel, zelk = CLASS_NAMES.index("tavel"), CLASS_NAMES.index("zelk")
    assert np.isclose(belief[tavel], belief[zelk])
    assert belief[tavel] > 0.35


def test_unknown_names_are_refused_with_the_nearest_known_one():
    with pytest.raises(UnknownNameError, match="unknown species 'tavl'.*Did you mean 'tavel'"):
        species("tavl")
    with pytest.raises(UnknownNameError, match="unknown family 'strid'"):
        check_parts("strid", {})
    with pytest.raises(UnknownNameError, match="unknown part 'horn'"):
        check_parts("strider", {"horn": "spike"})
    with pytest.raises(UnknownNameError, match="unknown variant of crown 'curl'.*Did you mean 'curls'"):
        check_parts("strider", {"crown": "curl"})


def test_impossible_parts_are_refused():
    with pytest.raises(ImpossibleCreatureError, match="a strider has no shell; its parts are body, coat, crown"):
        check_parts("strider", {"shell": "cone"})
    with pytest.raises(ImpossibleCreatureError, match="a strider cannot have the body of a drifter"):
        check_parts("strider", {"body": "drifter"})
    with pytest.raises(ImpossibleCreatureError, match=r"tavel \(a strider\) and murlo \(a creeper\) are no siblings"):
        difference("tavel", "murlo")
