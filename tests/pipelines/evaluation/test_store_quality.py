"""evaluate store: usage, drift, duplicates, flat images, classes and the rarest rows."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ops.images import decode_image
from pipelines import evaluate
from pipelines.evaluation import store_rows
from pipelines.evaluation.code_drift import mutual_information
from pipelines.evaluation.duplicate_rows import (
    SHARED,
    RowLines,
    Signatures,
    exact_duplicates,
    near_duplicates,
    shared_codes,
)
from pipelines.evaluation.store_quality import evaluate_store, row_entropies
from pipelines.evaluation.store_rows import row_batches
from pipelines.flags import EvaluateFlags
from pipelines.store import CodeStore
from tests.conftest import make_store

SIZE, ROWS, SIDE = 64, 40, 6


def entropy_of(codes: np.ndarray) -> float:
    counts = np.array(list(Counter(codes.ravel().tolist()).values()))
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def flags_of(store: Path, out: Path) -> EvaluateFlags:
    return EvaluateFlags(kind="store", model=str(store), out=out)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """Codes of images that are unlike, but for four: row 30 equals row 5, row 31 nearly; rows 20
    and 21 are flat. Code 63 occurs in row 12 alone."""
    random = np.random.default_rng(0)
    found = random.integers(0, SIZE - 1, (ROWS, SIDE, SIDE))
    found[30] = found[5]
    found[31] = found[5].ravel()[::-1].reshape(SIDE, SIDE)
    found[31, 0, 0] = found[31, 0, 1]
    found[20], found[21, :, :] = 3, 4
    found[21, 0, 0] = 5
    found[12, :3] = SIZE - 1
    return found


@pytest.fixture(scope="module")
def store(codes: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, and rows without one; row 7 failed."""
    labels = [row % 3 if row % 3 < 2 else None for row in range(ROWS)]
    path = tmp_path_factory.mktemp("store") / "codes.zarr"
    return make_store(path, codes, codebook_size=SIZE, labels=labels, failed=(7,), rows_per_task=8)


