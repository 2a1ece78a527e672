from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from danlu.data.formats import Chunk, Place, read_chunks
from danlu.data.template import Template
from danlu.errors import DataError

TEXT = Template.parse("text")


def read(*files: Path, template: Template = TEXT) -> list[tuple[str, str]]:
    """Every document and its origin."""
    chunks = read_chunks(files, template)
    return [(text, chunk.place.of(i)) for chunk in chunks for i, text in enumerate(chunk.texts())]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value).replace(f"{path}", path.name)


def test_a_text_file_is_one_document_and_a_row_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    (tmp_path / "b.md").write_bytes("三".encode())
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\n{"text": "\\u00fc", "n": 1}')
    parquet.write_table(pa.table({"n": [1, 2], "text": ["p", ""]}), tmp_path / "d.parquet")
    files = [tmp_path / name for name in ("a.txt", "b.md", "c.jsonl", "d.parquet")]
    assert [(text, where.rpartition("/")[2]) for text, where in read(*files)] == [
        ("one\r\ntwo\n", "a.txt:1"),
        ("三", "b.md:1"),
        ("x", "c.jsonl:1"),
        ("", "c.jsonl:2"),
        ("ü", "c.jsonl:3"),
        ("p", "d.parquet:1"),
        ("", "d.parquet:2"),
    ]


def test_a_template_joins_fields_in_jsonl_and_parquet(tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "4"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pa.Table.from_pylist(rows)
    coded = table.set_column(0, "q", table["q"].dictionary_encode()).set_column(1, "a", table["a"].cast("large_string"))
    parquet.write_table(coded, tmp_path / "a.parquet")
    template = Template.parse("{q}={a}")
    for name in ("a.jsonl", "a.parquet"):
        assert [text for text, _ in read(tmp_path / name, template=template)] == ["1+1=2", "2+2=4"]


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
        (b'{"text": "a \\ud800"}', "a.jsonl:2: the text has half of a surrogate pair"),
    ],
)
def test_a_faulty_row_of_jsonl_is_refused_by_file_and_line(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    assert refusal(path).startswith(says)


def test_a_text_file_that_is_not_utf8_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n\xe9t\xe9\n")
    assert refusal(path).startswith("a.txt:3: byte 0xe9 is not UTF-8")


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ({"tetx": ["x"]}, "a.parquet: there is no column 'text'. Did you mean 'tetx'?"),
        ({"text": [1]}, "a.parquet: column 'text' is int64, not a string"),
        ({"text": ["x", None]}, "a.parquet:2: field 'text' is null, not a string"),
        ({"text": pa.array([b"x", b"\xff"]).view("string")}, "a.parquet:2: column 'text' is not UTF-8"),
    ],
)
def test_a_faulty_column_is_refused(tmp_path: Path, column: dict[str, object], says: str) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(column), path)
    assert refusal(path).startswith(says)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert refusal(tmp_path / name).startswith(f"{name}: ")


def test_an_edit_changes_the_chunks_around_it_and_no_others(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = [json.dumps({"text": "".join(draw.choices("abcdef ", k=draw.randrange(2000)))}) for _ in range(12_000)]
    path = tmp_path / "a.jsonl"

    def digests() -> list[str]:
        path.write_text("\n".join(lines) + "\n")
        return [chunk.digest for chunk in read_chunks([path], TEXT)]

    before = digests()
    lines.append(json.dumps({"text": "appended"}))
    appended = digests()
    assert appended[:-1] == before[: len(appended) - 1]
    assert len(before) > 4
    lines.insert(100, json.dumps({"text": "inserted"}))
    assert len(set(digests()) - set(appended)) <= 2


def test_a_digest_tells_content_from_place() -> None:
    one = Chunk([b"ab", b"c"], Place(("x",), 1))
    assert one.digest == Chunk([b"ab", b"c"], Place(("y",), 5)).digest
    assert one.digest != Chunk([b"a", b"bc"], Place(("x",), 1)).digest
    assert one.digest != Chunk([b"ab", b"c"], Place(("x",), 1), TEXT).digest


def check_only_data_errors(suffix: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"fuzz{suffix}")
        path.write_bytes(content)
        try:
            documents = read(path)
        except DataError:
            return
        for text, _ in documents:
            text.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "b"]), inner, max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".txt", ".jsonl", ".parquet"]), st.binary(max_size=80))
def test_whatever_bytes_a_file_holds_only_a_data_error_escapes(suffix: str, content: bytes) -> None:
    check_only_data_errors(suffix, content)


@settings(max_examples=60, deadline=None)
@given(st.lists(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=9), min_size=1, max_size=4))
def test_whatever_lines_a_jsonl_file_holds_only_a_data_error_escapes(lines: list[bytes]) -> None:
    check_only_data_errors(".jsonl", b"\n".join(lines))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_however_a_parquet_file_is_damaged_only_a_data_error_escapes(data: st.DataObject) -> None:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": ["a b", "ü", "x" * 50] * 4, "n": list(range(12))}), sink)
    content = bytearray(sink.getvalue().to_pybytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check_only_data_errors(".parquet", bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))]))
