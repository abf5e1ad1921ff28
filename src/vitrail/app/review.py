"""What the review page of an audit is told: suspects with their maps, typical images, pairs of classes, decisions.

Everything is plain JSON values; pictures are data addresses. Texts come as they are, and the page's script sets them as
text. It knows nothing of the web.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from ..audit.class_pairs import ClassPair, typical_share
from ..audit.decisions import Decisions, export_decisions
from ..audit.examine import LabelledImage
from ..audit.result import Audit
from ..errors import OptionError
from ..outputs import percent
from ..plotting.canvas import number
from ..plotting.overlay import overlay
from ..plotting.saving import picture_address
from .fragments import data_address

__all__ = ["Review", "Stale"]

SHORTEST, LONGEST = 224, 448  # pixels of a map's shorter side at least, of its longer side at most
MOST_DUPLICATES, MOST_TESTED = 12, 48  # images that are shown

Known = dict[str, Any]


class Stale(Exception):  # noqa: N818 - not an error of this process
    """The page acts on a decision that has changed since it was told of it."""


class Review:
    """A review of an audit: what the page shows, and what a reviewer decides; safe to use from several threads.

    Example:
        >>> import tempfile, vitrail
        >>> from vitrail.audit import Decisions
        >>> model = vitrail.load("bestiary")
        >>> audit = vitrail.audit(model, "bestiary:single:8", output=tempfile.mkdtemp(), pairs=0)
        >>> review = Review(audit, Decisions(audit.folder, [one.image for one in audit.suspects]))
        >>> review.state()
        {'version': 0, 'last': None, 'decisions': {}}
    """

    def __init__(self, audit: Audit, decisions: Decisions) -> None:
        self.audit, self.decisions = audit, decisions
        self._lock = Lock()  # between what is compared and what is written
        self._images = {one.image: one for one in audit.ranked}
        self._suspects = {one.image for one in audit.suspects}
        self._pairs = {(pair.shown, pair.other): pair for pair in audit.pairs}
        self._groups: dict[int, list[LabelledImage]] = defaultdict(list)
        for one in audit.ranked:
            if one.group is not None:
                self._groups[one.group].append(one)

    # -- what is shown -------------------------------------------------------------------------------------------------

    def overview(self) -> Known:
        """Returns all suspects and pairs in words and numbers, without pictures, and the state."""
        audit = self.audit
        named = {index for one in audit.suspects for index in (*one.labels, one.given, one.suggested)}
        named |= {index for group in self._groups.values() for one in group for index in one.labels}
        named |= {index for pair in audit.pairs for index in (pair.shown, pair.other)}
        return {
            "about": {name: audit.about[name] for name in ("model", "data", "method", "images", "output")},
            "notes": list(audit.notes),
            "names": {str(index): audit.class_name(index) for index in named if index is not None},
            "suspects": [self._suspect(one) for one in audit.suspects],
            "pairs": [_pair(pair) for pair in audit.pairs],
            **self.state(),
        }

    def state(self) -> Known:
        """Returns the verdict of each decided image, what undo takes back, and the number of acts in the journal."""
        with self._lock:
            decided = {str(image): one.verdict for image, one in self.decisions.current.items()}
            return {"version": self.decisions.version, "last": self.decisions.last, "decisions": decided}

    def suspect(self, image: int) -> Known:
        """Returns the pictures of a suspect: the photograph, the maps over the model's view, its near duplicates.

        Raises:
            OptionError: for an image that is no suspect.
        """
        if image not in self._suspects:
            raise OptionError(f"image {image} is no suspect of this audit")
        one = self._images[image]
        both = one.given is not None and one.suggested is not None
        group = [] if one.group is None else [other for other in self._groups[one.group] if other is not one]
        return {
            "photo": self._picture(image, "photo"),
            "contrast": self._map(image, one.given, one.suggested) if both else None,
            "given": self._map(image, one.given),
            "suggested": self._map(image, one.suggested),
            "view": self._picture(image, "view"),
            "duplicates": [self._thumb(other) for other in group[:MOST_DUPLICATES]],
            "more": max(0, len(group) - MOST_DUPLICATES),
        }

    def typical(self, index: int) -> Known:
        """Returns the typical images of a class.

        Raises:
            OptionError: for a class that no suspect is about.
        """
        if index not in self.audit.typical:
            raise OptionError(f"no suspect is about class {index}")
        return {"images": [self._thumb(self._images[image]) for image in self.audit.typical[index]]}

    def pair(self, shown: int, other: int) -> Known:
        """Returns the images that a pair of classes was tested on, with their contrastive maps.

        Raises:
            OptionError: for a pair that was not tested.
        """
        if (shown, other) not in self._pairs:
            raise OptionError(f"the pair of classes {shown} and {other} was not tested")
        found = []
        for image in self.audit.pair_images[shown, other][:MOST_TESTED]:
            contrast = self.audit.map(image, shown, other)
            single = self.audit.map(image, shown, typical=True)
            if contrast is None or single is None:
                continue
            balance = typical_share(single, contrast)
            drawn = {"picture": self._drawn(image, contrast), "balance": number(balance, sign=True)}
            found.append(self._thumb(self._images[image]) | drawn | {"side": int(np.sign(balance))})
        return {"images": found}

    def export(self, kind: str) -> bytes:
        """Returns the decisions as a table of the kind "csv" or "parquet"."""
        return export_decisions(self.audit, self.decisions, kind=kind)

    # -- what is decided -----------------------------------------------------------------------------------------------

    def decide(self, image: int, verdict: str, was: str | None) -> Known:
        """Writes a decision on an image whose verdict `was` that, and returns the news for the page.

        Raises:
            Stale: where it has another verdict by now.
            OptionError: for an image that is no suspect, or an unknown verdict.
            OutputFileError: when it cannot be written.
        """
        with self._lock:
            before = self.decisions.current.get(image)
            if (None if before is None else before.verdict) != was:
                raise Stale
            self.decisions.decide(image, verdict)
            return self._news(image)

    def undo(self, image: int) -> Known:
        """Takes the last decision back, which must be one on this image, and returns the news for the page.

        Raises:
            Stale: where the last decision is another one by now.
            OutputFileError: when it cannot be written.
        """
        with self._lock:
            if self.decisions.last != image:
                raise Stale
            self.decisions.undo()
            return self._news(image)

    def _news(self, image: int) -> Known:
        now = self.decisions.current.get(image)
        known = {"version": self.decisions.version, "last": self.decisions.last}
        return known | {"image": image, "verdict": None if now is None else now.verdict}

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _suspect(self, one: LabelledImage) -> Known:
        return {
            "image": one.image,
            "source": one.source,
            "labels": list(one.labels),
            "given": one.given,
            "suggested": one.suggested,
            "margin": number(one.margin, sign=True),
            "p_given": percent(one.p_given),
            "p_suggested": percent(one.p_suggested),
            "issue": one.issue,
            "duplicates": 0 if one.group is None else len(self._groups[one.group]) - 1,
        }

    def _thumb(self, one: LabelledImage) -> Known:
        known = {"image": one.image, "source": one.source, "labels": list(one.labels)}
        return known | {"picture": self._picture(one.image, "thumb"), "suspect": one.image in self._suspects}

    def _picture(self, image: int, kind: str) -> str | None:
        found = self.audit.picture(image, kind)
        return None if found is None else picture_address(found, "jpeg")

    def _map(self, image: int, target: int | None, against: int | None = None) -> str | None:
        found = None if target is None else self.audit.map(image, target, against)
        return None if found is None else self._drawn(image, found)

    def _drawn(self, image: int, scores: Float[np.ndarray, "rows cols"]) -> str:
        """Returns a map over the model's view of the image; alone, where that was not stored."""
        content = self.audit.picture(image, "view")
        if content is None:
            return data_address(overlay(scores))
        view = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        return data_address(overlay(scores, view, size=_size(view.shape[:2])))


def _size(view: Sequence[int]) -> tuple[int, int]:
    """Returns the size at which a map is drawn over a view of that size.

    >>> _size((96, 96)), _size((224, 224)), _size((640, 320))
    ((288, 288), (224, 224), (448, 224))
    """
    times = -(-SHORTEST // min(view)) if max(view) < LONGEST else min(1.0, LONGEST / max(view))
    return round(times * view[0]), round(times * view[1])


def _pair(pair: ClassPair) -> Known:
    return {
        "shown": pair.shown,
        "other": pair.other,
        "images": pair.images,
        "share": pair.share,
        "low": pair.low,
        "high": pair.high,
        "said": f"{percent(pair.share)} ({percent(pair.low)} to {percent(pair.high)})",
        "adjusted": number(pair.adjusted),
        "margin": number(pair.margin, sign=True),
        "joint": percent(pair.joint),
    }