@pytest.fixture(params=[store_rows.CODES_AT_ONCE, 3 * SIDE * SIDE])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole shards at once, or three rows."""
    monkeypatch.setattr(store_rows, "CODES_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
def test_usage_is_that_of_all_codes_at_once(store, codes, tmp_path):
    values = evaluate_store(flags_of(store, tmp_path / "m.json")).values()
    kept = np.delete(codes, 7, axis=0)
    assert (values["rows"], values["failed_rows"]) == (ROWS - 1, 1)
    assert values["codes_used"] == len(np.unique(kept))
    assert values["entropy"] == pytest.approx(entropy_of(kept))
    assert [line["rows"] for line in values["shards"]] == [7, 8, 8, 8, 8]
    assert values["shards"][2]["entropy"] == pytest.approx(entropy_of(codes[16:24]))
    assert [line["rows"] for line in values["classes"]] == [14, 12]  # row 7 has class 1
    assert values["classes"][0]["entropy"] == pytest.approx(entropy_of(codes[::3]))
    assert values["rows_without_class"] == 13
    assert values["flat_images"] == pytest.approx(2 / 39)
    assert values["rarest_rows"][0]["key"] == "0012.jpg"
    shares = np.bincount(kept.ravel(), minlength=SIZE) / kept.size
    bits = -np.log2(shares[codes[12]]).mean()
    assert values["rarest_rows"][0]["bits_per_code"] == pytest.approx(bits)
    assert [line["key"] for line in values["exact_duplicates_listed"]] == ["0030.jpg"]
    (near,) = values["near_duplicates_listed"]
    assert (near["key"], near["like"]) == ("0031.jpg", "0005.jpg")
    assert near["shared"] == pytest.approx(35 / 36)


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(tmp_path):
    random = np.random.default_rng(1)
    codes = random.integers(0, SIZE, (60, 1, 40))
    for row in range(30, 60):  # like an earlier row in all but 0 to 9 codes
        codes[row] = codes[row - 30]
        codes[row, 0, : (row - 30) % 10] = random.integers(0, SIZE, (row - 30) % 10)
    path = make_store(tmp_path / "s.zarr", codes, codebook_size=SIZE)
    store = CodeStore.open(path)
    lines, signatures = RowLines(store), Signatures(seed=0)
    for batch in row_batches(store):
        signatures.update(batch)
    exact = exact_duplicates(lines)
    assert {pair.position for pair in exact} == {
        row for row in range(30, 60) if (codes[row] == codes[row - 30]).all()
    }
    copies = np.isin(np.arange(60), [pair.position for pair in exact])
    found = near_duplicates(lines, signatures.candidates(lines.grid_numbers, copies))
    rest = [
        (row, other)
        for row in range(60)
        for other in range(row)
        if not copies[row] and not copies[other]
        and shared_codes(codes[row].ravel(), codes[other].ravel()) >= SHARED
    ]  # fmt: skip
    assert len(rest) > 5
    assert {(pair.position, pair.earlier) for pair in found} == set(rest)


def test_views_of_one_image_are_no_duplicates(tmp_path):
    codes = np.random.default_rng(0).integers(0, 16, (4, 4, 4))
    codes[1:] = codes[0]
    columns = {"key": ["a.jpg", "a.jpg", "b.jpg", "b.jpg"], "view": [0, 1, 0, 1]}
    path = make_store(tmp_path / "s.zarr", codes, columns=columns)
    values = evaluate_store(flags_of(path, tmp_path / "m.json")).values()
    assert values["exact_duplicates"] == 2
    assert values["near_duplicates"] == 0


@pytest.mark.parametrize("drifts", [True, False])
def test_drift_differs_from_chance(tmp_path, drifts):
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (48, 4, 4))
    if drifts:
        codes[32:] = random.integers(6, 16, (16, 4, 4))
    path = make_store(tmp_path / "s.zarr", codes, rows_per_task=16)
    values = evaluate_store(flags_of(path, tmp_path / "m.json")).values()
    counts = np.stack([np.bincount(part.ravel(), minlength=16) for part in np.split(codes, 3)])
    entropies = [entropy_of(part) for part in np.split(codes, 3)]
    assert values["drift"] == pytest.approx(entropy_of(codes) - np.mean(entropies))
    assert mutual_information(counts) == pytest.approx(values["drift"])
    assert (values["drift"] > 3 * values["drift_by_chance"]) == drifts
    assert (values["drift_p_value"] == pytest.approx(0.05)) == drifts


def test_entropies_of_rows_are_those_of_a_plain_loop():
    codes = np.random.default_rng(0).integers(0, 5, (7, 12))
    codes[3] = 2
    np.testing.assert_allclose(row_entropies(codes), [entropy_of(row) for row in codes], atol=1e-12)


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(store_rows, "CODES_AT_ONCE", 1 << 12)
    peaks = []
    for rows in (32, 256):
        codes = np.random.default_rng(0).integers(0, 16, (rows, 32, 32))
        path = make_store(tmp_path / f"{rows}.zarr", codes, rows_per_task=32)
        flags = flags_of(path, tmp_path / "m.json")
        evaluate_store(flags)  # imports and caches
        tracemalloc.start()
        evaluate_store(flags)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 224 * 32 * 32  # half of the further rows as they are stored


def test_the_command_decodes_the_rarest(rule_store, tmp_path, capsys):
    out, shown = tmp_path / "m.json", tmp_path / "rarest.png"
    words = ["store", rule_store, "--out", out, "--spot-decodes", shown]
    assert evaluate.main([*map(str, words)]) == 0
    found = json.loads(out.read_text())
    assert found["metrics"]["rows"] == 24
    assert {line["name"] for line in found["values"]} >= {"entropy", "exact_duplicates"}
    assert decode_image(shown.read_bytes()).shape == (4 * 258 - 2, 4 * 258 - 2, 3)
    assert "flat_images" in capsys.readouterr().out
