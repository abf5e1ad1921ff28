"""The paper's figures 3 to 13: what each claims, of what images, by which experiment, and whether the claim holds here.

A verdict is made of the numbers that the experiment returned, by a rule for each figure; nothing in it is known
beforehand. The rules:

    3, 7    an object counts as blue where a quarter or more of what argues for its class is below zero
    4       the maps of two classes under |∇A| correlate by 0.8 or more, and by more than those of GAE
    5       the two classes' complete maps are opposed (correlation below zero), and GAE's less so
    6       the target's logit falls, its map loses relevance on the target, the opposing class's stays above zero
    8       more than half of the relevance in the photograph's half is positive, in the guide's half negative
    9       without the reddest tenth the difference of logits falls, without the bluest it rises
    10, 13  half or more of what argues for the other class is below zero in complete, and in few other methods
    11      the target probability is reached, at 40 dB or more
    12      negative: the interval of complete − GAE lies above zero; positive: it reaches to within 0.02 of zero
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .effects import mean_of

__all__ = ["DIAGRAMS", "FIGURES", "Ask", "PaperFigure", "Verdict", "overall"]

Results = Sequence[Mapping[str, Any]]

BLUE, ALIKE, NEARLY, UNSEEN = 0.25, 0.8, 0.02, 40.0
COMPLETE = "complete"
DIAGRAMS = (
    "Figures 1 and 2 are diagrams, of the idea and of how GAE is computed: there is nothing to draw or to measure."
)


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds here ("holds", "holds in part", "does not hold"), and the numbers that say so."""

    word: str
    text: str


@dataclass(frozen=True)
class Ask:
    """A photograph by the kinds that it shows, and the kinds that are asked about; by default those that it shows."""

    shows: tuple[str, ...]
    targets: tuple[str, ...]
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper: its experiment, its photographs, what it shows and claims there, and its verdict here.

    `joined` says that all photographs are one sheet; otherwise each is a question of its own. `guide` is the kind of
    the guide's photograph, and figures without `asks` take all photographs.
    """

    number: int
    experiment: str
    shows: str
    claim: str
    verdict: Callable[[Results], Verdict]
    asks: tuple[Ask, ...] = ()
    joined: bool = True
    methods: tuple[str, ...] = ()
    guide: str | None = None
    framed: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Returns the figure's name on the command line."""
        return f"fig{self.number}"


def overall(parts: Sequence[bool]) -> str:
    """Returns the word for a claim of several parts.

    Example:
        >>> overall([True, True]), overall([True, False]), overall([False])
        ('holds', 'holds in part', 'does not hold')
    """
    return "holds" if all(parts) else "holds in part" if any(parts) else "does not hold"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _signed(value: float, form: str = "+.2f") -> str:
    return format(value, form).replace("-", "−")


def _of(count: int, total: int, what: str) -> str:
    return f"{count} of {total} {what}"


def _absolute_and_complete(results: Results) -> Verdict:
    absolute, complete = (mean_of([row for one in results for row in one["object"][m]]) for m in ("absolute", COMPLETE))
    finds, turns = absolute["energy"] > absolute["size"], complete["below zero"] >= BLUE
    return Verdict(
        overall([finds, turns]),
        f"Of the absolute gradient {_percent(absolute['energy'])} lie on what argues for the class, "
        f"{_percent(absolute['size'])} of the image: it {'finds' if finds else 'does not find'} the object. The "
        f"complete gradient puts {_percent(complete['below zero'])} of that below zero: "
        f"{'blue' if turns else 'little blue'} on the object itself.",
    )


def _fails_alone(results: Results) -> Verdict:
    rows = [row["below zero"] for one in results for row in one["object"][COMPLETE]]
    blue = [share >= BLUE for share in rows]
    said = ", ".join(map(_percent, rows))
    return Verdict(
        overall(blue),
        f"The map fails on {_of(sum(blue), len(blue), 'images')}: of what argues for the class, {said} are below zero "
        f"({_percent(BLUE)} or more is a failure).",
    )


def _compared(results: Results, method: str) -> tuple[list[float], list[float], str]:
    """Returns how far the maps of two classes correlate by image, a method's and GAE's, and both in words."""
    own, gae = (
        [sum(one["correlation"][name]) / len(one["correlation"][name]) for one in results] for name in (method, "gae")
    )
    return own, gae, "; ".join(f"{_signed(a)} and {_signed(g)}" for a, g in zip(own, gae, strict=True))


def _alike(results: Results) -> Verdict:
    absolute, gae, pairs = _compared(results, "absolute")
    parts = [a >= ALIKE and a > g for a, g in zip(absolute, gae, strict=True)]
    return Verdict(
        overall(parts),
        f"Correlation between the maps of two classes, absolute and positive gradient, by image: {pairs}. The absolute "
        f"gradient does not tell the classes apart on {_of(sum(parts), len(parts), 'images')} ({ALIKE} or more, and "
        "more than the positive one).",
    )


