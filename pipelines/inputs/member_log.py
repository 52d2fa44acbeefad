"""What an archive holds apart from the images that are taken from it, in bounded memory."""

from __future__ import annotations

from collections import Counter

from ops.text import printable

NAMED = 1000  # members that are named with their reasons; more are counted
MOST_KINDS = 30  # kinds of files that are counted one by one


class MemberLog:
    """Members of an archive that are not taken: each named with the reason, or counted by kind."""

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []  # (name, reason)
        self._more = 0  # skipped members that are not named
        self._last = ""  # the last of those, with its reason
        self._unused: Counter[str] = Counter()  # by kind
        self._examples: dict[str, str] = {}
        self._notes: list[str] = []

    def skip(self, name: str, reason: str) -> None:
        """Record a member that cannot be used, or is hidden."""
        if len(self.skipped) < NAMED:
            self.skipped.append((name, reason))
        else:
            self._more += 1
            self._last = f"'{printable(name, 200)}': {reason}"

    def count(self, kind: str, example: str | None = None) -> None:
        """Count a further file, such as a caption, by its kind."""
        if kind not in self._unused and len(self._unused) >= MOST_KINDS:
            kind = "others"
        self._unused[kind] += 1
        if example is not None:
            self._examples.setdefault(kind, example)

    def note(self, line: str) -> None:
        """Record something else that the user should know."""
        self._notes.append(line)

    def lines(self) -> list[str]:
        """The counts and notes."""
        lines = [f"{self._more:,} more skipped, the last one {self._last}"] if self._more else []
        total = sum(self._unused.values())
        if total:
            kinds = ", ".join(map(self._described, sorted(self._unused)))
            lines.append(f"{total:,} further file{'s' * (total > 1)} not used ({kinds})")
        return lines + self._notes

    def _described(self, kind: str) -> str:
        example = self._examples.get(kind)
        named = "" if example is None else f", such as '{printable(example, 200)}'"
        return f"{self._unused[kind]:,} {kind}{named}"
