"""Every form of file through the index and the reader: the same documents, and every fault by its file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from danlu.data.document import Text
from danlu.data.index import index
from danlu.data.rows import Reader, content
from danlu.data.template import Template
from danlu.errors import DataError

TEXT = Template.parse("text")


def read(*files: Path, template: Template | None = TEXT) -> list[tuple[str, str]]:
    """Every document and its origin; the first fault is raised."""
    found = []
    with tempfile.TemporaryDirectory() as cache:
        for chunk in index(files, Path(cache)):
            rows = list(Reader(template).read(chunk))
            assert len(rows) == chunk.num_documents
            for i, row in enumerate(rows):
                if isinstance(row, DataError):
                    raise row
                assert isinstance(row[1], Text)
                found.append((row[1].text, chunk.place.of(i)))
    return found


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value).replace(f"{path}", path.name)


def arrow_file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


def arrow_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


def parquet_file(table: pa.Table, row_group_size: int = 2) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, row_group_size=row_group_size)
    return bytes(sink.getvalue())


def table_of(rows: list[dict[str, str]], delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


Rows = list[dict[str, str]]

FORMS: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "a.ndjson": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + FORMS["a.jsonl"](rows),
    "lines.json": lambda rows: b"\n" + FORMS["a.jsonl"](rows),
    "array.json": lambda rows: json.dumps(rows).encode(),
    "pretty.json": lambda rows: b"\xef\xbb\xbf\n" + json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "objects.json": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    "a.csv": lambda rows: table_of(rows, ","),
    "a.TSV": lambda rows: b"\xef\xbb\xbf" + table_of(rows, "\t"),
    "a.parquet": lambda rows: parquet_file(pa.Table.from_pylist(rows)),
    "file.arrow": lambda rows: arrow_file(pa.Table.from_pylist(rows)),
    "stream.arrow": lambda rows: arrow_stream(pa.Table.from_pylist(rows)),
    "a.jsonl.gz": lambda rows: gzip.compress(FORMS["a.jsonl"](rows)),
    "two.jsonl.gz": lambda rows: b"".join(gzip.compress(FORMS["a.jsonl"]([row])) for row in rows),
    "pretty.json.gz": lambda rows: gzip.compress(FORMS["pretty.json"](rows)),
    "a.csv.gz": lambda rows: gzip.compress(FORMS["a.csv"](rows)),
    "a.jsonl.zst": lambda rows: zstandard.compress(FORMS["a.jsonl"](rows)),
    "two.jsonl.zst": lambda rows: b"".join(zstandard.compress(FORMS["a.jsonl"]([row])) for row in rows),
    "array.json.zst": lambda rows: zstandard.compress(FORMS["array.json"](rows)),
    "a.tsv.zst": lambda rows: zstandard.compress(table_of(rows, "\t")),
}

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"text": CELLS, "n\nm": CELLS}), min_size=1, max_size=7)


@pytest.mark.parametrize("name", FORMS)
@given(rows=ROWS)
def test_every_form_gives_the_same_documents(name: str, rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(FORMS[name](rows))
        assert [text for text, _ in read(path) if text] == [row["text"] for row in rows if row["text"]]


def test_a_row_is_told_by_the_line_where_it_begins_in_the_users_own_file(tmp_path: Path) -> None:
    rows = [{"text": "one\ntwo", "x": "\n"}, {"text": "three", "x": ""}, {"text": "four", "x": ""}]
    expected = {
        "a.jsonl": [1, 2, 3],
        "array.json": [1, 1, 1],
        "pretty.json": [3, 7, 11],
        "objects.json": [1, 5, 9],
        "a.csv": [2, 5, 6],
        "a.parquet": [1, 2, 3],
        "file.arrow": [1, 2, 3],
        "a.jsonl.gz": [1, 2, 3],
        "pretty.json.gz": [3, 7, 11],
        "a.csv.gz": [2, 5, 6],
        "a.tsv.zst": [2, 5, 6],
    }
    for name, lines in expected.items():
        path = tmp_path / name
        path.write_bytes(FORMS[name](rows))
        assert read(path) == [(row["text"], f"{path}:{line}") for row, line in zip(rows, lines, strict=True)], name


def test_a_text_file_is_one_document_however_it_is_packed(tmp_path: Path) -> None:
    text = "one\r\ntwo\n三\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.zst").write_bytes(zstandard.compress(text.encode()))
    files = sorted(tmp_path.iterdir())
    assert read(*files) == [(text, f"{file}:1") for file in files]


def test_blank_lines_are_empty_documents_of_lines_and_nothing_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\n{"text": "\\u00fc", "n": 1}')
    (tmp_path / "c.csv").write_bytes(b'text,n\n\n\n"x\n",1\n')
    assert [(text, where.rpartition("/")[2]) for text, where in read(tmp_path / "c.jsonl", tmp_path / "c.csv")] == [
        ("x", "c.jsonl:1"),
        ("", "c.jsonl:2"),
        ("ü", "c.jsonl:3"),
        ("x\n", "c.csv:4"),
    ]


def test_a_template_joins_fields(tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "4"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pa.Table.from_pylist(rows)
    coded = table.set_column(0, "q", table["q"].dictionary_encode()).set_column(1, "a", table["a"].cast("large_string"))
    parquet.write_table(coded, tmp_path / "a.parquet")
    template = Template.parse("{q}={a}")
    for name in ("a.jsonl", "a.parquet"):
        assert [text for text, _ in read(tmp_path / name, template=template)] == ["1+1=2", "2+2=4"]


def test_rows_of_any_shape_are_the_same_document_in_every_form_that_can_hold_them(tmp_path: Path) -> None:
    rows: Any = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"b {i}"}]} for i in range(5)
    ]
    found = []
    for name in ("a.jsonl", "pretty.json", "a.parquet", "stream.arrow", "file.arrow"):
        (tmp_path / name).write_bytes(FORMS[name](rows))
        chunks = index([tmp_path / name], tmp_path / "cache")
        each = [row for chunk in chunks for row in Reader().read(chunk)]
        assert not any(isinstance(row, DataError) for row in each)
        found.append([(row[0], content(row[1])) for row in each if not isinstance(row, DataError)])
    assert all(one == found[0] for one in found)
    assert [shape for shape, _ in found[0]] == ["messages"] * 5


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "a.jsonl:2: the line is not JSON"),
        (b"[" * 100_000, "a.jsonl:2: the line is not JSON"),
        (b"9" * 10_000, "a.jsonl:2: the line is not JSON"),
        (b"[1]", "a.jsonl:2: the line is a JSON list, not an object"),
        (b'{"tetx": ""}', "a.jsonl:2: the row has no field 'text'. Did you mean 'tetx'?"),
        (b'{"text": 1}', "a.jsonl:2: field 'text' is int, not a string"),
        (b'{"text": "\xff"}', "a.jsonl:2: byte 0xff is not UTF-8"),
    ],
)
def test_a_faulty_row_of_lines_is_refused_by_file_and_line(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    assert refusal(path).startswith(says)


@pytest.mark.parametrize(
    ("name", "held", "says"),
    [
        ("a.json", b'[\n{"text": "a"},\n[1]\n]', "a.json:3: the line is a JSON list"),
        ("a.json", b'[\n{"text": "a"},\n\n{"text": tru}]', "a.json:4: the file is not JSON (Expecting value)"),
        ("a.json", b'[\n{"text": "a"}\n{"text": "b"}]', "a.json:3: a value is followed by neither"),
        ("a.json", b'[\n{"text": "a"}]\n1', "a.json:3: something follows the end"),
        ("a.json", b'[{"text": "a"},', "a.json:1: the file is not JSON"),
        ("a.json", b"[\n" + b"[" * 100_000, "a.json:2: the file is not JSON"),
        ("a.json", b'[\n{"text": "\xff"}]', "a.json:2: byte 0xff is not UTF-8"),
        ("a.json", b"[]", "a.json: the file has no rows"),
        ("a.csv", b"text,b\n1,2\n3\n", "a.csv:3: the row has 1 cells"),
        ("a.csv", b'text,b\n1,2\n"3\n\n4', "a.csv:3: the row is not sound CSV"),
        ("a.csv", b"text,text\n1,2\n", "a.csv:1: the header names a column twice"),
        ("a.csv", b"\n1,2\n", "a.csv:1: there is no header"),
        ("a.csv", b"text,b\n", "a.csv: the file has no rows"),
        ("a.csv", b'text\n"a\n\xff"\n', "a.csv:2: byte 0xff is not UTF-8"),
        ("a.csv", b"tetx\nx\n", "a.csv:2: the row has no field 'text'. Did you mean 'tetx'?"),
        ("a.jsonl.gz", b"\x1f\x8b\x08 broken", "a.jsonl.gz: the file is not sound gzip"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: the file is not sound gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "a.jsonl.gz: the file is not sound gzip"),
        ("a.jsonl.zst", b"plain", "a.jsonl.zst: the file is not sound zstd"),
        ("a.jsonl.zst", zstandard.compress(b'{"text": "a"}\n' * 99)[:-1], "a.jsonl.zst: the file is not sound zstd"),
        ("a.parquet.gz", gzip.compress(b"", mtime=0), "a.parquet.gz: a packed parquet file is not read"),
        ("a.txt", b"one\ntwo\n\xe9t\xe9\n", "a.txt:3: byte 0xe9 is not UTF-8"),
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
    ],
)
def test_a_faulty_file_is_refused_by_file_and_line(tmp_path: Path, name: str, held: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(held)
    assert refusal(tmp_path / name).startswith(says)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ({"tetx": ["x"]}, "1: the row has no field 'text'. Did you mean 'tetx'?"),
        ({"text": [1]}, "1: field 'text' is int, not a string"),
        ({"text": ["x", None]}, "2: field 'text' is null, not a string"),
        ({"text": pa.array([b"x", b"\xff"]).view("string")}, "2: a text of the row is not UTF-8"),
    ],
)
def test_a_faulty_column_is_refused_by_row(tmp_path: Path, column: dict[str, object], says: str) -> None:
    for path, write in ((tmp_path / "a.parquet", parquet_file), (tmp_path / "a.arrow", arrow_stream)):
        path.write_bytes(write(pa.table(column)))  # type: ignore[operator]
        assert refusal(path).startswith(f"{path.name}:{says}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", *FORMS):
        assert refusal(tmp_path / name).startswith(f"{name}: the file cannot be read")


def test_without_zstandard_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    assert refusal(tmp_path / "a.jsonl.zst").startswith("a.jsonl.zst: a .zst file needs the `zstandard` package")


def test_rows_of_large_row_groups_are_cut_and_those_of_small_ones_put_together(tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "x" * 500} for i in range(40_000)]
    for size, name in ((20_000, "large.parquet"), (100, "small.parquet")):
        (tmp_path / name).write_bytes(parquet_file(pa.Table.from_pylist(rows), size))
        chunks = index([tmp_path / name], tmp_path / "cache")
        assert 2 < len(chunks) < 60
        assert [text for text, _ in read(tmp_path / name)] == [row["text"] for row in rows]


def check_only_data_errors(name: str, held: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(held)
        try:
            documents = read(path)
        except DataError:
            return
        for text, _ in documents:
            text.encode(errors="surrogatepass")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "b"]), inner, max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["a.txt", *FORMS]), st.binary(max_size=80))
def test_whatever_bytes_a_file_holds_only_a_data_error_escapes(name: str, held: bytes) -> None:
    check_only_data_errors(name, held)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["a.jsonl", "a.json", "a.csv"]),
    st.lists(JSON.map(json.dumps).map(str.encode) | st.sampled_from([b"[", b"]", b","]) | st.binary(max_size=9)),
)
def test_whatever_lines_a_file_holds_only_a_data_error_escapes(name: str, lines: list[bytes]) -> None:
    check_only_data_errors(name, b"\n".join(lines))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(FORMS)), st.data())
def test_however_a_file_is_damaged_only_a_data_error_escapes(name: str, data: st.DataObject) -> None:
    held = bytearray(FORMS[name]([{"text": "a b", "n": "ü"}, {"text": "x" * 50, "n": '",\n'}] * 6))
    for _ in range(data.draw(st.integers(1, 3))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    check_only_data_errors(name, bytes(held[: data.draw(st.integers(len(held) // 2, len(held)))]))
