"""What the model says of the picture: its best classes, each a button that asks why."""

from html import escape

from ...explanation import percent
from .asking import Asked

__all__ = ["best_classes", "draw_classes"]

COUNT = 6


def best_classes(asked: Asked, count: int = COUNT) -> list[int]:
    """The strongest classes, and those of the question where they are not among them."""
    best = asked.logits.topk(min(count, len(asked.logits))).indices.tolist()
    named = [index for index in (asked.target, asked.against) if index is not None]
    return best + [index for index in dict.fromkeys(named) if index not in best]


def draw_classes(asked: Asked) -> str:
    """The classes as buttons with bars: pressed in red the one explained, in blue the one it is held against."""
    shares = asked.logits.double().softmax(-1)
    rows = []
    for index in best_classes(asked):
        role, word = "", "explain"
        if index == asked.target:
            role, word = " vt-is-for", "explained"
        elif index == asked.against:
            role, word = " vt-is-against", "held against it"
        name, share = escape(asked.class_name(index)), float(shares[index])
        rows.append(
            f'<button type="button" class="vt-class{role}" data-class="{index}" '
            f'aria-pressed="{"true" if role else "false"}" aria-label="{name}, {percent(share)}, {word}">'
            f'<span class="vt-name">{name}</span><span class="vt-share">{percent(share)}</span>'
            f'<span class="vt-track"><i style="width:{100 * share:.1f}%"></i></span></button>'
        )
    return f'<div class="vt-classes" role="group" aria-label="Classes">{"".join(rows)}</div>'
