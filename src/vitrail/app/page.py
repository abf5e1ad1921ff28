"""The page: Gradio's components, connected to the service. Images travel inside the page, never as files."""

import base64
import inspect
import json
import os
from collections.abc import Callable, Generator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from ..errors import OptionError, VitrailError, how_to_install
from ..methods import list_methods
from ..plotting.overlay import AGAINST, FOR, colour
from ..plotting.transfer import COLOURS
from .components import examples, masthead, own_guide, picker, taking_home
from .fragments import css, nothing, on_page
from .jobs import MOST_LONG
from .question import VIEWS
from .service import DRAW, EMPTY, WAITING, PageUpdate, Service, read
from .views.comparisons import GROUPS, LAYOUTS

# Gradio reads these when it is imported: nothing is told to anybody, nothing looked up.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

try:
    import gradio as gr
except ImportError as error:  # pragma: no cover  (the command checks before)
    raise OptionError(f"the page needs Gradio; install it with: {how_to_install('app')}") from error

__all__ = ["HEAD", "STYLE", "build", "theme"]

TITLES = {
    "map": "Map",
    "methods": "Methods",
    "layers": "Layers",
    "heads": "Heads",
    "detail": "Detail",
    "guide": "Guide",
    "transfer": "Transfer",
    "rewrite": "Rewrite",
}
SERIF = "'Iowan Old Style', 'Palatino Linotype', Palatino, 'Book Antiqua', Georgia, 'DejaVu Serif', serif"
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
# What the style sheet calls by the same names, for Gradio's own parts: on paper, and on the dark page.
TONES = {
    "paper": ("#faf8f4", "#16171d"),
    "card": ("#ffffff", "#20222b"),
    "ink": ("#1e2330", "#eceae4"),
    "soft": ("#5d6372", "#a9adba"),
    "line": ("#dcd8cf", "#3a3d4a"),
    "edge": ("#bdb7a8", "#575b6b"),
    "lead": ("#2a2e38", "#e0b04a"),
    "lead_hover": ("#454b59", "#ecc571"),
    "on_lead": ("#ffffff", "#16171d"),
    "hover": ("#fffdf6", "#2a2d39"),
    "gold": ("#96701e", "#e0b04a"),
    "chosen": ("#f6efdd", "#3b3423"),
    "clear": ("transparent", "transparent"),
}
LIGHTER = 0.5  # on a dark page words have the colours of a score of that size: as strong to the eye as on paper


def _page_file(name: str) -> str:
    return files("vitrail.app").joinpath(name).read_text(encoding="utf-8")


def _variables() -> str:
    """Returns the colours of the maps as variables of the style sheet, for the light and the dark page."""
    curves = "; ".join(f"--vt-curve-{place}: {tint}" for place, tint in enumerate(COLOURS[:2]))
    fonts = f"--vt-serif: {SERIF}; --vt-sans: {', '.join(SANS)}; --vt-mono: {', '.join(MONO)}"
    red, blue = (css(colour(np.array(side * LIGHTER)).tolist()) for side in (1, -1))
    return (
        f":root {{ --vt-for: {css(FOR)}; --vt-against: {css(AGAINST)}; {curves}; {fonts}; }}\n"
        f"body.dark {{ --vt-for: {red}; --vt-against: {blue}; --vt-curve-0: #eceae4; }}\n"
    )


STYLE = _variables() + _page_file("page.css")
HEAD = f"<meta name='referrer' content='no-referrer'><script>{_page_file('page.js')}</script>"


