"""?"""

from pipelines.reports.sections import TIMINGS, sections_of

__all__ = [
    "TIMINGS",
    "sections_of",
]
