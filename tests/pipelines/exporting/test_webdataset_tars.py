"""Tars by WebDataset's writer: the same bytes whenever they are written, by anybody."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.exporting.webdataset_tars import npy_bytes, write_tar
from tests.conftest import examples

FIELDS = st.dictionaries(st.sampled_from(["png", "npy", "json", "depth.npy"]), st.binary())


def tar_by_hand(samples: list[dict[str, str | bytes]]) -> bytes:
    """The tar as versions before WebDataset's writer made it: ustar, no time, no owner."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix in sorted(sample.keys() - {"__key__"}):
                member = tarfile.TarInfo(f"{sample['__key__']}.{suffix}")
                member.size = len(sample[suffix])
                tar.addfile(member, io.BytesIO(sample[suffix]))
    return file.getvalue()


@settings(max_examples=examples(20))
@given(st.lists(FIELDS, max_size=4))
def test_bytes_are_those_of_earlier_versions(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, bytes]]
) -> None:
    samples = [{"__key__": f"sample-{k:05d}", **fields} for k, fields in enumerate(found)]
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, samples)
    assert path.read_bytes() == tar_by_hand(samples)


def test_a_tar_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def samples() -> Iterator[dict[str, Any]]:
        yield {"__key__": "a", "json": b"{}"}
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_tar(tmp_path / "a.tar", samples())
    assert not list(tmp_path.iterdir())


def test_arrays_are_read_by_numpy(tmp_path: Path) -> None:
    codes = np.arange(12, dtype="<u2").reshape(3, 4)
    (tmp_path / "a.npy").write_bytes(npy_bytes(codes))
    assert (np.load(tmp_path / "a.npy", mmap_mode="r") == codes).all()
