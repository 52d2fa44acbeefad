"""A report as one HTML page, rendered from its sections by the template page.html."""

from __future__ import annotations

from pathlib import Path

import jinja2

from ops.paths import AnyPath, ObjectPath
from ops.text import printable
from pipelines.reports.demo_sections import DemoFolder, demo_sections
from pipelines.reports.sections import sections_of

LIMIT = 20_000  # characters of one text
TEMPLATES = Path(__file__).parent


def render_page(path: AnyPath, by_content: bool = False) -> str:
    """The HTML page about the folder `path`; raises ReportError if there is nothing to report.

    `by_content`: see Originals.
    """
    if not isinstance(path, ObjectPath) and DemoFolder(path).settings.is_file():
        sections = demo_sections(path, by_content)
    else:
        sections = sections_of(path, by_content)
    name = path.name if isinstance(path, ObjectPath) else path.resolve().name
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
    )
    return templates.get_template("page.html").render(
        title=f"Smalti: {name}", subtitle=f"Made from {path}", sections=sections
    )


def _shown(value: object) -> object:
    """Text without characters that hide or reorder it, which autoescape leaves; images as they
    are."""
    return value if str(value).startswith("data:image/") else printable(value, LIMIT)
