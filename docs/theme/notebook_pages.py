"""Shows the executed notebooks as pages of the site, just as they are stored: nothing is run while the site is built.

MkDocs calls these functions by name. Pictures travel inside the page, so that a page is one file.
"""

from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


class NotebookFile(File):
    """A notebook, which is a page and not a file to copy."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Tell MkDocs that notebooks are pages."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            files.append(NotebookFile(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """The Markdown of a notebook; None for pages that are Markdown already."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    notebook = nbformat.reads(page.file.content_string, as_version=4)
    return "\n\n".join(part for cell in notebook.cells for part in _parts(cell))


def _parts(cell: Any) -> list[str]:
    if cell.cell_type == "markdown":
        return [cell.source]
    if cell.cell_type != "code" or "hide" in cell.metadata.get("tags", []):
        return []
    return [f"```python\n{cell.source}\n```", *(_shown(output) for output in cell.outputs)]


def _shown(output: Any) -> str:
    if output.output_type == "stream":
        return _text(output.text)
    if output.output_type == "error":
        raise ValueError(f"a stored notebook holds an error: {output.ename}: {output.evalue}")
    picture = output.data.get("image/jpeg")
    if picture is not None:
        address = f"data:image/jpeg;base64,{''.join(picture.split())}"
        return f'<img class="output" alt="What the lines above draw" src="{address}">'
    return _text(output.data.get("text/plain", ""))


def _text(text: str) -> str:
    return f"```{{ .text .output }}\n{text.rstrip()}\n```"