def theme() -> Any:
    """Returns Gradio's base theme in the page's colours, light and dark, with system fonts."""
    names = {
        "body_background_fill": "paper",
        "body_text_color": "ink",
        "body_text_color_subdued": "soft",
        "block_background_fill": "clear",
        "block_border_color": "line",
        "block_label_text_color": "ink",
        "block_title_text_color": "ink",
        "border_color_primary": "line",
        "background_fill_primary": "card",
        "background_fill_secondary": "paper",
        "input_background_fill": "card",
        "input_background_fill_focus": "card",
        "input_border_color": "line",
        "button_primary_background_fill": "lead",
        "button_primary_background_fill_hover": "lead_hover",
        "button_primary_text_color": "on_lead",
        "button_secondary_background_fill": "card",
        "button_secondary_background_fill_hover": "hover",
        "button_secondary_border_color": "edge",
        "button_secondary_text_color": "ink",
        "slider_color": "gold",
        "checkbox_background_color": "card",
        "checkbox_background_color_selected": "gold",
        "checkbox_border_color": "edge",
        "checkbox_border_color_selected": "gold",
        "checkbox_label_background_fill": "card",
        "checkbox_label_background_fill_selected": "chosen",
        "checkbox_label_text_color": "ink",
        "checkbox_label_text_color_selected": "ink",
    }
    base: Any = gr.themes.Base  # pyright: ignore[reportPrivateImportUsage]
    known = base.set.__code__.co_varnames
    look: dict[str, Any] = {"block_border_width": "0px", "block_padding": "0px", "block_title_text_weight": "500"}
    for place, ending in enumerate(("", "_dark")):
        look |= {f"{name}{ending}": TONES[tone][place] for name, tone in names.items() if f"{name}{ending}" in known}
    return base(font=list(SANS), font_mono=list(MONO), radius_size="sm").set(**look)


def build(service: Service) -> gr.Blocks:
    """Returns the page as Gradio's blocks; `server.application` serves it."""
    return _Page(service).blocks