def _opposed(results: Results) -> Verdict:
    complete, gae, pairs = _compared(results, COMPLETE)
    parts = [c < 0 and c < g for c, g in zip(complete, gae, strict=True)]
    signs = {method: mean_of([one["signs"][method] for one in results]) for method in (COMPLETE, "gae")}
    return Verdict(
        overall(parts),
        f"Correlation between the two classes' maps, complete gradient and GAE, by image: {pairs}; opposed on "
        f"{_of(sum(parts), len(parts), 'images')}. Of what argues for the other class, the complete gradient puts "
        f"{_percent(signs[COMPLETE]['other below zero'])} below zero, GAE "
        f"{_percent(signs['gae']['other below zero'])}; of what argues for its own class "
        f"{_percent(signs[COMPLETE]['own above zero'])} are above.",
    )


def _moves(results: Results) -> Verdict:
    parts, said = [], []
    for one in results:
        (target, falls), (opposing, other) = one["logits"].items()
        first, last = min(falls, key=int), max(falls, key=int)
        own, stays = one["relevance"]["target"]["target"], one["relevance"]["opposing"]["opposing"]
        across = one["relevance"]["target"]["opposing"]
        parts += [falls[last] < falls[first] and own[last] < own[first], stays[last] > 0]
        said.append(
            f"{target}: logit {_signed(falls[first], '.1f')} to {_signed(falls[last], '.1f')} in {last} steps, its "
            f"map's balance on {target} {_signed(own[first])} to {_signed(own[last])}, on {opposing} "
            f"{_signed(across[first])} to {_signed(across[last])}; the map of {opposing} on {opposing} "
            f"{_signed(stays[first])} to {_signed(stays[last])}, while its logit goes from "
            f"{_signed(other[first], '.1f')} to {_signed(other[last], '.1f')}"
        )
    return Verdict(overall(parts), ". ".join(said) + ".")


def _guided(results: Results) -> Verdict:
    rows = [row for one in results for row in one["shares"][COMPLETE]]
    parts = [row["own half positive relevance"] > 0.5 and row["guide half negative relevance"] > 0.5 for row in rows]
    mean = mean_of(rows)
    return Verdict(
        overall(parts),
        f"{_percent(mean['own half positive relevance'])} of the relevance in the photographs' own half is positive, "
        f"{_percent(mean['guide half negative relevance'])} of that in the guide's half negative; both more than half "
        f"on {_of(sum(parts), len(parts), 'images')}. By patches: {_percent(mean['own half above zero'])} above zero, "
        f"{_percent(mean['guide half below zero'])} below.",
    )


def _details(results: Results) -> Verdict:
    parts, said = [], []
    for one in results:
        red, blue = one["effect"]["without the reddest"], one["effect"]["without the bluest"]
        parts += [red < 0, blue > 0]
        said.append(f"{' against '.join(one['names'])}: {_signed(red)} and {_signed(blue)}")
    return Verdict(
        overall(parts),
        "Change of the difference of both logits without the reddest, and without the bluest, tenth of the map: "
        f"{'; '.join(said)}. The first should be below zero, the second above: so it is for "
        f"{_of(sum(parts), len(parts), 'ends of maps')}.",
    )


