"""Annotation files as users write them: encodings, delimiters, lines that cannot be used."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from pipelines.conditioning.boxes import parse_box
from pipelines.conditioning.class_label import ClassParser
from pipelines.conditioning.keypoints import PoseParser
from pipelines.inputs import InputError, Lines, read_lines
from pipelines.inputs.csv_records import DELIMITERS
from pipelines.inputs.text_lines import MAX_LINE
from tests.conftest import examples

TABLE = "file,class\r\na.png,cat\r\nb.png,dog\r\n"
LINES = '{"file": "a.png", "class": "cat"}\n{"file": "b.png", "class": "dog"}\n'
CLASSES = {"a.png": ["cat"], "b.png": ["dog"]}
GOOD = '{"file": "good", "class": "cat", "category": "it", "bbox": [0, 0, 1, 1]}'


def read(path: Path, data: bytes | str) -> Lines:
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return read_lines(path, ClassParser())


# --- spellings


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe\0\0", "utf-32-le"),
        (b"\0\0\xfe\xff", "utf-32-be"),
    ],
)
def test_byte_order_mark_gives_the_encoding(tmp_path: Path, mark: bytes, encoding: str) -> None:
    for name, text in (("c.csv", TABLE), ("c.jsonl", LINES)):
        assert read(tmp_path / name, mark + text.encode(encoding)).found == CLASSES
    twice = (mark + LINES.encode(encoding)) * 2  # files joined to one
    assert read(tmp_path / "c.jsonl", twice).found == {name: 2 * c for name, c in CLASSES.items()}


@pytest.mark.parametrize(
    "text",
    [
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        "sep=;\r\n" + TABLE.replace(",", ";"),
        "\n" + TABLE.replace("\r\n", "\r"),
        '"File" , CLASS ,note\na.png, cat,"a ""b"", c"\n b.png ,"dog",\n\n',
        "class,file\ncat,a.png,,\ndog,b.png\n",
    ],
)
def test_tables_of_many_spellings_are_read(tmp_path: Path, text: str) -> None:
    lines = read(tmp_path / "c.CSV", text)
    assert (lines.found, lines.bad) == (CLASSES, [])


@hypothesis.settings(max_examples=examples(50))
@hypothesis.given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"))] * 2),
        min_size=1,
    ),
    delimiter=st.sampled_from(DELIMITERS),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_every_record_that_a_csv_writer_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    end: str,
    encoding: str,
) -> None:
    hypothesis.assume(encoding != "utf-16" or "\ufffd" not in "".join(map("".join, rows)))
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("file", "text"), *rows, ("end", "")])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(buffer.getvalue().encode(encoding))
    lines = read_lines(path, lambda line: line.get("text"))
    found = [(name, text) for name, texts in lines.found.items() for text in texts]
    expected = [(name.strip(), text.strip()) for name, text in rows]
    assert sorted(found) == sorted([(n, t) for n, t in expected if n] + [("end", "")])
    assert len(lines.bad) == sum(1 for n, t in expected if not n and t)


# --- lines that cannot be used


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"file": "a", "class": ' + "9" * 5000 + "}", "too many digits"),
        ('{"file": "a", "class": 1e400}', "class inf is no name"),
        ('{"file": "a", "class": NaN}', "class nan is no name"),
        ('{"file": "a", "class": ' + "[" * 900 + "]" * 900 + "}", "...]]]]]]] is no name"),
        ('{"file": "a", "class": "x", "file": "b"}', "'file' twice in one object"),
        ('{"file": "\\ud800", "class": "x"}', "half of a surrogate pair"),
        ('{"file": "a", "class": "\\udc00"}', "half of a surrogate pair"),
        ('{"file": "a", "class": "\ud800"}', "not UTF-8"),
        ('{"file": "a\0"}', "NUL characters"),
        ('{"file": "a"} {"file": "b"}', "no JSON (Extra data)"),
        ('{"file": "' + "a" * MAX_LINE + '"}', f"longer than {MAX_LINE:,} characters"),
        ('{"file": 3}', 'no object with a "file"'),
        ("null", 'no object with a "file"'),
        ('{"file": "good", "class": "\\u001b[1m\\u202e"}', r"class \x1b[1m\u202e, where"),
    ],
)
def test_bad_json_line_is_named_and_the_others_are_used(
    tmp_path: Path, line: str, why: str
) -> None:
    lines = read(tmp_path / "c.jsonl", f"{GOOD}\n{line}\n{GOOD}\n")
    assert lines.found == {"good": ["cat", "cat"]}
    ((where, found),) = lines.bad
    assert where == "c.jsonl:2"
    assert why in found
    assert len(found) < 200


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('a.png,"cat', "a quote is not closed"),
        ('"a.png"x,cat', "',' expected"),
        ("a,b.png,cat", "3 fields, where the header has 2"),
        (",cat", 'no object with a "file"'),
        ("a.png,c\0t", "NUL characters"),
        ("a.png," + "x" * 200_000, "field larger than"),
        ("a.png," + "x" * 2 * MAX_LINE, "longer than"),
    ],
)
def test_bad_csv_line_is_named_and_the_others_are_used(tmp_path: Path, line: str, why: str) -> None:
    lines = read(tmp_path / "c.csv", f"file,class\n{line}\n" + "b.png,dog\n" * 3)
    assert lines.found == {"b.png": ["dog"] * 3}
    ((where, found),) = lines.bad
    assert where == "c.csv:2"
    assert why in found


def test_each_line_with_an_open_quote_is_bad(tmp_path: Path) -> None:
    text = "file,class\n" + 'a.png,"cat\n' * 300 + "b.png,dog\n" * 20_000
    lines = read(tmp_path / "c.csv", text)
    assert [where for where, _ in lines.bad] == [f"c.csv:{number}" for number in range(2, 302)]
    assert len(lines.found["b.png"]) == 20_000


def test_bytes_that_are_not_in_the_encoding_make_a_bad_line(tmp_path: Path) -> None:
    lines = read(tmp_path / "c.csv", "file,class\na.png,chât\nb.png,dog\n".encode("latin-1"))
    assert lines.bad == [("c.csv:2", "not UTF-8")]
    odd = "file,class\na.png,cat\nb.png,d".encode("utf-16") + b"o"
    assert read(tmp_path / "c.csv", odd).bad == [("c.csv:3", "not UTF-16")]


@pytest.mark.parametrize("nested", ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900])
def test_nested_values_are_named_in_short(tmp_path: Path, nested: str) -> None:
    path = tmp_path / "x.jsonl"
    for field, parse in (("bbox", parse_box), ("keypoints", PoseParser())):
        bad = f'{{"file": "a", "category": "it", "{field}": {nested}}}\n'
        path.write_text(bad + '{"file": "b"}\n')
        ((_, why),) = read_lines(path, parse).bad
        assert len(why) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["file", "class", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
PARSERS = {"class": ClassParser, "bbox": lambda: parse_box, "keypoints": PoseParser}


@hypothesis.settings(max_examples=examples(50))
@hypothesis.given(data=st.data(), field=st.sampled_from(sorted(PARSERS)))
def test_each_json_line_is_either_found_or_bad(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, field: str
) -> None:
    named = st.fixed_dictionaries(
        {"file": st.text(max_size=2) | JSON}, optional={field: JSON, "category": JSON}
    )
    values = data.draw(st.lists(named | JSON, min_size=1, max_size=8))
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in [*values, {"file": "last"}]))
    seen: list[dict[str, Any]] = []
    parse = PARSERS[field]()

    def counted(line: dict[str, Any]) -> Any:
        item = parse(line)
        seen.append(line)
        return item

    try:
        lines = read_lines(path, counted)
    except InputError:  # no line has an annotation, and some have other fields
        assert any(set(line) - {"file"} for line in seen)
        return
    assert len(seen) + len(lines.bad) == len(values) + 1
    assert {line["file"] for line in seen} == set(lines.found)


@hypothesis.given(
    data=st.binary(max_size=200) | st.text('file,class;\t"\n\r\0xé').map(str.encode),
    suffix=st.sampled_from(["csv", "jsonl"]),
)
def test_any_bytes_are_read_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    try:
        lines, refused = read(path, data), ""
    except InputError as error:
        lines, refused = Lines(), str(error)
    assert bool(lines.found) != bool(refused)
    assert "\n" not in refused


# --- files that cannot be used


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("c.csv", "", "no header"),
        ("c.csv", b"\xef\xbb\xbf", "no header"),
        ("c.csv", "file,class\n", "none of its lines"),
        ("c.csv", "a.png,cat\nb.png,dog\n", "names no column \"file\", but 'a.png', 'cat'"),
        ("c.csv", "file,class,Class\na.png,x,y\n", "2 columns are called 'class'"),
        ("c.csv", "file,label\na.png,cat\n", "fields that are not read: 'label'"),
        ("c.csv", "file,\x1b[1m\na.png,cat\n", r"not read: '\\x1b[1m'"),
        ("c.csv", TABLE.encode("utf-16-le"), "save the file as UTF-8"),
        ("c.csv", "x" * 3 * MAX_LINE, "longer than"),
        ("c.csv", b"PK\x03\x04...", "a ZIP file or a spreadsheet"),
        ("c.jsonl", "", "none of its lines"),
        ("c.jsonl", '{"file": "a", "label": "cat"}\n', "fields that are not read: 'label'"),
        ("c.jsonl", b"\x1f\x8b\x08...", "compressed with gzip"),
        ("c.jsonl", b"PAR1...", "a Parquet table"),
    ],
)
def test_file_without_a_usable_line_is_refused(
    tmp_path: Path, name: str, data: bytes | str, why: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / name, data)
    assert why in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_folders_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.jsonl", "folder.csv", "missing.jsonl"):
        with pytest.raises(InputError, match=name):
            read_lines(tmp_path / name, ClassParser())
