import numpy as np
import pytest
import torch

from vitrail.errors import AmbiguousClassError, UnknownClassError
from vitrail.models.class_names import class_index, short_name

ZOO = (
    "kite",
    "bald eagle, American eagle, Haliaeetus leucocephalus",
    "crane",
    "African elephant, Loxodonta africana",
    "Indian elephant, Elephas maximus",
    "crane",
    "maillot",
    "maillot, tank suit",
    "bull mastiff",
    "wall_clock",
)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("kite", 0),
        ("KITE", 0),
        ("  Bald   Eagle ", 1),
        ("bald_eagle", 1),
        ("haliaeetus leucocephalus", 1),
        ("bald eagle, American eagle, Haliaeetus leucocephalus", 1),
        ("eagle", 1),
        ("leucocephalus", 1),
        ("maillot, tank suit", 7),
        ("mastiff", 8),
        ("wall clock", 9),
        ("clock", 9),
        (3, 3),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        (np.uint8(3), 3),
        ("3", 3),
        (" 3 ", 3),
    ],
)
def test_a_class_is_found_by_any_of_its_names(wanted, index: int):
    assert class_index(wanted, ZOO) == index


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("crane", r"'crane' is the name of 2 classes: 2 \(crane\); 5 \(crane\)"),
        ("maillot", r"6 \(maillot\); 7 \(maillot, tank suit\)"),
        (
            "elephant",
            r"3 \(African elephant, Loxodonta africana\); 4 \(Indian elephant, Elephas maximus\); give the index",
        ),
    ],
)
def test_several_classes_of_a_name_are_listed(wanted: str, message: str):
    with pytest.raises(AmbiguousClassError, match=message):
        class_index(wanted, ZOO)


def test_a_long_list_is_cut():
    with pytest.raises(AmbiguousClassError, match=r"14 classes: 0 \(dog 0\).*9 \(dog 9\); and 4 more"):
        class_index("dog", [f"dog {i}" for i in range(14)])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("elefant", "no class of the model's 10 is called 'elefant'"),
        ("bald eagel", r"near it: 1 \(bald eagle"),
        ("xyzzy", "none is spelt like it"),
        ("ephant", "no class"),  # a part of a word is not a word
        (10, "no class 10: the model's 10 classes are 0 to 9"),
        (-1, "no class -1"),
        ("10", "no class 10"),
        ("-1", "no class -1"),
        ("", "an index or a name, not ''"),
        (",", "no class of the model's 10"),
        (2.5, "2.5 of type float"),
        (True, "True of type bool"),
        (None, "None"),
        (torch.tensor([1, 2]), "of type Tensor"),
    ],
)
def test_what_is_no_class_is_told_why(wanted, message: str):
    with pytest.raises(UnknownClassError, match=message):
        class_index(wanted, ZOO)


def test_digits_are_a_name_where_a_class_is_called_so():
    assert class_index("7", ["zero", "7", "nine"]) == 1


def test_digits_are_an_index_before_they_are_a_word_of_a_name():
    names = ["5 o'clock", "Boeing 747", "kite"]
    assert class_index("2", names) == 2
    assert class_index("0", ["kite", "number 0"]) == 0
    assert class_index("747", names) == 1
    with pytest.raises(UnknownClassError, match="there is no class -5"):
        class_index("-5", names)


def test_without_names_indices_are_needed():
    assert class_index(5, None) == 5
    assert class_index("5", None, 7) == 5
    with pytest.raises(
        UnknownClassError, match=r"no class names, so 'zebra' cannot be found; give the index \(0 to 6\)"
    ):
        class_index("zebra", None, 7)
    with pytest.raises(UnknownClassError, match="no class 7: the model's 7 classes are 0 to 6"):
        class_index(7, None, 7)
    with pytest.raises(UnknownClassError, match="counted from 0"):
        class_index(-1, None)


def test_short_names():
    assert short_name(1, ZOO) == "bald eagle"
    assert short_name(7, None) == "class 7"
    assert short_name(99, ZOO) == "class 99"
    assert short_name(0, ["", "b"]) == "class 0"


def test_imagenet_by_name(vit_tiny):
    for name, index in {
        "zebra": 340,
        "Tusker": 101,
        "african elephant": 386,
        "bald eagle": 22,
        "bull mastiff": 243,
        "tiger cat": 282,
        "snail": 113,
        "conch": 112,
    }.items():
        assert vit_tiny.class_index(name) == index
    assert vit_tiny.class_index("eagle") == 22
    with pytest.raises(AmbiguousClassError, match=r"134 \(crane\).*517 \(crane\)"):
        vit_tiny.class_index("crane")
    with pytest.raises(AmbiguousClassError, match=r"638 \(maillot\).*639 \(maillot, tank suit\)"):
        vit_tiny.class_index("maillot")
    with pytest.raises(AmbiguousClassError, match=r"385 \(Indian elephant.*386 \(African elephant"):
        vit_tiny.class_index("elephant")
    with pytest.raises(UnknownClassError, match=r"near it: .*340 \(zebra"):
        vit_tiny.class_index("zebre")