class _Page:
    """Holds the components and their events; the handlers of events get the visitor from Gradio's request."""

    def __init__(self, service: Service) -> None:
        self.service = service
        with gr.Blocks(title="Vitrail", analytics_enabled=False, fill_width=True) as self.blocks:
            # What the visitor looks at, as a link; what the page's script sends along; a file on its way out.
            self.query = gr.Textbox(visible=False)
            self.sent = gr.JSON(visible=False)
            self.parcel = gr.JSON(visible=False)
            gr.HTML(masthead(service.models.first), js_on_load="window.vitrail.head(element);")
            with gr.Row(equal_height=False, elem_id="vt-page"):
                with gr.Column(scale=3, min_width=300, elem_id="vt-left"):
                    self._left()
                with gr.Column(scale=9, min_width=320, elem_id="vt-right"):
                    self._right()
            self._wire()

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _left(self) -> None:
        chosen = "window.vitrail.picker(element, trigger, 'upload'); window.vitrail.history(trigger); /* 'back' */"
        self.picker = gr.HTML(picker(self.service.limits.bytes), js_on_load=chosen, elem_id="vt-picker")
        drawn = "watch('value', () => window.vitrail.drawn(element));"
        offer = f"window.vitrail.examples(element, trigger); {drawn} /* 'example' */"
        self.examples = gr.HTML("", js_on_load=offer, elem_id="vt-offer")
        with gr.Column(elem_id="vt-ask"):
            gr.HTML(
                '<h2 class="vt-step">Ask <small>why this class, and why not that one?</small></h2>', js_on_load=None
            )
            asks = f"window.vitrail.classes(element, trigger); {drawn} /* 'class' 'named' */"
            self.names = gr.HTML("", js_on_load=None, elem_classes="vt-hidden")
            self.classes = gr.HTML("", js_on_load=asks)
            with gr.Accordion("How it is asked", open=False):
                names = [info.name for info in list_methods()]
                self.model = gr.Dropdown(
                    list(self.service.models.names), value=self.service.models.first, label="Model"
                )
                self.method = gr.Dropdown(names, value="complete", label="Method", filterable=True)
                self.gradient = gr.Radio(["default", "full", "leaf", "libra"], value="default", label="Gradient",
                                         info="default: of complete libra, less what argues for other classes in the "
                                         "picture; of the others full. leaf: attention held constant; libra: norms "
                                         "and gates too")  # fmt: skip

    def _right(self) -> None:
        self.status = gr.HTML("", js_on_load=None, elem_id="vt-status")
        self.views: dict[str, gr.HTML] = {}
        self.tab: dict[str, gr.Tab] = {}
        self.drawing: dict[str, tuple[gr.Button, gr.Button, dict[str, Any]]] = {}
        script = "window.vitrail.view(element, trigger); watch('value', () => window.vitrail.drawn(element)); "
        script += "/* 'patch' 'pick' 'save' */"
        with gr.Tabs(selected="map", elem_id="vt-views") as self.tabs:
            for view in VIEWS:
                with gr.Tab(TITLES[view], id=view, elem_id=f"vt-tab-{view}") as self.tab[view]:
                    if view in WAITING:
                        self._tools(view)
                    waiting = nothing(WAITING[view]) if view in WAITING else EMPTY
                    self.views[view] = gr.HTML(waiting, js_on_load=script, elem_id=f"vt-view-{view}")
        taking = "window.vitrail.taking(element, trigger); /* 'download' */"
        self.taking = gr.HTML("", js_on_load=taking, elem_id="vt-taking")

    def _tools(self, view: str) -> None:
        """Adds the controls of a long view: its options, and the buttons to start and to stop it."""
        options: dict[str, Any] = {}
        with gr.Row(elem_classes="vt-tools"):
            if view == "methods":
                groups = [(words, name) for name, words in GROUPS.items()]
                options["methods"] = gr.Dropdown(groups, value="fast", label="Which methods")
            elif view == "guide":
                layouts = [(words, name) for name, words in LAYOUTS.items()]
                options["layout"] = gr.Dropdown(layouts, value="side", label="How the two are laid together")
                own = "window.vitrail.picker(element, trigger, 'guide'); /* 'guide' */"
                self.own_guide = gr.HTML(own_guide(self.service.limits.bytes), js_on_load=own)
            elif view == "transfer":
                options["steps"] = gr.Slider(5, 100, value=20, step=5, label="Steps")
            elif view == "rewrite":
                options["until"] = gr.Slider(0.1, 0.99, value=0.9, step=0.01, label="Stop at this probability")
                options["budget"] = gr.Slider(0, 16, value=0, step=1, label="Levels per pixel (0: any)")
            draw = gr.Button(DRAW[view], variant="primary", elem_id=f"vt-draw-{view}")
            stop = gr.Button("Stop", elem_id=f"vt-stop-{view}", elem_classes="vt-stop")
        self.drawing[view] = (draw, stop, options)

    # -- the events ----------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        shown = [self.query, self.status, self.examples, self.names, self.classes, self.model, self.method]
        shown += [self.gradient, self.taking, self.tabs, *self.views.values()]
        shown += [option for _, _, options in self.drawing.values() for option in options.values()]
        take = "(sent, query) => [window.vitrail.take(), query]"
        busy = "(...given) => { window.vitrail.busy(true); return given; }"
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "quick", "concurrency_limit": 4}
        long: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "long",
                                "concurrency_limit": 2 * MOST_LONG}  # the service has them wait in line  # fmt: skip

        def on(event: Any, answer: Callable, inputs: list[Any], js: str, then: str = "link", **lane: Any) -> None:
            done = event(answer, inputs, shown, js=js, **lane)
            after = f"query => {{ window.vitrail.{then}(query); }}"
            done.then(None, [self.query], None, js=after, show_progress="hidden")

        arrive = "query => [location.search]"
        on(self.blocks.load, self._arrive, [self.query], arrive, "arrived", **quick | {"api_name": "arrive"})
        sent = [self.sent, self.query]
        on(self.picker.upload, self._upload, sent, take, **quick | {"api_name": "upload"})
        on(self.picker.back, self._back, sent, take, "arrived", **quick | {"api_name": "back"})
        on(self.examples.example, self._example, sent, take, **quick | {"api_name": "example"})
        on(self.own_guide.guide, self._guide, sent, take, **quick | {"api_name": "guide"})
        on(getattr(self.classes, "class"), self._choose, sent, take, **quick | {"api_name": "choose"})
        on(self.classes.named, self._named, sent, take, **quick | {"api_name": "named"})
        on(self.views["map"].patch, self._patch, sent, take, **quick | {"api_name": "patch"})
        on(self.views["heads"].pick, self._head, sent, take, **quick | {"api_name": "head"})
        for name, component in {"model": self.model, "method": self.method, "gradient": self.gradient}.items():
            on(component.input, self._changed(name), [component, self.query], busy, **quick | {"api_name": name})
        for view, tab in self.tab.items():
            on(tab.select, self._turned(view), [self.query], busy, "turned", **quick | {"api_name": False})
        for view, (draw, stop, options) in self.drawing.items():
            begin = f"(...given) => {{ window.vitrail.begin('{view}'); return given; }}"
            inputs = [self.query, *options.values()]
            on(
                draw.click,
                self._drawn(view),
                inputs,
                begin,
                f"ended('{view}'), window.vitrail.link",
                **long | {"api_name": view},
            )
            stop.click(self._stop, None, None, queue=False, show_progress="hidden", api_visibility="private")
        for button, name in ((self.taking, "download"), (self.views["rewrite"], "save")):
            parcel = getattr(button, name)(
                self._download, [*sent], [self.parcel], js=take, **quick | {"api_name": name}
            )
            parcel.then(
                None, [self.parcel], None, js="parcel => { window.vitrail.save(parcel); }", show_progress="hidden"
            )
        self.blocks.unload(self._leave)

    def _arrive(self, query: str, request: gr.Request) -> dict[Any, Any]:
        return self._changes(self.service.arrive(_visitor(request), _text(query).removeprefix("?")), arriving=True)

    def _back(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        del query
        link = _text(sent).removeprefix("?")
        return self._changes(self.service.arrive(_visitor(request), link, back=True), arriving=True)

    def _upload(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        name, content = _file(sent)
        return self._changes(self.service.upload(_visitor(request), _text(query), name, content), named=True)

    def _example(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        key = _text(sent.get("example")) if isinstance(sent, dict) else ""
        return self._changes(self.service.example(_visitor(request), _text(query), key))

    def _guide(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        name, content = _file(sent)
        return self._changes(self.service.guide(_visitor(request), _text(query), name, content))

    def _choose(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        index = sent if isinstance(sent, int) and not isinstance(sent, bool) else None
        return self._changes(self.service.choose(_visitor(request), _text(query), index))

    def _named(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        given: Mapping[str, Any] = sent if isinstance(sent, dict) else {}
        changes = {name: given[name] for name in ("target", "against") if name in given}
        return self._changes(self.service.change(_visitor(request), _text(query), changes))

    def _patch(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        place = sent if isinstance(sent, dict) else {}
        changes = {name: value if isinstance(value := place.get(name), int) else None for name in ("row", "col")}
        return self._changes(self.service.change(_visitor(request), _text(query), changes))

    def _head(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        layer, head = sent if isinstance(sent, list) and len(sent) == 2 else (0, 0)
        changes = {"layer": layer, "head": head}
        return self._changes(self.service.change(_visitor(request), _text(query), changes))

    def _changed(self, name: str) -> Callable[..., dict[Any, Any]]:
        def answer(value: Any, query: str, request: gr.Request) -> dict[Any, Any]:
            shown = self.service.change(_visitor(request), _text(query), {name: value})
            return self._changes(shown, named=name == "model")

        return answer

    def _turned(self, view: str) -> Callable[..., dict[Any, Any]]:
        def answer(query: str, request: gr.Request) -> dict[Any, Any]:
            # The page has only just been put together, or Back has turned it: nobody asked for anything.
            if not query or read(query).view == view:
                return {self.query: gr.skip()}
            return self._changes(self.service.change(_visitor(request), _text(query), {"view": view}))

        return answer

    def _drawn(self, view: str) -> Callable[..., Generator[dict[Any, Any], None, None]]:
        names = tuple(self.drawing[view][2])

        def answer(*given: Any) -> Generator[dict[Any, Any], None, None]:
            query, *values, request = given
            changes = dict(zip(names, values, strict=True)) | {"view": view}
            if "budget" in changes:
                levels = changes["budget"]
                changes["budget"] = levels / 255 if isinstance(levels, int | float) else 0.0
            for shown in self.service.draw(_visitor(request), _text(query), changes):
                yield self._changes(shown)

        return _with_signature(answer, 1 + len(names))

    def _stop(self, request: gr.Request) -> None:
        self.service.stop(_visitor(request))

    def _download(self, sent: Any, query: str, request: gr.Request) -> dict[str, str]:
        try:
            name, kind, data = self.service.download(_visitor(request), _text(query), _text(sent))
        except VitrailError as error:
            return {"problem": on_page(str(error))}
        return {"name": name, "type": kind, "data": base64.b64encode(data).decode()}

    def _leave(self, request: gr.Request) -> None:
        self.service.sessions.leave(_visitor(request))

    # -- what is shown -------------------------------------------------------------------------------------------------

    def _changes(self, shown: PageUpdate, arriving: bool = False, named: bool = False) -> dict[Any, Any]:
        """Returns the update as changes of components; with `arriving` the visitor's controls are set too.

        Class names and examples are sent where they may have changed: with `arriving` or `named`.
        """
        question = shown.question
        changes: dict[Any, Any] = {self.views[view]: html for view, html in shown.views.items()}
        if question is None:  # only how far a drawing has come
            return changes
        changes |= {self.query: question.query(), self.status: shown.status}
        if shown.classes is not None:
            changes[self.classes] = shown.classes
        if shown.names is not None and (arriving or named):
            changes[self.names] = f'<div id="vt-names" data-names="{escape(json.dumps(shown.names))}"></div>'
        if shown.examples is not None and (arriving or named):
            changes[self.examples] = examples(shown.examples)
        if shown.recipes is not None:
            changes[self.taking] = taking_home(question.example, shown.files or (), shown.recipes)
        if arriving:
            changes[self.tabs] = gr.Tabs(selected=question.view)
            changes[self.model] = (
                question.model if question.model in self.service.models.names else self.service.models.first
            )
            changes[self.method], changes[self.gradient] = question.method, question.gradient
            for _, _, options in self.drawing.values():
                for name, component in options.items():
                    value = getattr(question, name)
                    value = round(255 * value) if name == "budget" else value
                    if isinstance(component, gr.Slider):  # a link may ask for less or more than the slider has
                        value = min(max(value, component.minimum), component.maximum)
                    changes[component] = value
        return changes


def _with_signature(function: Callable, count: int) -> Callable:
    """Returns the function with a signature of `count` parameters and the request, which Gradio finds by its place."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [inspect.Parameter(f"given{number}", kind) for number in range(count)]
    request = inspect.Parameter("request", kind, annotation=gr.Request)

    function.__signature__ = inspect.Signature([*names, request])  # type: ignore[attr-defined]
    function.__annotations__ = {"request": gr.Request}
    return function


def _visitor(request: gr.Request) -> str:
    return f"{request.username or ''}:{request.session_hash or ''}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _file(sent: Any) -> tuple[str, str]:
    given: Mapping[str, Any] = sent if isinstance(sent, dict) else {}
    if given.get("size"):  # the page did not even read it
        return _text(given.get("name")), "data:"
    return _text(given.get("name")), _text(given.get("content"))
