"""From what a person calls a class to its index, and back."""

import csv
import difflib
import json
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import AmbiguousClassError, ModelError, UnknownClassError

__all__ = [
    "ClassNames",
    "class_index",
    "named",
    "normal",
    "read_class_names",
    "same_classes",
    "short_name",
    "wordnet_ids",
]

WORDNET = re.compile(r"n\d{8}")

# In the order of the classes, by index or the other way round; or a file of them. Also arrays and pandas Series.
ClassNames: TypeAlias = Iterable[Any] | Mapping[Any, Any] | str | os.PathLike[str]

_LARGEST_FILE = 16_000_000  # bytes; the 21,841 names of ImageNet-21k take one

_SHOWN = 10  # matches listed in a message before "and … more"


def class_index(
    wanted: Any, names: Sequence[str] | None = None, count: int | None = None, *, whole: bool = False
) -> int:
    """Returns the index of the class that `wanted` names.

    `wanted` is an index (Python, NumPy or torch integer, or its digits in a string) or a name. Names are compared
    without regard to case, with underscores read as spaces. The whole name and each of its synonyms (separated by
    commas) match exactly; failing that, digits are an index where there is one, and whole words of a name match when
    they occur in one class only. `count` is the number of classes, where it is known from elsewhere than `names`. With
    `whole`, names are sentences, and match only as a whole. A WordNet id (n02391049) is a class of a model that has the
    classes of ImageNet, or of one of its larger lists.

    Raises:
        AmbiguousClassError: when several classes go by that name, listing them.
        UnknownClassError: when none does (naming those spelt much alike), when the index is out of range, or when the
            model has no names.

    Example:
        >>> class_index("American eagle", ["kite", "bald eagle, American eagle, Haliaeetus leucocephalus"])
        1
        >>> class_index("eagle", ["kite", "bald eagle, American eagle, Haliaeetus leucocephalus"])
        1
    """
    count = len(names) if names is not None else count
    index = _as_integer(wanted)
    if index is not None:
        return _in_range(index, count)
    if not isinstance(wanted, str) or not normal(wanted):
        raise UnknownClassError(f"a class is an index or a name, not {wanted!r} of type {type(wanted).__name__}")
    number = int(wanted) if re.fullmatch(r"[+-]?\d{1,18}", wanted.strip()) else None
    if names is not None:
        # "5" is the sixth class, whoever is called "5 o'clock"; "747" may be a word of one of a hundred aeroplanes.
        by_words = number is None or (number >= len(names) and wanted.strip()[0] != "+")
        found = (
            [i for i, name in enumerate(names) if normal(name) == normal(wanted)]
            if whole
            else _matches(wanted, names, by_words=by_words)
        )
        if len(found) == 1:
            return found[0]
        if found:
            raise AmbiguousClassError(
                f"{wanted!r} is the name of {len(found)} classes: {_listed(found, names)}; "
                "give the index, or more of the name"
            )
    synset = WORDNET.fullmatch(wanted.strip())
    if synset is not None and (index := _synsets(None if names is None else tuple(names)).get(synset[0])) is not None:
        return index
    if number is not None:
        return _in_range(number, count)
    if names is None:
        span = f"0 to {count - 1}" if count else "counted from 0"
        raise UnknownClassError(
            f"this model has no class names, so {wanted!r} cannot be found; give the index ({span}), or class_names="
        )
    near = _near(wanted, names)
    if whole:
        listed = _listed(range(len(names)), names)
        raise UnknownClassError(f"{wanted!r} is none of the {len(names)} texts given: {listed}; give it too, in texts=")
    hint = f"near it: {_listed(near, names)}" if near else "and none is spelt like it"
    raise UnknownClassError(f"no class of the model's {len(names)} is called {wanted!r}; {hint}")


