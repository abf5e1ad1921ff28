"""`vitrail app`: the web page."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show
from vitrail.cli.serving import (
    admission_of,
    ended_by_signals,
    listening,
    open_page,
    say_where,
    serve_until_ended,
)

__all__ = ["app_command"]


def app_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model at the start: a name that `vitrail models` lists.")
    ] = "bestiary",
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to serve at; --auth is required where others can reach it.")
    ] = ("127.0.0.1"),
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port to serve at; 0: any free port.")
    ] = 7860,
    allow_models: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-models",
            metavar="NAME",
            help="Further model that visitors may choose; repeat for several. Default: none.",
        ),
    ] = None,
    vlm: Annotated[
        list[str] | None,
        typer.Option(
            "--vlm",
            metavar="NAME",
            help="Vision-language model of the view Words: a folder, or an id of the Hugging Face hub; repeat for "
            "several. Default: bestiary/captioner, loaded when it is first asked.",
        ),
    ] = None,
    vlm_dtype: Annotated[
        shared.Precision,
        typer.Option("--vlm-dtype", metavar="TYPE", help="Floating point type of the vision-language models."),
    ] = shared.Precision.float32,
    auth: Annotated[
        str | None,
        typer.Option(
            "--auth",
            metavar="USER:PASSWORD",
            envvar="VITRAIL_AUTH",
            help="User name and password for visitors. Default: none.",
        ),
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1000, help="Largest upload, in bytes.")] = 16_000_000,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1000, help="Largest image, in pixels.")] = 40_000_000,
    device: shared.Device = "cpu",
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Admit every user of this machine, without the token in the address.")
    ] = False,
    root_path: Annotated[
        str,
        typer.Option(
            "--root-path",
            metavar="PATH",
            help="Path at which a reverse proxy serves the page, as /vitrail. Default: none.",
        ),
    ] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="Further host name of the page; repeat for several. Default: none."
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
) -> None:
    """Serve the web page: choose an image and a class, and see the signed map; offline, on this machine only.

    The built-in model is ready at once; --model and --checkpoint name another. Only the weights of models that are
    named without a checkpoint are downloaded. Ctrl-C ends it.
    """
    try:
        admission = admission_of(host, auth, no_token=no_token)
        from vitrail.app.admission import check_root_path

        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # whichever library loads a model: no pickle runs code
        prefix, names = check_root_path(root_path), tuple(allow_host or ())
        with listening(host, port) as opened, ended_by_signals(), _own_folder():
            address = say_where(admission, opened, host, prefix)
            show(f"loading {model} …")
            from vitrail.app.pictures import Limits
            from vitrail.app.server import application
            from vitrail.app.service import Service
            from vitrail.app.session import ModelCache, vlms_of
            from vitrail.cli.image_run import load_named, named_device

            own: dict[str, Any] = {"num_classes": num_classes, "class_names": class_names}
            own["output"] = output_kind and str(output_kind)
            models = ModelCache(
                model,
                load=lambda name, weights: load_named(name, weights, device=device, **(own if name == model else {})),
                checkpoint=checkpoint,
                allowed=tuple(allow_models or ()),
            )
            vlms = vlms_of(vlm or (), device=named_device(device, str(vlm_dtype)), dtype=str(vlm_dtype))
            for name in vlm or ():
                show(f"loading {name} …")
                vlms.model(name)  # what is wrong with it is said here, and no visitor waits for it
            service = Service(models, Limits(max_bytes, max_pixels), vlms=vlms)
            server = application(service, host=host, admission=admission, root_path=prefix, hosts=names)
            show("ready")
            if not no_browser:
                open_page(admission, address)
            status = serve_until_ended(server, opened, proxied=bool(prefix or names))
        # Work under way ends with the process. Python's own way out would wait for it, or abort in PyTorch's threads.
        sys.stdout.flush()
        os._exit(status)
    except KeyboardInterrupt:  # while the model was loading
        show()
        show("ended")


FOLDER = "vitrail-app-"


@contextmanager
def _own_folder() -> Iterator[None]:
    """Keeps all temporary files in one folder, removed at the end; those of killed processes are removed first."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        number = left.name.removeprefix(FOLDER).partition("-")[0]
        if number.isdecimal() and not _runs(int(number)) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)  # another user's stays, as it should
    before = tempfile.tempdir
    folder = tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    """Returns whether a process of that number exists, whoever owns it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
