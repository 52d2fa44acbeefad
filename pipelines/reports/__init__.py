"""A folder as one HTML page with all images inside: a run, a code store, samples, or several.

sections.py reads a folder and builds sections of texts, tables and figures, demo_sections.py those
of the demo. samples.py reads the images of a samples folder, originals.py those that a store's
codes were made of. plots.py makes images and plots into data URIs, and page.py renders the template
page.html. Nothing is written here: pipelines/report.py writes the page. Read sections.py first.
"""

from pipelines.reports.demo_sections import DemoFolder
from pipelines.reports.page import render_page

__all__ = [
    "DemoFolder",
    "render_page",
]
