"""What generate --help says of the priors that are bundled and of those that are named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ops.config import UserError
from ops.object_paths import scheme_of
from ops.text import printable
from pipelines.generation.defaults import class_names
from pipelines.generation.stage_sizes import composition_side, low_res_ratio
from prior import PriorDescription, bundled_priors, describe_prior

FLAGS = ("--prior", "--upscale")
MOST_CLASSES = 20  # named


def prior_notes(words: Sequence[str]) -> str:
    """A line for each bundled prior and each that the words of a command line name, with its
    conditions and recommended settings, from config.json alone."""
    names = dict.fromkeys([*bundled_priors(), *_named(words)])
    return "\n".join(f"{printable(name, 200)}: {_note(name)}." for name in names)


def _named(words: Sequence[str]) -> Iterator[str]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        named = value if equals else following
        if flag in FLAGS and named and scheme_of(named) is None:  # help asks no object store
            yield named


def _note(name: str) -> str:
    try:
        prior = describe_prior(name)
    except UserError as error:
        return printable(str(error).rstrip("."), 400)
    return f"{_takes(prior)}; recommended settings: {_settings(prior)}"


def _takes(prior: PriorDescription) -> str:
    side = composition_side(prior)
    conditions = ", ".join(part.name for part in prior.conditions.parts)
    about = [f"trained on {side}x{side} pixels with {conditions}"]
    names, ratio = class_names(prior), low_res_ratio(prior)
    if names:
        more = ", ..." if len(names) > MOST_CLASSES else ""
        about.append(f"labels {', '.join(printable(n, 40) for n in names[:MOST_CLASSES])}{more}")
    if ratio:
        about.append(f"enlarges {ratio} times")
    return "; ".join(about)


def _settings(prior: PriorDescription) -> str:
    found = [f"--{name.replace('_', '-')} {value}" for name, value in prior.recommended.items()]
    return ", ".join(found) or "none"
