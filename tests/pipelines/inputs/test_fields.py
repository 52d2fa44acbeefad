"""What samples and tables say of their images: classes, captions and other columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.config import ConfigError
from pipelines.inputs.carried import Carry, parse_carry
from pipelines.inputs.class_names import feature_names
from pipelines.inputs.fields import Fields
from pipelines.inputs.listing import list_input
from pipelines.inputs.patterns import InputError
from pipelines.inputs.reading import read_bytes
from tests.pipelines.inputs.test_archives import PNG, write_table, write_tar

ALL = Fields(carry=Carry(None))


def said(path: Path, labels: str = "field", fields: Fields = ALL) -> dict[str, tuple]:
    """Class, caption and other columns by key."""
    return {
        e.key: (e.label_name, e.caption, json.loads(e.carried or "{}"))
        for e in list_input(path, labels, fields).entries
    }


def test_captions_and_json_of_a_sample_belong_to_its_image(tmp_path: Path) -> None:
    about = {"caption": "of json", "label": 3, "score": 0.5, "ok": True, "tags": ["a"], "n": None}
    tar = write_tar(
        tmp_path / "a.tar",
        {
            "1.txt": b" a cat \n", "1.jpg": PNG, "1.json": json.dumps(about).encode(),
            "2.jpg": PNG, "2.json": b'{"cls": "dog", "nan": NaN, "big": 99999999999999999999}',
            "3.cls": b"7", "3.json": b'{"label": "other"}', "3.jpg": PNG, "3.caption": b"three",
            "4.jpg": PNG,
        },
    )  # fmt: skip
    assert said(tar) == {
        "1.jpg": ("3", "a cat", {"score": 0.5, "ok": True}),
        "2.jpg": ("dog", None, {}),
        "3.jpg": ("7", "three", {}),
        "4.jpg": (None, None, {}),
    }
    assert said(tar, "none")["1.jpg"][2] == {"label": 3, "score": 0.5, "ok": True}
    some = Fields(carry=parse_carry("score, missing"))
    assert said(tar, "field", some)["1.jpg"] == ("3", None, {"score": 0.5})
    named = Fields(label_column="score", carry=parse_carry("all"))
    assert said(tar, "field", named)["3.jpg"][0] is None  # only the column that is asked for
    listing = list_input(tar)
    assert listing.unused[0][1].startswith("6 further files not used (1 .caption, 1 .cls, classes")


def test_fields_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        {
            "1.jpg": PNG, "1.json": b"[1]", "2.jpg": PNG, "2.json": b"{", "3.jpg": PNG,
            "3.txt": b"\xff\xfe", "4.jpg": PNG, "4.txt": b"x" * 300_000, "5.jpg": PNG,
            "5.json": b"[" * 100_000, "6.jpg": PNG, "6.json": b'{"a": "\\ud800"}',
            "7.jpg": PNG, "7.json": b'{"a": "' + b"y" * 70_000 + b'", "b": 1}',
        },
    )  # fmt: skip
    listing = list_input(tar, fields=ALL)
    assert len(listing.table) == 7
    reasons = dict(listing.skipped)
    assert reasons["1.json"] == "no object"
    assert "no JSON" in reasons["2.json"]
    assert reasons["3.txt"] == "a .txt that is not UTF-8"
    assert "300,000 bytes" in reasons["4.txt"]
    assert "nested too deeply" in reasons["5.json"]
    assert "surrogate" in reasons["6.json"]
    assert said(tar, "none")["7.jpg"][2] == {"b": 1}  # a text that is too long is left out


def hub_table(path: Path, **columns: list) -> Path:
    """A table whose metadata say of `label` and `fine` that they are classes."""
    table = pa.table(
        {"image": pa.array([{"bytes": PNG}] * 4, pa.struct([("bytes", pa.binary())])), **columns}
    )
    feature = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    about = {"info": {"features": {"label": feature, "fine": feature}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    return path


def test_class_features_of_a_hub_give_the_names_of_classes(tmp_path: Path) -> None:
    columns: dict[str, list] = {
        "label": [1, 0, -1, 2], "fine": [0, 1, None, 0], "caption": ["a", "", None, " d "],
        "score": [1.5, None, float("nan"), 2], "flag": [True, None, False, True],
        "tags": [["x"]] * 4, "more": [{"a": 1}] * 4,
    }  # fmt: skip
    found = said(hub_table(tmp_path / "a.parquet", **columns))
    assert list(found.values()) == [
        ("dog", "a", {"fine": "cat", "score": 1.5, "flag": True}),
        ("cat", None, {"fine": "dog"}),
        (None, None, {"flag": False}),
        (None, "d", {"fine": "cat", "score": 2.0, "flag": True}),
    ]
    fine = said(tmp_path / "a.parquet", "field", Fields(label_column="fine"))
    assert [label for label, _, _ in fine.values()] == ["cat", "dog", None, "cat"]


@pytest.mark.parametrize(
    "about",
    [
        b"", b"[]", b"{}", b'{"info": 3}', b'{"info": {"features": {"label": []}}}', b"\xff",
        b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', b"[" * 100_000,
        b'{"info": {"features": {"label": {"_type": "Value", "names": ["a"]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab\\n"}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"a": 1}}}}}',
    ],
)  # fmt: skip
def test_other_metadata_of_a_hub_give_no_names(about: bytes) -> None:
    assert feature_names({b"huggingface": about}, "label") == []
    assert feature_names(None, "label") == []


def test_columns_of_images_can_be_named(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    columns: dict[str, Any] = {"one": [b"1", b"2"], "two": [b"3", b"4"], "x@y": [b"5", b"6"]}
    pq.write_table(pa.table(columns), table)
    with pytest.raises(InputError, match="several columns of bytes"):
        list_input(table)
    for name, expected in (("two", [b"3", b"4"]), ("x@y", [b"5", b"6"])):
        entries = list_input(table, fields=Fields(image_column=name)).entries
        assert [read_bytes(e.uri, e.offset, e.size, e.etag) for e in entries] == expected
    with pytest.raises(InputError, match="it has no column 'three', but one: bytes"):
        list_input(table, fields=Fields(image_column="three"))
    with pytest.raises(ConfigError, match="--image-column"):
        Fields(image_column="a#1")
    nested = write_table(tmp_path / "b.parquet", [b"7", b"8"])
    entries = list_input(nested, fields=Fields(image_column="image")).entries
    assert [read_bytes(e.uri, e.offset, e.size, e.etag) for e in entries] == [b"7", b"8"]


def test_columns_that_would_fill_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.inputs.members.CARRIED_BYTES", 100_000)
    # A table of some kilobytes: one long text in many rows.
    text = pa.array(["x" * 60_000] * 200).dictionary_encode()
    table = write_table(tmp_path / "a.parquet", [PNG] * 200, group=200, text=text)
    assert table.stat().st_size < 100_000
    listing = list_input(table, fields=ALL)
    assert len(listing.table) < 10
    assert "name with --carry those that are wanted" in dict(listing.skipped)["a.parquet"]
    assert len(list_input(table, fields=Fields(carry=parse_carry("none"))).table) == 200
