"""The page itself: Gradio's components, wired to the service. Pictures travel inside the page, never as files."""

import base64
import os
from collections.abc import Callable, Generator, Mapping
from importlib.resources import files
from typing import Any

from ..errors import OptionError, VitrailError, how_to_install
from ..methods import list_methods
from ..render.palette import AGAINST, FOR
from .fragments import css, nothing
from .question import VIEWS
from .service import EMPTY, WAITING, Service, Shown
from .surroundings import masthead, own_guide, picker, taking_home
from .views.gallery import GROUPS
from .views.guide import LAYOUTS
from .work import MOST_LONG

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
NONE = "none"  # the word for no second class, as a value of the list


def _page_file(name: str) -> str:
    return files("vitrail.app").joinpath(name).read_text(encoding="utf-8")


COLOURS = (
    f":root {{ --vt-for: {css(FOR)}; --vt-against: {css(AGAINST)}; --vt-serif: {SERIF}; "
    f"--vt-sans: {', '.join(SANS)}; --vt-mono: {', '.join(MONO)}; }}\n"
)
STYLE = COLOURS + _page_file("page.css")
HEAD = f"<meta name='referrer' content='no-referrer'><script>{_page_file('page.js')}</script>"


def theme() -> Any:
    """Gradio's plainest look in the house's colours, with the reader's own fonts."""
    ink, line = "#1e2330", "#dcd8cf"
    look: dict[str, Any] = {
        "body_background_fill": "#faf8f4",
        "body_text_color": ink,
        "block_background_fill": "transparent",
        "block_border_width": "0px",
        "block_padding": "0px",
        "block_label_text_color": ink,
        "block_title_text_color": ink,
        "block_title_text_weight": "500",
        "input_background_fill": "#ffffff",
        "input_border_color": line,
        "button_primary_background_fill": "#2a2e38",
        "button_primary_background_fill_hover": "#454b59",
        "button_primary_text_color": "#ffffff",
        "button_secondary_background_fill": "#ffffff",
        "button_secondary_background_fill_hover": "#fffdf6",
        "button_secondary_border_color": "#bdb7a8",
        "button_secondary_text_color": ink,
        "slider_color": "#96701e",
        "checkbox_background_color_selected": "#96701e",
        "checkbox_border_color_selected": "#96701e",
        "checkbox_label_background_fill_selected": "#f6efdd",
        "checkbox_label_text_color_selected": ink,
    }
    base: Any = gr.themes.Base  # pyright: ignore[reportPrivateImportUsage]
    known = base.set.__code__.co_varnames
    look |= {f"{name}_dark": value for name, value in look.items() if f"{name}_dark" in known}
    return base(font=list(SANS), font_mono=list(MONO), radius_size="sm").set(**look)


def build(service: Service) -> gr.Blocks:
    """The page as Gradio's blocks; `server.application` serves it."""
    return _Page(service).blocks


