"""What data call a class, as an index of the model's: by number, by name, or by WordNet id.

Numbers and names as notes and messages give them.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

from vitrail.models.class_names import normal, same_classes, short_name, wordnet_ids
from vitrail.models.vision_model import VisionModel

__all__ = ["LabelResolver", "counted", "listed"]

_WORDNET = re.compile(r"[nN](\d{8})(?!\d)")


class LabelResolver:
    """The classes of a model, as folders, tables and file names speak of them.

    Names match as a whole, or one of their synonyms does; not parts of names, as on the command line, for a folder
    called "train" shall not become "bullet train".

    Example:
        >>> classes = LabelResolver(("horse", "bald eagle, American eagle", "n02391049"))
        >>> [classes.find(word) for word in ("American_eagle", "1", "n02391049_zebra", "eagle", "7")]
        [1, 1, 2, None, None]
    """

    def __init__(self, names: Sequence[str] | None, count: int | None = None) -> None:
        self.names = None if names is None else tuple(names)
        self.count = len(self.names) if self.names is not None else count

    @classmethod
    def of(cls, model: VisionModel) -> "LabelResolver":
        """Returns the classes of that model."""
        head = getattr(model.module, "num_classes", None)
        return cls(model.class_names, head if isinstance(head, int) and head > 0 else None)

    def find(self, word: str) -> int | None:
        """Returns the index of the class that goes by that word, or None where there is none, or more than one."""
        found = self.all(word)
        return found[0] if len(found) == 1 else None

    def all(self, word: str) -> list[int]:
        """Returns every class that goes by that word."""
        word = word.strip()
        if word.isdecimal():
            return [int(word)] if self.count is None or int(word) < self.count else []
        named = self._named.get(normal(word))
        if named:
            return named
        synset = _WORDNET.match(word)
        if synset is None:
            return []
        wordnet = f"n{synset[1]}"
        return self._named.get(wordnet) or self._of_synset(wordnet)

    def name(self, index: int) -> str:
        """Returns the name of that class."""
        return short_name(index, self.names)

    def match(self, names: Sequence[str]) -> list[int | None]:
        """Returns the class of each of a data set's own names: place by place where both list the same, else by name.

        Lists of ImageNet's classes differ in spelling and hold two cranes, but their order is one.

        Example:
            >>> LabelResolver(("crane", "zebra", "crane")).match(["Crane", "zebra", "crane"])
            [0, 1, 2]
            >>> LabelResolver(("crane", "zebra", "crane")).match(["zebra", "crane"])
            [1, None]
        """
        if self.names is not None and len(names) == len(self.names) and same_classes(names, self.names):
            return list(range(len(names)))
        return [self.find(name) for name in names]

    @cached_property
    def _named(self) -> Mapping[str, list[int]]:
        """Whole names go before synonyms: "maillot" is one class, though another has it as a synonym."""
        whole, synonyms = defaultdict(list), defaultdict(list)
        for index, name in enumerate(self.names or ()):
            whole[normal(name)].append(index)
            for synonym in dict.fromkeys(normal(part) for part in name.split(",")):
                synonyms[synonym].append(index)
        return {**synonyms, **whole}

    @cached_property
    def _synsets(self) -> Mapping[str, int]:
        """WordNet ids in the order of the classes, for the classes of ImageNet or one of its larger lists."""
        return {synset: index for index, synset in enumerate(wordnet_ids(self.count, self.names))}

    def _of_synset(self, wordnet: str) -> list[int]:
        if wordnet in self._synsets:
            return [self._synsets[wordnet]]
        if self._synsets or self.names is None:
            return []
        return next((found for name in _lemmas(wordnet) if (found := self._named.get(normal(name)))), [])


def _lemmas(wordnet: str) -> list[str]:
    """The words of a WordNet id, as timm lists them for all of ImageNet."""
    from timm.data.imagenet_info import ImageNetInfo

    try:
        return ImageNetInfo("imagenet-22k").label_name_to_description(wordnet).split(",")
    except (KeyError, AssertionError):
        return []


def counted(count: int, one: str, several: str | None = None) -> str:
    """Returns a number of things.

    Example:
        >>> counted(1, "picture"), counted(3, "class folder")
        ('1 picture', '3 class folders')
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Returns the first few names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