def _signs_of_methods(results: Results) -> tuple[dict[str, dict[str, float]], int]:
    """Returns each method's signs, the mean over models and images, and how many of the other methods find blue."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in (row for one in results for row in one["signs"]):
        for label, signs in row.items():
            found.setdefault(label, []).append(signs)
    means = {label: mean_of(rows) for label, rows in found.items()}
    others = [means[label]["other below zero"] >= 0.5 for label in means if label != COMPLETE]
    return means, sum(others)


def _among_methods(results: Results) -> Verdict:
    means, count = _signs_of_methods(results)
    others = len(means) - 1
    own = means[COMPLETE]
    best = max((label for label in means if label != COMPLETE), key=lambda label: means[label]["other below zero"])
    return Verdict(
        overall([own["other below zero"] >= 0.5, count <= others / 4]),
        f"Of what argues for the other class, the complete gradient puts {_percent(own['other below zero'])} below "
        f"zero. {count} of {others} other methods put half or more there, first {best} "
        f"({_percent(means[best]['other below zero'])}).",
    )


def _rewritten(results: Results) -> Verdict:
    parts, said = [], []
    for one in results:
        parts += [bool(one["reached"]), one["psnr"] is None or one["psnr"] >= UNSEEN]
        (source, target), (was, now) = (one["source"], one["target"]), one["logits"]
        shares = (one["source_probability"], one["target_probability"])
        said.append(
            f"{source} {_percent(shares[0][0])} ({_signed(was[0], '.3f')}), {target} {_percent(shares[1][0])} to "
            f"{source} {_percent(shares[0][1])}, {target} {_percent(shares[1][1])} ({_signed(now[1], '.3f')}) in "
            f"{one['step']} steps, PSNR {one['psnr'] or float('inf'):.1f} dB, L∞ {round(255 * one['linf'])}/255"
        )
    return Verdict(
        overall(parts),
        f"{'; '.join(said)}. In the paper tusker 35.1 % (11.150) to bull mastiff 93.8 % (12.926); {UNSEEN:.0f} dB or "
        "more counts as unseen.",
    )


def _interval(told: Mapping[str, float]) -> str:
    return f"{_signed(told['mean'], '+.3f')} [{_signed(told['low'], '+.3f')}, {_signed(told['high'], '+.3f')}]"


def _perturbed(results: Results) -> Verdict:
    parts, said = [], []
    for one in results:
        apart = {key.removeprefix("complete less "): told for key, told in one["differences"].items()}
        negative, positive = apart["gae, negative, anywhere"], apart["gae, positive, anywhere"]
        parts += [negative["low"] > 0, positive["low"] < NEARLY and positive["high"] > -NEARLY]
        controls = (
            ("the guide stays", "gae, negative, own half"),
            ("the guide is black", "gae, negative, alone"),
            ("GAE − GAE(guide)", "the control gae − gae(guide), negative, anywhere"),
        )
        left = "; ".join(f"{name} {_interval(apart[key])}" for name, key in controls)
        gone = [name for name, key in controls if not apart[key]["low"] > 0]
        of_controls = f"no gain is left under: {', '.join(gone)}" if gone else "a gain is left under each"
        said.append(
            f"{one['model']}, {one['photographs']} photographs, complete − GAE: negative {_interval(negative)}, "
            f"positive {_interval(positive)}. Controls, negative: {left}: {of_controls}"
        )
    return Verdict(overall(parts), ". ".join(said) + ".")


_SINGLES = tuple(Ask((kind,), (kind,)) for kind in ("snail", "eagle", "dog"))
_ZEBRA = Ask(("elephant", "zebra"), ("zebra",), ("elephant",))
_BEST = "Of the methods, complete alone shows what argues against the class"

FIGURES: dict[int, PaperFigure] = {
    one.number: one
    for one in (
        PaperFigure(
            3,
            "single",
            "Images of one class: the absolute and the complete gradient.",
            "The absolute gradient shows where the object is; the complete gradient is blue on parts of the object.",
            _absolute_and_complete,
            _SINGLES,
            methods=("absolute", COMPLETE),
        ),
        PaperFigure(
            4,
            "gradients",
            "Absolute and positive gradient (GAE) on an image of two classes and on a snail.",
            "The absolute gradient does not distinguish the classes.",
            _alike,
            (Ask(("elephant", "zebra"), ("elephant", "zebra")), Ask(("snail",), ("snail", "conch"))),
            joined=False,
            methods=("absolute", "gae"),
        ),
        PaperFigure(
            5,
            "gradients",
            "Images of two classes: complete gradient and GAE for each class.",
            "The complete gradient is red on the class that is asked about and blue on the other; GAE has no blue.",
            _opposed,
            (Ask(("elephant", "zebra"), ("elephant", "zebra")), Ask(("cat", "dog"), ("cat", "dog"))),
            joined=False,
            methods=(COMPLETE, "gae"),
        ),
        PaperFigure(
            6,
            "transfer",
            "Attention transfer: all attention maps optimised to lower the logit of one class, learning rate 0.0004.",
            "The positive attention leaves the target; that of the opposing class stays.",
            _moves,
            (_ZEBRA, Ask(("cat", "dog"), ("cat",), ("dog",))),
            joined=False,
        ),
        PaperFigure(
            7,
            "single",
            "Images of one class, complete gradient.",
            "The complete gradient alone fails: it is blue on the object.",
            _fails_alone,
            _SINGLES,
            methods=(COMPLETE,),
        ),
        PaperFigure(
            8,
            "stitched",
            "The same images beside a guide of another class.",
            "The object is red, the guide blue.",
            _guided,
            _SINGLES,
            methods=(COMPLETE,),
            guide="zebra",
        ),
        PaperFigure(
            9,
            "typical",
            "Details under Eq. 8, one class against another; below, typical images of the second class.",
            "Red are details of the first class, blue those of the second.",
            _details,
            (
                Ask(("snail",), ("snail",), ("conch",)),
                Ask(("snail",), ("snail",), ("slug",)),
                Ask(("eagle",), ("eagle",), ("kite",)),
            ),
            framed=(2,),
        ),
        PaperFigure(
            10,
            "comparison",
            "The photograph of the case study by other methods.",
            f"{_BEST}.",
            _among_methods,
            (Ask(("eagle",), ("eagle",), ("kite",)),),
        ),
        PaperFigure(
            11,
            "rewriting",
            "Pixel rewriting: one class becomes another by descent on the difference of their logits.",
            "Changes that nobody sees make the model predict another class.",
            _rewritten,
            (Ask(("elephant", "zebra"), ("dog",), ("elephant",)),),
            joined=False,
        ),
        PaperFigure(
            12,
            "perturbation",
            "Positive and negative perturbation of images stitched to a guide: complete gradient and GAE, by model.",
            "In the negative order the complete gradient is clearly better, in the positive one both are nearly equal.",
            _perturbed,
            guide="zebra",
        ),
        PaperFigure(
            13,
            "methods",
            "All class-aware methods on images of two classes, by model.",
            f"{_BEST} in the image.",
            _among_methods,
            (_ZEBRA, Ask(("cat", "dog"), ("dog",), ("cat",))),
        ),
    )
}
