"""After any sequence of runs, kills, power cuts, changes and prunings a store equals a dict."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ops.files import file_hash
from pipelines.store import CodeStore, StoreError
from pipelines.store.recovery import listed_files, read_checksums
from tests.crashes.disk_doubles import installed
from tests.crashes.null_encode import BROKEN, encode_files, grid_of, make_tokenizer, noise
from tests.crashes.power_cuts import TEARS, CutDisk, PowerCut
from tests.encode_run import everything

KEYS = st.sampled_from(["a", "bb", "c", "dd"])
MODALITIES = st.sampled_from([b"one", b"two", b"three", BROKEN])
CHANGES = st.dictionaries(KEYS, MODALITIES, min_size=1)
VIEWS = 2
# By an image's key and view: the codes of each row that is shown.
Codes = dict[tuple[str, int], list[list[list[int]]]]


class StoreMachine(RuleBasedStateMachine):
    """`input` is the content of the folder, `model` what a finished store must show.

    Of a broken image, the codes of its last intact content are still shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.images = self.folder / "images"
        self.images.mkdir()
        self.tokenizer = make_tokenizer(self.folder / "tokenizer")
        self.top = self.folder / "top"
        self.top.mkdir()
        self.clock = 10**18
        self.input: dict[str, bytes] = {}
        self.twins: set[str] = set()  # keys that a second file has too
        self.model: Codes = {}
        self.ever: dict[str, set[bytes]] = {}
        self.maybe_tombstones: set[str] = set()
        self.maybe_newer: set[str] = set()  # keys whose newest content may or may not be shown
        self.lines: dict[tuple[str, int], dict] = {}  # the index lines of finished runs
        self.settled = True  # every planned task is committed
        self.still = False  # and no file has changed since

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def root(self) -> Path:
        return self.top / "codes.zarr"

    # --- the folder of images

    @rule(key=KEYS)
    def add_twin(self, key: str) -> None:
        """A second file with the same key; sorted after the first, it is never used."""
        self._write(self.images / f"{key} twin", b"twin")
        self.twins.add(key)

    @precondition(lambda self: self.settled and len(self.input) > 1)
    @rule(which=st.integers(0, 5))
    def remove(self, which: int) -> None:
        self.input.pop(sorted(self.input)[which % len(self.input)])

    def _put(self, contents: dict[str, bytes]) -> None:
        """Write new images, new contents of images, or the same contents again."""
        for key, content in contents.items():
            self._write(self.images / key, content)
            self.input[key] = content
            self.ever.setdefault(key, set()).add(content)

    def _write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.clock += 1
        self.still = False
        os.utime(path, ns=(self.clock, self.clock))

    # --- runs

    @rule(contents=CHANGES, by_content=st.booleans(), prune=st.booleans())
    def run_to_the_end(self, contents: dict[str, bytes], by_content: bool, prune: bool) -> None:
        self._put(contents)
        self._encode(by_content=by_content, prune=prune)
        self._finished(prune)
        self.still = not by_content

    @rule(
        contents=CHANGES,
        by_content=st.booleans(),
        prune=st.booleans(),
        operations=st.integers(0, 100),
        killed=st.booleans(),
        kept=st.integers(0, 2**16 - 1),
        tears=st.lists(st.sampled_from(TEARS), min_size=1, max_size=3),
    )
    def run_cut_short(
        self,
        contents: dict[str, bytes],
        by_content: bool,
        prune: bool,
        operations: int,
        killed: bool,
        kept: int,
        tears: list[str],
    ) -> None:
        """A kill leaves the store as it is; a power cut loses what was not flushed."""
        self._put(contents)
        disk = CutDisk(self.top, self.root, operations)
        with installed(disk), contextlib.suppress(PowerCut):
            self._encode(by_content=by_content, prune=prune)
            self._finished(prune)
            return
        self.settled = self.still = False
        if prune:
            self.maybe_tombstones |= {key for key, _ in self.model} - self.input.keys()
        self.maybe_newer |= self.input.keys()
        if not killed:
            shutil.rmtree(self.top)
            disk.moments[-1].rebuild(
                self.top, lambda i: bool(kept >> i % 16 & 1), lambda i: tears[i % len(tears)]
            )
        disk.close()
        self._check_unfinished()

    @precondition(lambda self: self.still and self.input)
    @rule()
    def run_again_for_nothing(self) -> None:
        before = everything(self.root)
        self._encode(by_content=False, prune=False)
        assert everything(self.root) == before

    def _encode(self, **flags: bool) -> None:
        files = {key: [self.images / key] for key in self.input}
        for key in self.twins & files.keys():
            files[key].append(self.images / f"{key} twin")
        assert encode_files(self.root, self.tokenizer, files, **flags) == 0

    # --- what must hold

    def _finished(self, prune: bool) -> None:
        self.settled = True
        shown = self._shown()
        lost = self.maybe_tombstones - {key for key, _ in shown} - self.input.keys()
        if prune:
            lost = {key for key, _ in self.model} - self.input.keys()
        self.model = {view: codes for view, codes in self.model.items() if view[0] not in lost}
        for key, content in self.input.items():
            if content != BROKEN:
                self.model |= views_of(key, content)
            elif key in self.maybe_newer:
                self.model |= {view: codes for view, codes in shown.items() if view[0] == key}
        self.maybe_tombstones.clear()
        self.maybe_newer.clear()
        assert shown == self.model
        self._check_codes(shown)
        self._check_lines()
        left = {name for name in everything(self.root) if "_staging" in name or "partial" in name}
        assert left == {"_staging/driver.lock"}
        assert checksums_agree(self.root)

    def _check_unfinished(self) -> None:
        """Check that no row of a finished run is lost, hidden, repeated or wrong."""
        try:
            shown = self._shown()
        except StoreError:
            assert not self.model, "a store existed and cannot be read any more"
            return
        assert {view for view in self.model if view[0] not in self.maybe_tombstones} <= shown.keys()
        self._check_codes(shown)
        self._check_lines()

    def _check_codes(self, shown: Codes) -> None:
        """Check that all codes shown of an image are those of a content it has had.

        An unfinished store may show some views of a new image, newer views of a changed one, or two
        rows of one that changed twice while the row between them is only planned.
        """
        for (key, view), found in shown.items():
            contents = [views_of(key, content)[key, view] for content in self.ever[key]]
            assert all([codes] in contents for codes in found)

    def _check_lines(self) -> None:
        """Check that every index line of earlier finished runs is unchanged: rows never move."""
        lines = CodeStore.open(self.root).index.to_pylist()
        found = {(line["grid"], line["row"]): line for line in lines}
        assert len(found) == len(lines)
        assert {place: found.get(place) for place in self.lines} == self.lines
        if self.settled:
            self.lines = found

    def _shown(self) -> Codes:
        """The codes of every row that a reader shows; one for each view in a finished store."""
        shown: Codes = {}
        for row in CodeStore.open(self.root):
            shown.setdefault((row["key"], row["view"]), []).append(row["codes"].tolist())
        return shown


def views_of(key: str, content: bytes) -> Codes:
    """The codes that a reader must show of an image."""
    return {(key, v): [noise(key, content, v, grid_of(key)).tolist()] for v in range(VIEWS)}


def checksums_agree(root: Path) -> bool:
    """Whether the list of checksums has every listed file with its right hash."""
    names = {path.relative_to(root).as_posix() for path in listed_files(root)}
    return read_checksums(root) == {name: file_hash(root / name) for name in names}


def check(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            deadline=None,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            # Shrinking takes minutes, and a dozen steps are short enough to read.
            phases=[Phase.generate],
        ),
    )


def test_store_equals_a_dictionary_after_any_runs() -> None:
    check(examples=40, steps=9)


@pytest.mark.slow
def test_store_equals_a_dictionary_after_many_runs() -> None:
    check(examples=1000, steps=30)
