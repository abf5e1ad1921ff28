"""Runs the notebooks from the scripts beside them and stores what they show.

A script of cells (`# %%`) is what is written and reviewed; the notebook is made of it and never edited.

    python docs/notebooks/execute.py              # all of them
    python docs/notebooks/execute.py clip.py
"""

import base64
import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
WIDEST, QUALITY = 900, 85  # of a stored picture: pixels, and how well its colours are kept
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def scripts() -> list[Path]:
    return sorted(path for path in HERE.glob("*.py") if path.name != Path(__file__).name)


def from_script(script: Path) -> NotebookNode:
    """The notebook of a script, not yet run; equal scripts give equal notebooks."""
    notebook = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = NotebookNode()
    return notebook


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run all cells in an empty folder; raises `CellExecutionError` where one fails."""
    with TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of the run, which differ from one to the next
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # names this machine
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data = NotebookNode({"image/jpeg": smaller(output.data["image/png"])})
    return notebook


def smaller(png: str) -> str:
    """A picture in base64 as a JPEG no wider than `WIDEST`, which keeps red and blue; a small palette would not."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((WIDEST, 4 * WIDEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    for script in [HERE / name for name in sys.argv[1:]] or scripts():
        nbformat.write(execute(from_script(script)), script.with_suffix(".ipynb"))
        sys.stdout.write(f"{script.name}\n")


if __name__ == "__main__":
    main()
