"""What the model says of the picture: its best classes, each a button that asks why."""

from html import escape

from ...explanation import verdict_of
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
    logits = asked.logits.double()
    shares = None if asked.output.link is None else asked.output.probabilities(logits)
    rows = []
    for index in best_classes(asked):
        role, word = "", "explain"
        if index == asked.target:
            role, word = " vt-is-for", "explained"
        elif index == asked.against:
            role, word = " vt-is-against", "held against it"
        name, share = escape(asked.class_name(index)), None if shares is None else float(shares[index])
        said = verdict_of(share, float(logits[index]))
        track = "" if share is None else f'<span class="vt-track"><i style="width:{100 * share:.1f}%"></i></span>'
        rows.append(
            f'<button type="button" class="vt-class{role}" data-class="{index}" '
            f'aria-pressed="{"true" if role else "false"}" aria-label="{name}, {said}, {word}">'
            f'<span class="vt-name">{name}</span><span class="vt-share">{said}</span>{track}</button>'
        )
    return f'<div class="vt-classes" role="group" aria-label="Classes">{"".join(rows)}</div>'