def named(class_names: ClassNames) -> tuple[str, ...]:
    """Class names in the order of the classes: from a sequence, an array, a Series, a mapping or a file.

    A mapping goes from index to name, or from name to index (torchvision's `class_to_idx`); indices may be strings, as
    JSON has them. A file is read by `read_class_names`.

    Raises:
        ModelError: for what holds no names, and for indices other than 0 to the number of names less one.

    Example:
        >>> named({1: "dog", 0: "cat"}), named({"cat": 0, "dog": 1})
        (('cat', 'dog'), ('cat', 'dog'))
    """
    if isinstance(class_names, str | os.PathLike):
        if isinstance(class_names, str) and not _is_file(class_names):
            raise ModelError(
                f"class_names is one string, {class_names!r}, and no file of that name; give a list with one name per "
                "class, or a file"
            )
        return read_class_names(class_names)
    held: Any = class_names
    if isinstance(held, set | frozenset):
        raise ModelError("class_names is a set, which has no order; give a list in the order of the classes")
    if isinstance(held, type) and issubclass(held, Enum):  # its members are the names, or have them as values
        held = {one.name: one.value for one in held} if all(_digits(one.value) is not None for one in held) else [*held]
    elif isinstance(getattr(held, "names", None), list | tuple) and not hasattr(held, "tolist"):
        held = held.names  # a feature of Hugging Face's datasets
    elif not isinstance(held, Mapping) and hasattr(held, "to_dict"):  # a Series of pandas
        held = held.to_dict()
    if isinstance(held, Mapping):
        return _by_index(held)
    if not isinstance(held, Iterable):
        raise ModelError(f"class_names is a {type(held).__name__}; give a list with one name per class, or a file")
    array: Any = getattr(held, "tolist", None)
    return _as_names(list(held if array is None else array()))


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names from a file: one a line (.txt), a list or mapping (.json), or a table (.csv, .tsv).

    A table has the names in the column "name", "class", "label" or "class_name", or in its only one, and the indices in
    "index", "class_index", "id" or "label_id", where there is such a column. A `config.json` of Hugging Face is read
    for its `id2label`.

    Raises:
        ModelError: for a file that cannot be read, or holds no names.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ModelError(f"no file of class names at {path}")
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelError(f"{path} is too large for a file of class names: {path.stat().st_size} bytes")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            held = json.loads(text)
            held = held.get("id2label", held) if isinstance(held, dict) else held
            if not isinstance(held, dict | list):
                raise ModelError(f"{path} holds {type(held).__name__}, and neither a list of names nor a mapping")
            return _by_index(held) if isinstance(held, dict) else _as_names(held)
        if path.suffix.lower() in (".csv", ".tsv"):
            return _from_table(text, "\t" if path.suffix.lower() == ".tsv" else ",", path)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ModelError(f"the class names in {path} cannot be read: {str(error) or type(error).__name__}") from error
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return _as_names([line.strip() for line in lines])


def short_name(index: int, names: Sequence[str] | None) -> str:
    """Returns the first synonym of the class, or "class 7" where there is no name.

    Example:
        >>> short_name(0, ["African elephant, Loxodonta africana"]), short_name(7, None)
        ('African elephant', 'class 7')
    """
    if names is None or not 0 <= index < len(names):
        return f"class {index}"
    return names[index].split(",")[0].strip() or f"class {index}"


@lru_cache(maxsize=8)
def wordnet_ids(count: int | None, names: tuple[str, ...] | None) -> Sequence[str]:
    """Returns the WordNet ids of a model's classes in their order, as timm lists them; none where they are not
    ImageNet's.

    Example:
        >>> len(wordnet_ids(1000, None)), len(wordnet_ids(2, ("horse", "zebra")))
        (1000, 0)
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count}) if count else None
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    return info.label_names() if names is None or same_classes([*info.label_descriptions()], names) else ()


def same_classes(some: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether two lists, equally long, name the same classes in the same order, most of them alike.

    Example:
        >>> same_classes(["crane", "zebra"], ["Crane, a bird", "zebra"])
        True
    """
    first = [({normal(part) for part in one.split(",")}, two) for one, two in zip(some, others, strict=True)]
    alike = sum(any(normal(part) in one for part in two.split(",")) for one, two in first)
    return alike >= 0.8 * len(first)


@lru_cache(maxsize=8)
def _synsets(names: tuple[str, ...] | None) -> Mapping[str, int]:
    """WordNet ids to indices; none without names, for a thousand classes need not be ImageNet's."""
    known = () if names is None else wordnet_ids(len(names), names)
    return {synset: index for index, synset in enumerate(known)}


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def _as_names(names: Sequence[Any]) -> tuple[str, ...]:
    if not names:
        raise ModelError("class_names holds no names; give one per class")
    names = [_value(name) for name in names]
    for name in names:
        if isinstance(name, Mapping | list | tuple) or name is None:
            raise ModelError(f"class_names holds {str(name)[:60]!r}, which is no name; give one string per class")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


def _value(name: Any) -> Any:
    """What a member of an Enum stands for: the name that it has as its value, or its own."""
    if not isinstance(name, Enum):
        return name
    return name.value if isinstance(name.value, str) else name.name


