"""Hard and symbolic links in a tar file: the member whose content each one stands for.

Targets are looked up among the names in the tar file and nowhere else, so a link out of it leads
to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property

from ops.text import printable
from pipelines.inputs.source_files import PositionedFile
from pipelines.inputs.tar_headers import MAX_NAME, TarError, TarMember, tar_members

MAX_HOPS = 40  # from link to link, as in Linux
MAX_DEPTH = 100  # folders in a path; with MAX_HOPS, it bounds the time for one link


class TarLinks:
    """The links of one tar file; it is searched for them when the first one is asked for."""

    def __init__(self, file: PositionedFile) -> None:
        self._file = file

    def resolved(self, link: TarMember) -> TarMember:
        """The member `link` with the content it stands for, or with the defect that prevents it."""
        target = _normalized(link.target)
        path = None if target == _normalized(link.name) else self._followed(target)
        if path is None:
            return link._replace(defect="a link that leads to itself, or through too many others")
        content = self._contents.get(path)
        if content is None:
            shown = printable(target, 200)
            return link._replace(defect=f"a link to '{shown}', which is no file of the tar file")
        return content._replace(name=link.name)

    @cached_property
    def _links(self) -> list[tuple[str, str]]:
        """The path of each link and the path it leads to."""
        links = (member for member in self._members() if member.kind == "link")
        pairs = ((_normalized(link.name), _normalized(link.target)) for link in links)
        # tar stores a file that it is given twice as a link to itself.
        return [(name, target) for name, target in pairs if name != target]

    @cached_property
    def _targets(self) -> dict[str, str]:
        """The path that each link leads to next; of several links of one name the last one."""
        return dict(self._links)

    @cached_property
    def _contents(self) -> dict[str, TarMember]:
        """The files that links lead to in the end; of several files of one name the first one."""
        wanted = {self._followed(target) for _, target in self._links}
        found: dict[str, TarMember] = {}
        for member in self._members():
            if member.kind == "file" and (name := _normalized(member.name)) in wanted:
                found.setdefault(name, member)
        return found

    def _followed(self, path: str) -> str | None:
        """The path at the end of all links, of its folders as well; None if there is no end."""
        for _ in range(MAX_HOPS):
            if len(path) > MAX_NAME:
                return None
            parts = path.split("/", MAX_DEPTH)
            prefixes = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
            link = next((prefix for prefix in prefixes if prefix in self._targets), None)
            if link is None:
                return path
            path = _normalized(self._targets[link] + path[len(link) :])
        return None

    def _members(self) -> Iterator[TarMember]:
        try:
            yield from tar_members(self._file)
        except TarError:  # whoever lists the members reports it
            return


def _normalized(path: str) -> str:
    """A path without empty, `.` and, as far as it can be, `..` components."""
    return os.path.normpath(path).replace("//", "/") if path else ""
