"""Options of object stores (endpoint, region, ...) that are in force in this process."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence

from ops.config import ConfigError
from ops.text import printable

#: The environment variable that holds them as JSON, so that child processes and workers have them.
OPTIONS_VARIABLE = "SMALTI_STORAGE_OPTIONS"
#: Options, by obstore's names without aws_, that are never credentials.
PUBLIC_OPTIONS = frozenset(
    ("allow_http", "endpoint", "region", "skip_signature", "timeout",
     "virtual_hosted_style_request")
)  # fmt: skip


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """Storage options of words KEY=VALUE; raises ConfigError for others."""
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ConfigError(
                f"--storage-option {printable(key, 60)}: give KEY=VALUE, for instance "
                "endpoint=http://127.0.0.1:9000 or region=eu-west-1."
            )
        options[key.strip().lower()] = value
    return options


def without_credentials(words: Sequence[str]) -> tuple[str, ...]:
    """Of words KEY=VALUE those that may be written to a file: only options known to be no secret.

    An endpoint with a user or password in it is left out.
    """
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    return tuple(
        word
        for word, key, value in pairs
        if key.strip().lower().removeprefix("aws_") in PUBLIC_OPTIONS and "@" not in value
    )


@contextlib.contextmanager
def storage_options(options: Mapping[str, str]) -> Iterator[None]:
    """Use these options, besides those in force, for all stores; child processes inherit them."""
    before = os.environ.get(OPTIONS_VARIABLE)
    if options:
        os.environ[OPTIONS_VARIABLE] = json.dumps({**options_in_force(), **options})
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(OPTIONS_VARIABLE, None)
        else:
            os.environ[OPTIONS_VARIABLE] = before


def options_in_force() -> dict[str, str]:
    """The options by name, in lower case; those of a store that is used now."""
    found: dict[str, str] = json.loads(os.environ.get(OPTIONS_VARIABLE, "{}"))
    return found
