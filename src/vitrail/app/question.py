"""The question of a visitor: as the link that restores it, and as the arguments of `vitrail.explain`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote_plus, urlencode

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import TargetError, UnknownMethodError
from ..explain import explain
from ..explanation import Explanation
from ..methods.context import Progress
from ..methods.registry import METHODS, MethodInfo, find_method
from ..models import VisionModel
from ..outputs import Output
from .fragments import data_address
from .pictures import Picture, Seen

__all__ = [
    "DRAW",
    "LONG",
    "LONGEST",
    "LONGEST_TEXT",
    "MOST_TOKENS",
    "OWN",
    "TEXTS",
    "VIEWS",
    "WAITING",
    "Question",
    "ViewContext",
    "scores_cells",
    "too_long",
]

# The views in the order of the page; those that take long are drawn when asked for, not when looked at.
VIEWS = ("map", "methods", "layers", "heads", "detail", "guide", "transfer", "rewrite", "words")
WAITING = {
    "methods": "Every method's map for the same question, side by side, with the time that it took.",
    "guide": "The picture next to one of another class: what argues against moves there, and the map gets clearer.",
    "transfer": "What if the model looked elsewhere? Its attention is moved, step by step, until the class is lost.",
    "rewrite": "As small a change as it takes until the model names another class, as a file that proves it.",
    "words": "A vision-language model answers a question about the picture, and each word of its answer gets a map.",
}
DRAW = {  # what is pressed to have them drawn
    "methods": "Compare methods",
    "guide": "Explain beside a guide",
    "transfer": "Move attention",
    "rewrite": "Rewrite the picture",
    "words": "Ask the model",
}
LONG = tuple(DRAW)

# What views depend on in addition to image, model and classes.
OWN = {
    "map": ("method", "gradient", "resolution"),
    "methods": ("methods", "gradient"),
    "guide": ("layout", "method", "gradient"),
    "transfer": ("steps",),
    "rewrite": ("until", "budget"),
    "words": ("vlm", "prompt", "answer", "other", "word_method", "word_gradient", "vision", "most"),
}
OPEN = ("target", "against", "row", "col", "layer", "head")  # which need not be said
LONGEST = 200  # characters of any word in a link
TEXTS = {"prompt": "question", "answer": "answer"}  # which are longer: a link of both is as long as proxies let pass
LONGEST_TEXT = 3000  # bytes of each of them in a link
MOST_TOKENS = 256  # of an answer that the model writes


@dataclass(frozen=True, kw_only=True)
class Question:
    """Holds one view and all that it depends on, except for an uploaded image, which no link can hold.

    `picture` is the key of an uploaded picture, by which the page that took it finds it again.
    `target` and `against` are class indices, None for the predicted class and for no comparison; `row` and `col` are
    the patch that was clicked on, `layer` and `head` the head. `resolution`, of the view "map", is the number of cells
    on a side of a patch, or "pixel". `vlm` and what follows it belong to the view "words", of
    which `other` is the word that every word is held against and `most` the most tokens of the model's own answer. The
    rest belongs to the views that are named like it.
    """

    view: str = "map"
    model: str = ""
    example: str = ""
    picture: str = ""
    target: int | None = None
    against: int | None = None
    method: str = "complete"
    gradient: str = "default"
    resolution: str = "1"
    row: int | None = None
    col: int | None = None
    layer: int | None = None
    head: int | None = None
    methods: str = "fast"
    layout: str = "side"
    steps: int = 20
    until: float = 0.9
    budget: float = 0.0
    vlm: str = ""
    prompt: str = "what is in the picture?"
    answer: str = ""
    other: str = ""
    word_method: str = "complete"
    word_gradient: str = "default"
    vision: str = "patches"
    most: int = 64

    @staticmethod
    def from_query(query: Mapping[str, Any]) -> "Question":
        """Reads the query of a link; whatever cannot be understood is ignored, for anyone can write a link.

        >>> Question.from_query({"view": "heads", "target": "3", "layer": "many", "color": "red"})
        Question(view='heads', target=3)
        """
        return Question(**_understood({name: word for name, word in query.items() if word not in (None, "")}))

    def heard(self, changes: Mapping[str, Any]) -> "Question":
        """Returns the question with the valid ones of the changes that a page sent; None resets a class, patch or head.

        >>> Question(target=3, against=5).heard({"against": None, "steps": "many", "view": "heads"})
        Question(view='heads', target=3)
        """
        kept = {"target": self.target, "against": self.against}
        return self.changed(**kept | _understood(changes))

    def changed(self, **changes: Any) -> "Question":
        """Returns the question with these changes; another model or image resets classes, patch and head.

        >>> Question(target=3, row=1, col=2).changed(model="bestiary").row is None
        True
        """
        other = replace(self, **changes)
        if (other.model, other.example, other.picture) != (self.model, self.example, self.picture):
            other = replace(other, row=None, col=None, layer=None, head=None)
            kept = {"target", "against"} & changes.keys()
            if not kept:
                other = replace(other, target=None, against=None)
        return other

    def choose(self, index: int, explained: int) -> "Question":
        """Returns the question after a click on a class: contrasts it with `explained`; a click on either ends that.

        >>> Question().choose(5, explained=3), Question(target=3, against=5).choose(7, explained=3)
        (Question(view='map', target=3, against=5), Question(view='map', target=3, against=7))
        >>> Question(target=3, against=5).choose(3, explained=3)
        Question(view='map', target=3)
        """
        ends = index in (explained, self.against)
        return self.changed(target=explained, against=None if ends else index)

    def swapped(self, explained: int) -> "Question":
        """Returns the reverse question; without a contrastive class the same one.

        >>> Question(against=5).swapped(explained=3)
        Question(view='map', target=5, against=3)
        """
        return self if self.against is None else self.changed(target=self.against, against=explained)

    def essence(self) -> tuple[Any, ...]:
        """Returns what the drawing of the view depends on: questions with the same essence have the same drawing."""
        asked = () if self.view == "words" else ("model", "target", "against")
        names = ("view", "example", "picture", *asked, *OWN.get(self.view, ()))
        return tuple(getattr(self, name) for name in names)

    @property
    def finer(self) -> dict[str, Any]:
        """Returns the resolution of the map as an argument of `explain`: none for patches, and for a method that scores
        nothing finer.

        >>> Question(resolution="4").finer, Question(resolution="4", method="rollout").finer
        ({'resolution': 4}, {})
        """
        if self.resolution == Question.resolution or not scores_cells(self.method):
            return {}
        return {"resolution": int(self.resolution) if self.resolution.isdecimal() else self.resolution}

    def about_words(self) -> dict[str, Any]:
        """Returns what is chosen in the view "words", as arguments of `vitrail.explain_generation`.

        >>> Question(answer="a tavel", other=" murlo", vision="tokens").about_words()
        {'answer': 'a tavel', 'against': 'murlo', 'vision': 'tokens'}
        """
        usual = Question()
        chosen = {
            "answer": self.answer if self.answer.strip() else None,
            "against": self.other.strip() or None,
            "method": None if self.word_method == usual.word_method else self.word_method,
            "gradient": None if self.word_gradient == usual.word_gradient else self.word_gradient,
            "vision": None if self.vision == usual.vision else self.vision,
            "max_new_tokens": None if self.most == usual.most or self.answer.strip() else self.most,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def said(self) -> dict[str, Any]:
        """Returns the view, and what differs from a page that was just opened."""
        usual = asdict(Question()) | {"view": None}
        return {name: value for name, value in asdict(self).items() if value != usual[name] and value is not None}

    def query(self) -> str:
        """Returns the part of a link after the question mark.

        >>> Question(view="layers", example="pair", target=3).query()
        'view=layers&example=pair&target=3'
        """
        return urlencode(self.said())

    def __repr__(self) -> str:
        return f"Question({', '.join(f'{name}={value!r}' for name, value in self.said().items())})"


def _understood(words: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, word in words.items():
        if word is None and name in OPEN:
            found[name] = None
        elif name in _KINDS and word is not None and not isinstance(word, bool):
            try:
                found[name] = _KINDS[name](word)
            except (TypeError, ValueError, OverflowError):
                continue
    if found.get("view") not in VIEWS:
        found.pop("view", None)
    return found


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if too_long(value):
        raise ValueError
    return value.replace("\r\n", "\n")


def scores_cells(method: str) -> bool:
    """Returns whether a method has scores for parts of a patch; an unknown one has none."""
    try:
        return "resolution" in find_method(method, {}).accepts
    except UnknownMethodError:
        return False


def too_long(text: Any) -> bool:
    """Returns whether a text is none that a link can hold."""
    return not isinstance(text, str) or len(quote_plus(text, errors="replace")) > LONGEST_TEXT


def _tokens(value: Any) -> int:
    return min(max(1, _count(value)), MOST_TOKENS)


def _count(value: Any) -> int:
    number = int(value)
    if not 0 <= number <= 10**6:
        raise ValueError
    return number


def _resolution(value: Any) -> str:
    return "pixel" if value == "pixel" else str(_count(value) or Question.resolution)


def _share(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


_COUNTS = ("target", "against", "row", "col", "layer", "head", "steps")
_KINDS: dict[str, Any] = {each.name: _word for each in fields(Question)}
_KINDS |= dict.fromkeys(_COUNTS, _count) | {"until": _share, "budget": _share}
_KINDS |= dict.fromkeys(TEXTS, _text) | {"most": _tokens, "resolution": _resolution}


@dataclass(frozen=True, eq=False)
class ViewContext:
    """Holds a question with its model and image, and the model's logits.

    `logits` are computed once; `target` is then never open: the class asked for, or the predicted one. `maps` holds the
    last map of the view "map" by its picture and question, and `report` is told how far one of several passes is.
    """

    model: VisionModel
    picture: Picture
    seen: Seen
    question: Question
    maps: dict[tuple[Any, ...], Explanation] = field(default_factory=dict)
    report: Progress | None = None

    @cached_property
    def logits(self) -> Float[Tensor, " classes"]:
        """Returns the model's logits for the image (classes)."""
        with torch.no_grad():
            return self.model.logits(self.seen.tensor[None])[0].float().cpu()

    @cached_property
    def output(self) -> Output:
        """Returns the kind of the model's output."""
        return self.model.kind_for(self.seen.tensor[None])

    @property
    def target(self) -> int:
        """Returns the target's index: the class asked for, else the predicted one; index 0 for scores, which predict
        none.

        Raises `UnknownClassError` for one that the model does not have.
        """
        wanted = self.question.target
        if wanted is None and self.output.link is None:
            return 0
        return int(self.logits.argmax()) if wanted is None else self.model.class_index(wanted, len(self.logits))

    @property
    def against(self) -> int | None:
        """Returns the contrastive class, if any."""
        wanted = self.question.against
        return None if wanted is None else self.model.class_index(wanted, len(self.logits))

    @property
    def rival(self) -> int:
        """Returns the contrastive class, or else the strongest other one.

        Raises `TargetError` for a model of one class, or of one number.
        """
        if self.against is not None:
            return self.against
        others = [index for index in self.logits.argsort(descending=True).tolist() if index != self.target]
        if not others:
            raise TargetError("this model gives one number, so there is no other class to hold it against")
        return others[0]

    @property
    def method(self) -> MethodInfo:
        """Returns the method's traits. Raises `UnknownMethodError`."""
        return find_method(self.question.method, {})

    @cached_property
    def photo(self) -> str:
        """Returns the data address of the image as the model saw it."""
        return data_address(self.seen.shown)

    @property
    def mode(self) -> str | None:
        """Returns the gradient mode that the visitor chose; None for the method's own."""
        return None if self.question.gradient == Question.gradient else self.question.gradient

    def words(self, info: MethodInfo) -> dict[str, Any]:
        """Returns the visitor's choices as keyword arguments of `explain`, as far as the method uses them."""
        words: dict[str, Any] = {"method": info.name}
        if info.class_specific and self.against is not None:
            words["against"] = self.against
        if info.uses_gradient and self.mode is not None:
            words["gradient"] = self.mode
        return words

    def explain(self, method: str | None = None, **more: Any) -> Explanation:
        """Explains the image; the result has its name, and the image at the size of the page."""
        info = self.method if method is None else METHODS[method]
        found = explain(self.model, self.seen.tensor, self.target, **(self.words(info) | more))
        return self.named(found)

    def map(self) -> Explanation:
        """Explains the image at the resolution of the question, unless that is the map that was drawn last."""
        asked = (self.picture.key, *self.question.essence())
        found = self.maps.get(asked)
        if found is None:
            finer = self.question.finer
            if finer:
                finer["progress"] = self.report
            found = self.explain(**finer)
            self.maps.clear()
            self.maps[asked] = found
        return found

    def named(self, ex: Explanation) -> Explanation:
        """Returns the explanation with the image as the page shows it, and the image's name."""
        shown = torch.from_numpy(self.seen.shown)[None].expand(len(ex), -1, -1, -1).contiguous()
        return replace(ex.named(*[self.picture.name] * len(ex)), images=shown)

    def class_name(self, index: int) -> str:
        """Returns the name of a class."""
        return self.model.class_name(index)
