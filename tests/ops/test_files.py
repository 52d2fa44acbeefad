import errno
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from ops.disk import Disk
from ops.files import (
    LockedError,
    NotRegularError,
    atomic_path,
    exclusive_lock,
    file_hash,
    json_hash,
    link_once,
    open_regular,
    write_json,
    write_temporary,
)


def fail_in_the_middle(path):
    with suppress(ZeroDivisionError), atomic_path(path) as partial:
        partial.write_text("half")
        partial.write_text(str(1 / 0))


def test_regular_files_are_opened_and_nothing_else_blocks_or_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")  # without a writer
    (tmp_path / "link to pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for path in ("pipe", "link to pipe", "socket", "", "/dev/zero"):
        with pytest.raises(NotRegularError, match="regular file is needed"):
            open_regular(tmp_path / path)
    for path in ("missing", "nul\0", "\ud800"):
        with pytest.raises(FileNotFoundError):
            open_regular(tmp_path / path)


def test_a_file_appears_only_if_its_body_succeeds(tmp_path):
    path = tmp_path / "a" / "file"
    fail_in_the_middle(path)
    assert list((tmp_path / "a").iterdir()) == []
    with atomic_path(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list((tmp_path / "a").iterdir()) == [path]


def test_an_old_file_stays_if_writing_the_new_one_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    fail_in_the_middle(path)
    assert path.read_text() == "old"


def test_a_folder_replaces_an_older_one(tmp_path):
    path = tmp_path / "folder"
    for text in ("old", "new"):
        with atomic_path(path) as partial:
            (partial / "deep").mkdir(parents=True)
            (partial / "deep" / text).write_text(text)
    assert [p.name for p in (path / "deep").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_during_writing_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import os, signal\nfrom pathlib import Path\nfrom ops.files import atomic_path\n"
        f"with atomic_path(Path({str(path)!r})) as partial:\n"
        "    partial.write_text('new')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_json_is_written_readably_and_hashed_by_content(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Käfer", "size": 1})
    text = (tmp_path / "a.json").read_text()
    assert "Käfer" in text
    assert json.loads(text) == {"name": "Käfer", "size": 1}
    assert json_hash({"a": 1, "b": 2}) == json_hash({"b": 2, "a": 1})
    assert json_hash({"a": 1}) != json_hash({"a": 2})


def test_file_hash_is_the_sha256_of_its_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_hash(tmp_path / "f").startswith("ba7816bf8f01cfea")


def test_a_lock_is_held_by_one_process_and_released_when_it_dies(tmp_path):
    lock = tmp_path / ".lock"
    script = (
        "import sys\nfrom pathlib import Path\nfrom ops.files import exclusive_lock\n"
        f"with exclusive_lock(Path({str(lock)!r})):\n    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match="held by another process"), exclusive_lock(lock):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with exclusive_lock(lock):
        pass


def test_a_link_is_made_once_and_later_ones_change_nothing(tmp_path):
    path = tmp_path / "part"
    assert link_once(write_temporary(path, b"first"), path)
    assert link_once(write_temporary(path, b"first"), path)
    assert not link_once(write_temporary(path, b"other"), path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_cannot_be_made_is_an_error(tmp_path):
    path = tmp_path / "missing" / "part"
    with pytest.raises(FileNotFoundError):
        link_once(write_temporary(tmp_path / "part", b"data"), path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_by_a_full_disk_is_removed(tmp_path, monkeypatch):
    class FullDisk(Disk):
        def fsync(self, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ops.disk.disk", FullDisk())
    with pytest.raises(OSError, match="No space"):
        write_temporary(tmp_path / "part", b"data")
    assert list(tmp_path.iterdir()) == []