class _Page:
    """Components and their events. Methods called by events get the visitor from Gradio's request."""

    def __init__(self, service: Service) -> None:
        self.service = service
        with gr.Blocks(title="Vitrail", analytics_enabled=False, fill_width=True) as self.blocks:
            # What the visitor looks at, as a link; what the page's script sends along; a file on its way out.
            self.query = gr.Textbox(visible=False)
            self.sent = gr.JSON(visible=False)
            self.parcel = gr.JSON(visible=False)
            gr.HTML(masthead(service.shelf.first), js_on_load=None)
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=300):
                    self._left()
                with gr.Column(scale=9, min_width=320):
                    self._right()
            self._wire()

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _left(self) -> None:
        chosen = "window.vitrail.picker(element, trigger, 'upload'); /* 'example' */"
        self.picker = gr.HTML(picker(self.service.limits.bytes), js_on_load=chosen)
        gr.HTML(
            '<h2 class="vt-step">Ask <small>one class: why? a second: why not that one?</small></h2>', js_on_load=None
        )
        buttons = "window.vitrail.buttons(element, trigger, 'class', d => Number(d.class));"
        self.classes = gr.HTML("", js_on_load=buttons)
        self.target = gr.Dropdown([], label="Why this class?", filterable=True, elem_id="vt-target")
        self.against = gr.Dropdown([("no second class", NONE)], value=NONE, label="Rather than that one?",
                                   filterable=True, elem_id="vt-against")  # fmt: skip
        with gr.Accordion("How it is asked", open=False):
            names = [info.name for info in list_methods()]
            self.model = gr.Dropdown(list(self.service.shelf.names), value=self.service.shelf.first, label="Model")
            self.method = gr.Dropdown(names, value="complete", label="Method", filterable=True)
            self.gradient = gr.Radio(["auto", "full", "leaf", "libra"], value="auto", label="Gradient",
                                     info="leaf: attention held constant; libra: norms and gates too")  # fmt: skip

    def _right(self) -> None:
        self.status = gr.HTML("", js_on_load=None, elem_id="vt-status")
        self.views: dict[str, gr.HTML] = {}
        self.tab: dict[str, gr.Tab] = {}
        self.drawing: dict[str, tuple[gr.Button, gr.Button, dict[str, Any]]] = {}
        scripts = {
            "map": "window.vitrail.pointing(element, trigger); /* 'patch' */ "
            "watch('value', () => window.vitrail.mark(element));",
            "heads": "window.vitrail.buttons(element, trigger, 'pick', d => d.pick.split(' ').map(Number));",
            "rewrite": "window.vitrail.buttons(element, trigger, 'save', d => d.save);",
        }
        film = "window.vitrail.films(element); watch('value', () => window.vitrail.film(element));"
        scripts |= dict.fromkeys(("layers", "transfer"), film)
        with gr.Tabs(selected="map") as self.tabs:
            for view in VIEWS:
                with gr.Tab(TITLES[view], id=view, elem_id=f"vt-tab-{view}") as self.tab[view]:
                    if view in WAITING:
                        self._tools(view)
                    waiting = nothing(WAITING[view]) if view in WAITING else EMPTY
                    self.views[view] = gr.HTML(waiting, js_on_load=scripts.get(view), elem_id=f"vt-view-{view}")
        self.opacity = gr.Slider(0, 1, value=1, step=0.01, label="Opacity of the glass", elem_classes="vt-quiet")
        taking = "window.vitrail.taking(element, trigger); /* 'download' */"
        self.taking = gr.HTML("", js_on_load=taking)

    def _tools(self, view: str) -> None:
        """What a long view is drawn with: its options, a button to begin and one to stop."""
        options: dict[str, Any] = {}
        with gr.Row(elem_classes="vt-tools"):
            if view == "methods":
                groups = [(words, name) for name, words in GROUPS.items()]
                options["methods"] = gr.Dropdown(groups, value="fast", label="Which methods")
            elif view == "guide":
                layouts = [(words, name) for name, words in LAYOUTS.items()]
                options["layout"] = gr.Dropdown(layouts, value="side", label="How they are laid together")
                own = "window.vitrail.picker(element, trigger, 'guide'); /* 'guide' */"
                self.own_guide = gr.HTML(own_guide(self.service.limits.bytes), js_on_load=own)
            elif view == "transfer":
                options["steps"] = gr.Slider(5, 100, value=20, step=5, label="Steps")
            elif view == "rewrite":
                options["until"] = gr.Slider(0.1, 0.99, value=0.9, step=0.01, label="Until it is so probable")
                options["budget"] = gr.Slider(0, 16, value=0, step=1, label="Most levels a pixel may change (0: any)")
            draw = gr.Button(TITLES[view], variant="primary", elem_id=f"vt-draw-{view}")
            stop = gr.Button("Stop", elem_id=f"vt-stop-{view}")
        self.drawing[view] = (draw, stop, options)

    # -- the events ----------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        shown = [self.query, self.status, self.classes, self.target, self.against, self.model, self.method]
        shown += [self.gradient, self.taking, self.tabs, *self.views.values()]
        shown += [option for _, _, options in self.drawing.values() for option in options.values()]
        take = "(sent, query) => [window.vitrail.take(), query]"
        busy = "(...given) => { window.vitrail.busy(true); return given; }"
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "quick", "concurrency_limit": 4}
        long: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "long",
                                "concurrency_limit": 2 * MOST_LONG}  # the service has them wait in line  # fmt: skip

        def on(event: Any, answer: Callable, inputs: list[Any], js: str, **lane: Any) -> None:
            done = event(answer, inputs, shown, js=js, **lane)
            told = "arrived" if lane["api_name"] == "arrive" else "link"
            then = f"query => {{ window.vitrail.{told}(query); }}"
            done.then(None, [self.query], None, js=then, show_progress="hidden")

        on(self.blocks.load, self._arrive, [self.query], "query => [location.search]", **quick | {"api_name": "arrive"})
        sent = [self.sent, self.query]
        on(self.picker.upload, self._upload, sent, take, **quick | {"api_name": "upload"})
        on(self.picker.example, self._example, sent, take, **quick | {"api_name": "example"})
        on(self.own_guide.guide, self._guide, sent, take, **quick | {"api_name": "guide"})
        on(getattr(self.classes, "class"), self._choose, sent, take, **quick | {"api_name": "choose"})
        on(self.views["map"].patch, self._patch, sent, take, **quick | {"api_name": "patch"})
        on(self.views["heads"].pick, self._head, sent, take, **quick | {"api_name": "head"})
        named = {"target": self.target, "against": self.against, "model": self.model}
        named |= {"method": self.method, "gradient": self.gradient}
        for name, component in named.items():
            on(component.input, self._changed(name), [component, self.query], busy, **quick | {"api_name": name})
        for view, tab in self.tab.items():
            on(tab.select, self._turned(view), [self.query], busy, **quick | {"api_name": False})
        for view, (draw, stop, options) in self.drawing.items():
            on(draw.click, self._drawn(view), [self.query, *options.values()], busy, **long | {"api_name": view})
            stop.click(self._stop, None, None, queue=False, show_progress="hidden", api_visibility="private")
        self.opacity.change(None, [self.opacity], None, js="value => { window.vitrail.opacity(value); }")
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

    def _upload(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        name, content = _file(sent)
        return self._changes(self.service.upload(_visitor(request), _text(query), name, content))

    def _example(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        key = _text(sent.get("example")) if isinstance(sent, dict) else ""
        return self._changes(self.service.example(_visitor(request), _text(query), key))

    def _guide(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        name, content = _file(sent)
        return self._changes(self.service.guide(_visitor(request), _text(query), name, content))

    def _choose(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        index = sent if isinstance(sent, int) and not isinstance(sent, bool) else 0
        return self._changes(self.service.choose(_visitor(request), _text(query), index))

    def _patch(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        place = sent if isinstance(sent, dict) else {}
        changes = {name: value if isinstance(value := place.get(name), int) else 0 for name in ("row", "col")}
        return self._changes(self.service.change(_visitor(request), _text(query), changes))

    def _head(self, sent: Any, query: str, request: gr.Request) -> dict[Any, Any]:
        layer, head = sent if isinstance(sent, list) and len(sent) == 2 else (0, 0)
        changes = {"layer": layer, "head": head}
        return self._changes(self.service.change(_visitor(request), _text(query), changes))

    def _changed(self, name: str) -> Callable[..., dict[Any, Any]]:
        def answer(value: Any, query: str, request: gr.Request) -> dict[Any, Any]:
            given = None if value == NONE else value
            return self._changes(self.service.change(_visitor(request), _text(query), {name: given}))

        return answer

    def _turned(self, view: str) -> Callable[..., dict[Any, Any]]:
        def answer(query: str, request: gr.Request) -> dict[Any, Any]:
            if not query:  # the page has only just been put together, and nobody turned to anything
                return {self.query: gr.skip()}
            return self._changes(self.service.change(_visitor(request), _text(query), {"view": view}))

        return answer

    def _drawn(self, view: str) -> Callable[..., Generator[dict[Any, Any], None, None]]:
        names = tuple(self.drawing[view][2])

        def answer(query: str, *values: Any, request: gr.Request) -> Generator[dict[Any, Any], None, None]:
            changes = dict(zip(names, values, strict=True)) | {"view": view}
            if "budget" in changes:
                levels = changes["budget"]
                changes["budget"] = levels / 255 if isinstance(levels, int | float) else 0.0
            for shown in self.service.draw(_visitor(request), _text(query), changes):
                yield self._changes(shown)

        # Gradio finds the request by its place among the parameters, which *values hides from it.
        def with_request(*given: Any) -> Generator[dict[Any, Any], None, None]:
            *values, request = given
            yield from answer(*values, request=request)

        return _taking(with_request, 1 + len(names))

    def _stop(self, request: gr.Request) -> None:
        self.service.stop(_visitor(request))

    def _download(self, sent: Any, query: str, request: gr.Request) -> dict[str, str]:
        try:
            name, kind, data = self.service.download(_visitor(request), _text(query), _text(sent))
        except VitrailError as error:
            return {"problem": str(error)}
        return {"name": name, "type": kind, "data": base64.b64encode(data).decode()}

    def _leave(self, request: gr.Request) -> None:
        self.service.desks.leave(_visitor(request))

    # -- what is shown -------------------------------------------------------------------------------------------------

    def _changes(self, shown: Shown, arriving: bool = False) -> dict[Any, Any]:
        """The answer as changes of components."""
        question = shown.question
        changes: dict[Any, Any] = {self.query: question.query(), self.status: shown.status}
        changes |= {self.views[view]: html for view, html in shown.views.items()}
        if shown.classes is not None:
            changes[self.classes] = shown.classes
        if shown.names is not None:
            known = {index for _, index in shown.names}
            target = shown.target if shown.target in known else None
            against = question.against if question.against in known else NONE
            changes[self.target] = gr.Dropdown(list(shown.names), value=target)
            changes[self.against] = gr.Dropdown([("no second class", NONE), *shown.names], value=against)
        if shown.recipes is not None:
            changes[self.taking] = taking_home(question.example, shown)
        if arriving:
            changes[self.tabs] = gr.Tabs(selected=question.view)
            changes[self.model] = (
                question.model if question.model in self.service.shelf.names else self.service.shelf.first
            )
            changes[self.method], changes[self.gradient] = question.method, question.gradient
            for _, _, options in self.drawing.values():
                for name, component in options.items():
                    value = getattr(question, name)
                    changes[component] = round(255 * value) if name == "budget" else value
        return changes


def _taking(function: Callable, count: int) -> Callable:
    """The function with so many parameters in its signature, and the request behind them, where Gradio looks for it."""
    import inspect

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
