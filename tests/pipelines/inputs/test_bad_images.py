import json

from pipelines.inputs.bad_images import Ledger


def keys(path):
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


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
