"""JSON values out of a text of any size, one by one."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from json.decoder import JSONDecodeError
from pathlib import Path

from danlu.data.chunks import first_line
from danlu.errors import DataError

_decode = json.JSONDecoder(parse_int=len, parse_float=len).raw_decode  # where a value ends is all that is asked
_MARGIN = 32
"""A fault so near the end of what has been read may be a value that goes on; no token but a string is longer."""
_LINE_ENDS = str.maketrans("\r\n", "  ")


def json_values(blocks: Iterator[bytes], path: Path) -> Iterator[tuple[int, str]]:
    """The values of a JSON array, or values that follow each other, as they are written but on one line.

    Args:
        blocks: the text, in UTF-8; what is not goes through as lone surrogates.
        path: where it is, for the errors.

    Yields:
        The line where a value begins, and the value.

    Raises:
        DataError: when the text is not JSON, by file and line.
    """
    text = _Window(blocks, path)
    if text.next_is("["):
        text.skip()
        while not text.next_is("]"):
            yield text.value()
            if text.next_is(","):
                text.skip()
            elif not text.next_is("]"):
                raise text.fault("a value is followed by neither ',' nor ']'")
        text.skip()
        if text.peek():
            raise text.fault("something follows the end of the array")
        return
    while text.peek():
        yield text.value()


def _decoded(blocks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    yield from map(decoder.decode, blocks)
    yield decoder.decode(b"", True)


class _Window:
    """Text that arrives in blocks and is let go once it has been read."""

    def __init__(self, blocks: Iterator[bytes], path: Path) -> None:
        self._blocks = _decoded(blocks)
        self._path = path
        self._text = ""
        self._at = 0
        self._line, self._counted = 1, 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            text = self._text
            while self._at < len(text) and text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(text) or self._ended:
                return text[self._at : self._at + 1]
            self._grow()

    def next_is(self, character: str) -> bool:
        return self.peek() == character

    def skip(self) -> None:
        self._at += 1

    def value(self) -> tuple[int, str]:
        """The value that begins here, with its line."""
        self.peek()
        while True:
            try:
                _, end = _decode(self._text, self._at)
            except JSONDecodeError as fault:
                cut_off = fault.pos > len(self._text) - _MARGIN or fault.msg.startswith("Unterminated string")
                if self._ended or not cut_off:
                    raise self._not_json(fault.msg, fault.pos) from None
            except (ValueError, RecursionError) as fault:
                raise self._not_json(first_line(fault), self._at) from None
            else:
                if end < len(self._text) or self._ended:
                    line, start, self._at = self._line_at(self._at), self._at, end
                    return line, self._text[start:end].translate(_LINE_ENDS)
            self._grow()

    def fault(self, what: str) -> DataError:
        where = f"{self._path}:{self._line_at(self._at)}"
        return DataError(what, where=where, do="Repair the file, or write one object a line.")

    def _not_json(self, reason: str, at: int) -> DataError:
        where = f"{self._path}:{self._line_at(min(at, len(self._text)))}"
        return DataError(f"the file is not JSON ({reason})", where=where, do="Repair it, or write one object a line.")

    def _line_at(self, at: int) -> int:
        self._line += self._text.count("\n", self._counted, at)
        self._counted = max(at, self._counted)
        return self._line

    def _grow(self) -> None:
        """Let go of what has been read, and read as much again as is left, so that a long value is tried few times."""
        self._line_at(self._at)
        parts = [self._text[self._at :]]
        wanted = len(parts[0]) + 1
        while wanted > 0 and not self._ended:
            block = next(self._blocks, None)
            self._ended = block is None
            parts.append(block or "")
            wanted -= len(parts[-1])
        self._text, self._at, self._counted = "".join(parts), 0, 0
