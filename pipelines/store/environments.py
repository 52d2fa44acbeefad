"""What the rows of a task were made with: devices, precision and versions, by rows.

The worker that makes a row knows it, and commits it with the row. So codes that were rounded
differently can be found, however a run was distributed, interrupted and continued.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

KEY = "environments"  # in the description of an index part
#: Fields that a summary names, in this order; others are versions, named where they differ.
NAMED = ("device_name", "precision", "torch")


class MadeIn(NamedTuple):
    """Rows of a task that were made in one environment."""

    environment: str  # a text from environment_text()
    rows: tuple[tuple[int, int], ...]  # places in the task: from, to before


def environment_text(environment: Mapping[str, str]) -> str:
    """An environment as one text, equal for equal ones."""
    return json.dumps(dict(environment), sort_keys=True)


def grouped_environments(made_in: Sequence[tuple[str, ...]]) -> list[MadeIn]:
    """The environments of rows, given for each place; a row may have several or none."""
    runs: dict[str, list[list[int]]] = {}
    for place, texts in enumerate(made_in):
        for text in texts:
            found = runs.setdefault(text, [])
            if found and found[-1][1] == place:
                found[-1][1] = place + 1
            else:
                found.append([place, place + 1])
    return [MadeIn(text, tuple((a, b) for a, b in runs[text])) for text in sorted(runs)]


def made_in_of(environments: Iterable[MadeIn], num_rows: int) -> list[tuple[str, ...]]:
    """The reverse of grouped_environments."""
    made_in: list[tuple[str, ...]] = [()] * num_rows
    for text, rows in environments:
        for first, end in rows:
            for place in range(first, end):
                made_in[place] = (*made_in[place], text)
    return made_in


def described_environments(environments: Sequence[MadeIn]) -> dict[str, Any]:
    """The entry of an index part's description; none without environments."""
    entries = [
        {"environment": json.loads(text), "rows": [list(run) for run in rows]}
        for text, rows in environments
    ]
    return {KEY: entries} if entries else {}


def parse_environments(description: Mapping[str, Any], num_rows: int) -> list[MadeIn]:
    """The environments of an index part's description.

    Raises KeyError, TypeError or ValueError where they are not as described_environments has them.
    """
    found = []
    for entry in description.get(KEY, []):
        environment = entry["environment"]
        if not all(isinstance(value, str) for value in environment.values()):
            raise ValueError("an environment has other values than texts")
        rows = tuple((first, end) for first, end in entry["rows"])
        for first, end in rows:
            if not (type(first) is type(end) is int and 0 <= first < end <= num_rows):
                raise ValueError(f"an environment has the rows {first} to {end}")
        found.append(MadeIn(environment_text(environment), rows))
    return found


def summarise_environments(tasks: Iterable[Sequence[MadeIn]], noun: str = "rows") -> list[str]:
    """A line for each environment, with its number of rows in all tasks; the most rows first."""
    counts: Counter[str] = Counter()
    for environments in tasks:
        for text, rows in environments:
            counts[text] += sum(end - first for first, end in rows)
    return [f"{count:,} {noun}: {_words(json.loads(text))}" for text, count in counts.most_common()]


def _words(environment: Mapping[str, str]) -> str:
    """An environment for people: the named fields, then the others with their names."""
    fields = [environment[name] for name in NAMED if name in environment]
    fields = [f"torch {value}" if value == environment.get("torch") else value for value in fields]
    more = sorted(environment.keys() - set(NAMED) - {"device"})
    return ", ".join([*fields, *(f"{name} {environment[name]}" for name in more)])
