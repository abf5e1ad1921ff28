"""How every view asks: the visitor's words as those of `vitrail.explain`, the answer with its picture and its name."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import TargetError
from ...explain import explain
from ...explanation import Explanation
from ...methods.registry import METHODS, MethodInfo, find_method
from ...models import VisionModel
from ...outputs import Output
from ..fragments import data_address
from ..pictures import Picture, Seen
from ..question import Question

__all__ = ["Asked"]


@dataclass(frozen=True, eq=False)
class Asked:
    """A question, the model and the picture it is asked of, and what the model says of it.

    `logits` are computed once; `target` is then never open: the class asked for, or the predicted one.
    """

    model: VisionModel
    picture: Picture
    seen: Seen
    question: Question

    @cached_property
    def logits(self) -> Float[Tensor, " classes"]:
        """The model's answer to the picture."""
        with torch.no_grad():
            return self.model.logits(self.seen.tensor[None])[0].float().cpu()

    @cached_property
    def output(self) -> Output:
        """The kind of the model's output."""
        return self.model.kind_for(self.seen.tensor[None])

    @property
    def target(self) -> int:
        """The class that is explained: of free numbers the first unless one is asked for, for none is predicted.

        Raises `UnknownClassError` for one that the model does not have.
        """
        wanted = self.question.target
        if wanted is None and self.output.link is None:
            return 0
        return int(self.logits.argmax()) if wanted is None else self.model.class_index(wanted, len(self.logits))

    @property
    def against(self) -> int | None:
        """The class that it is held against, if any."""
        wanted = self.question.against
        return None if wanted is None else self.model.class_index(wanted, len(self.logits))

    @property
    def rival(self) -> int:
        """The class that it is held against, or else the strongest other one.

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
        """What is known of the method. Raises `UnknownMethodError`."""
        return find_method(self.question.method, {})

    @cached_property
    def photo(self) -> str:
        """The address of what the model saw."""
        return data_address(self.seen.shown)

    @property
    def mode(self) -> str | None:
        """The gradient mode that the visitor chose; None for the method's own."""
        return None if self.question.gradient == Question.gradient else self.question.gradient

    def words(self, info: MethodInfo) -> dict[str, Any]:
        """The visitor's choices as keyword arguments of `explain`, as far as the method heeds them."""
        words: dict[str, Any] = {"method": info.name}
        if info.class_specific and self.against is not None:
            words["against"] = self.against
        if info.uses_gradient and self.mode is not None:
            words["gradient"] = self.mode
        return words

    def explain(self, method: str | None = None, **more: Any) -> Explanation:
        """Ask the model; the explanation shows the picture as large as the page does, and has its name."""
        info = self.method if method is None else METHODS[method]
        found = explain(self.model, self.seen.tensor, self.target, **(self.words(info) | more))
        return self.named(found)

    def named(self, ex: Explanation) -> Explanation:
        """The explanation with the picture as the page shows it, and the picture's name."""
        metadata = {**ex.metadata, "sources": [self.picture.name] * len(ex)}
        shown = torch.from_numpy(self.seen.shown)[None].expand(len(ex), -1, -1, -1).contiguous()
        return replace(ex, images=shown, metadata=metadata)

    def class_name(self, index: int) -> str:
        """What a class is called."""
        return self.model.class_name(index)
