"""Vitrail: see why a Vision Transformer decided as it did."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audit import audit
    from .compare import compare
    from .comparison import Comparison
    from .explain import explain
    from .explanation import Explanation
    from .generation import GenerationExplanation, explain_generation, load_vlm
    from .guidance import Guide
    from .methods import list_methods
    from .models import VisionModel, list_models, load, wrap
    from .models.hugging_face import load_text
    from .models.preprocess import Preprocess
    from .objectives import list_objectives
    from .plan import Plan, plan
    from .text import TextExplanation, explain_text

    __version__: str

__all__ = [
    "Comparison",
    "Explanation",
    "GenerationExplanation",
    "Guide",
    "Plan",
    "Preprocess",
    "TextExplanation",
    "VisionModel",
    "audit",
    "compare",
    "explain",
    "explain_generation",
    "explain_text",
    "list_methods",
    "list_models",
    "list_objectives",
    "load",
    "load_text",
    "load_vlm",
    "plan",
    "wrap",
]

# The module that defines each name. It is imported when the name is first used: PyTorch takes seconds, and neither
# `vitrail --help` nor a shell's completion needs it.
_MODULES = {
    "Comparison": "comparison",
    "Explanation": "explanation",
    "GenerationExplanation": "generation",
    "Guide": "guidance",
    "Plan": "plan",
    "Preprocess": "models.preprocess",
    "TextExplanation": "text",
    "VisionModel": "models",
    "audit": "audit",
    "compare": "compare",
    "explain": "explain",
    "explain_generation": "generation",
    "explain_text": "text",
    "list_methods": "methods",
    "list_models": "models",
    "list_objectives": "objectives",
    "load": "models",
    "load_text": "models.hugging_face",
    "load_vlm": "generation",
    "plan": "plan",
    "wrap": "models",
}


class _Package(ModuleType):
    """The package, in which `explain`, `compare` and `plan` are functions although modules have these names too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):  # as the import of a submodule sets it
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value = version("vitrail")
        elif name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            value = import_module(f"{__name__}.{name}")  # vitrail.errors, say, needs no import of its own
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
