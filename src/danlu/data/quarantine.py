"""Rows that cannot be used: the first ends the run, or all are set aside where a person finds them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from danlu.data.chunks import Chunk, digest_of
from danlu.data.rows import raw_rows
from danlu.errors import DataError


class Quarantine:
    """A folder of bad rows, each with where it was and what is wrong with it; a row is written once.

    Of several ranks, all of which come upon the same rows, the first writes.

    Rows of FILE go to FOLDER/FILE.jsonl as ``{"where": ..., "what": ..., "row": ...}``.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Set rows aside in a folder; without one, refuse them."""
        self.folder = None if folder is None else Path(folder).expanduser()
        self._writes = os.environ.get("RANK", "0") == "0"
        self._written: dict[Path, set[bytes]] = {}

    def put(self, chunk: Chunk, faults: Sequence[tuple[int, DataError]]) -> None:
        """Set aside records of a chunk.

        Raises:
            DataError: the first of their faults, where there is no folder; or that this one cannot be written.
        """
        if not faults:
            return
        if self.folder is None:
            raise faults[0][1]
        if not self._writes:
            return
        rows = raw_rows(chunk)
        for record, fault in faults:
            source = chunk.place.paths[record if len(chunk.place.paths) > 1 else 0]
            said = {"where": fault.where, "what": f"{fault.what}. {fault.do}", "row": rows[record]}
            self._write(self.folder / f"{Path(source).name}.jsonl", json.dumps(said, default=str).encode())

    def _write(self, path: Path, line: bytes) -> None:
        try:
            if path not in self._written:
                path.parent.mkdir(parents=True, exist_ok=True)
                held = path.read_bytes().split(b"\n") if path.exists() else []
                self._written[path] = set(map(digest_of, held))
            if digest_of(line) not in self._written[path]:
                with path.open("ab") as file:
                    file.write(line + b"\n")
                self._written[path].add(digest_of(line))
        except OSError as error:
            what = f"the quarantine cannot be written ({error.strerror or error})"
            raise DataError(what, where=path, do="Set data.quarantine to another folder.") from error