def _by_index(held: Mapping[Any, Any]) -> tuple[str, ...]:
    """Names in the order of their indices, from index to name or from name to index."""
    by_key = [(_digits(key), value) for key, value in held.items()]
    by_value = [(_digits(value), key) for key, value in held.items()]
    for pairs in (by_key, by_value):
        ordered = {index: name for index, name in pairs if index is not None}
        if set(ordered) == set(range(len(held))):
            return _as_names([ordered[index] for index in range(len(held))])
    places = sorted(index for index, _ in by_key if index is not None) or sorted(
        i for i, _ in by_value if i is not None
    )
    if len(places) < len(held):
        raise ModelError("class_names maps neither indices to names nor names to indices; give {0: name, 1: name …}")
    raise ModelError(f"class_names has the indices {places[:8]}…, not 0 to {len(places) - 1}")


def _digits(value: Any) -> int | None:
    """The integer, or the one whose digits a string holds; None for anything else."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() and len(value) < 20 else None
    return _as_integer(value)


def _from_table(text: str, separator: str, path: Path) -> tuple[str, ...]:
    rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(cell.strip() for cell in row)]
    header = [cell.strip().lower().replace(" ", "_") for cell in rows[0]] if rows else []
    named_column = next((header.index(word) for word in _NAME_COLUMNS if word in header), None)
    index_column = next((header.index(word) for word in _INDEX_COLUMNS if word in header), None)
    if named_column is None:
        width = len(header)
        if width == 2 and all(row and _digits(row[0]) is not None for row in rows):
            named_column, index_column = 1, 0  # index, name
        elif width == 1:
            named_column = 0
        else:
            raise ModelError(f"{path} has the columns {', '.join(header[:8])}; name that of the class names 'name'")
    else:
        rows = rows[1:]
    if any(len(row) <= max(named_column, index_column or 0) for row in rows):
        raise ModelError(f"{path} has rows of different lengths; quote names that hold a {separator!r}")
    if index_column is None:
        return _as_names([row[named_column].strip() for row in rows])
    indices = [row[index_column] for row in rows]
    if len(set(indices)) < len(indices):
        raise ModelError(f"{path} has an index twice; give one row per class")
    return _by_index({row[index_column]: row[named_column].strip() for row in rows})


_NAME_COLUMNS = ("name", "class_name", "class", "label", "label_name", "text")
_INDEX_COLUMNS = ("index", "class_index", "idx", "class_idx", "id", "class_id", "label_id")


def _as_integer(wanted: Any) -> int | None:
    if isinstance(wanted, (bool, str)):
        return None
    try:
        return operator.index(wanted)  # also NumPy and torch integers
    except (TypeError, ValueError):
        return None


def _in_range(index: int, count: int | None) -> int:
    if index < 0 or (count is not None and index >= count):
        span = f"the model's {count} classes are 0 to {count - 1}" if count else "classes are counted from 0"
        raise UnknownClassError(f"there is no class {index}: {span}")
    return index


def normal(name: str) -> str:
    """Returns a name as it is compared: without regard to case, underscores and runs of space read as one space.

    Example:
        >>> normal("Bald__eagle ")
        'bald eagle'
    """
    return " ".join(name.replace("_", " ").casefold().split())


def _matches(wanted: str, names: Sequence[str], *, by_words: bool) -> list[int]:
    """All exact matches; where there is none, all names that hold the words of `wanted` side by side, if allowed."""
    wanted, plain = normal(wanted), [normal(name) for name in names]
    exact = [i for i, name in enumerate(plain) if name == wanted or wanted in (s.strip() for s in name.split(","))]
    if exact or not by_words:
        return exact
    words = f" {_words(wanted)} "
    return [i for i, name in enumerate(plain) if words.strip() and words in f" {_words(name)} "]


def _words(name: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in name).split())


def _near(wanted: str, names: Sequence[str]) -> list[int]:
    """Indices of the classes with a synonym spelt much like `wanted`, best first."""
    owners: dict[str, int] = {}
    for index, name in enumerate(names):
        for synonym in normal(name).split(","):
            owners.setdefault(synonym.strip(), index)
    close = difflib.get_close_matches(normal(wanted), owners, n=5, cutoff=0.6)
    return list(dict.fromkeys(owners[synonym] for synonym in close))


def _listed(indices: Sequence[int], names: Sequence[str]) -> str:
    shown = "; ".join(f"{i} ({names[i]})" for i in indices[:_SHOWN])
    return shown + (f"; and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else "")
