import json
import os

import pytest

from ops.files import NotRegularError
from pipelines.inputs.bad_images import Ledger


def keys(path):
    return [json.loads(line)["key"] for line in path.read_text().split("\n")[:-1]]


def test_key_is_listed_once_over_all_attempts(tmp_path):
    path = tmp_path / "bad.jsonl"
    for _ in range(2):
        ledger = Ledger(path)
        ledger.add("a.jpg", "empty")
        ledger.add("käfer.jpg", "cut short")
        ledger.add("a.jpg", "empty")
    assert keys(path) == ["a.jpg", "käfer.jpg"]


def test_run_without_bad_images_leaves_no_file(tmp_path):
    Ledger(tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


def test_line_truncated_by_a_kill_is_replaced(tmp_path):
    path = tmp_path / "bad.jsonl"
    Ledger(path).add("a.jpg", "empty")
    with open(path, "a") as file:
        file.write('{"key": "b.jpg", "rea')
    Ledger(path).add("b.jpg", "empty")
    assert keys(path) == ["a.jpg", "b.jpg"]


def test_lines_that_are_none_are_removed_and_any_key_is_kept(tmp_path):
    path = tmp_path / "bad.jsonl"
    odd = ["a\u2028b.jpg", "c\x85d.jpg", "e\nf.jpg", "\udcff.jpg"]
    for key in odd:
        Ledger(path).add(key, "empty")
    whole = path.read_bytes()
    for line in (b'{"key": "k\xc3', b"{}", b"[]", b'{"key": 1}', b"\xff", b"[" * 10**5, b"{x}"):
        path.write_bytes(whole + line)
        ledger = Ledger(path)
        assert path.read_bytes() == whole
        for key in odd:
            ledger.add(key, "empty")
    assert keys(path) == odd


def test_ledger_that_is_a_pipe_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "bad.jsonl")
    with pytest.raises(NotRegularError):
        Ledger(tmp_path / "bad.jsonl")
