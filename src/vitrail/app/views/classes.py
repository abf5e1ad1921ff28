"""What the model says of the picture: its best classes, each a button that asks, and two fields for all the others."""

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
    """The classes as buttons with bars: red the one explained, blue the one it is held against; then the fields."""
    logits = asked.logits.double()
    shares = None if asked.output.link is None else asked.output.probabilities(logits)
    target, against = asked.target, asked.against
    explained = escape(asked.class_name(target))
    rows = []
    for index in best_classes(asked):
        role, word = "", f"hold against {explained}"
        if index == target:
            role, word = " vt-is-for", "explained"
        elif index == against:
            role, word = " vt-is-against", f"held against {explained}"
        name, share = escape(asked.class_name(index)), None if shares is None else float(shares[index])
        said = verdict_of(share, float(logits[index]))
        track = "" if share is None else f'<span class="vt-track"><i style="width:{100 * share:.1f}%"></i></span>'
        rows.append(
            f'<button type="button" class="vt-class{role}" data-class="{index}" '
            f'aria-pressed="{"true" if role else "false"}" aria-label="{name}, {said}, {word}">'
            f'<span class="vt-name">{name}</span><span class="vt-share">{said}</span>{track}</button>'
        )
    if against is None:
        versus = (
            f'<p class="vt-say">Why {explained}? <span class="vt-mouse">Click</span><span class="vt-touch">Tap</span> '
            "another class to hold it against this one.</p>"
        )
    else:
        versus = (
            '<div class="vt-versus"><button type="button" class="vt-button" data-class="swap">⇄ Swap the two</button>'
            f'<button type="button" class="vt-button" data-class="{target}">Only {explained}</button></div>'
        )
    other = "" if against is None else escape(asked.class_name(against))
    return (
        f'<div class="vt-classes" role="group" aria-label="Classes">{"".join(rows)}</div>{versus}'
        f"{_combo('target', 'Why this class?', target, explained, '')}"
        f"{_combo('against', 'Rather than that one?', against, other, 'no second class')}"
    )


def _combo(name: str, label: str, index: int | None, value: str, empty: str) -> str:
    """A field that finds any class by its name; the page's script fills its list."""
    chosen = "" if index is None else f' data-index="{index}"'
    return (
        f'<div class="vt-combo" id="vt-{name}" data-combo="{name}" data-empty="{empty}">'
        f'<label for="vt-in-{name}">{label}</label>'
        f'<input id="vt-in-{name}" type="text" role="combobox" aria-expanded="false" aria-autocomplete="list" '
        f'aria-controls="vt-list-{name}" autocomplete="off" autocapitalize="off" spellcheck="false" '
        f'value="{value}" placeholder="{empty or "type a class"}"{chosen}>'
        f'<ul id="vt-list-{name}" role="listbox" aria-label="{label}" hidden></ul></div>'
    )
