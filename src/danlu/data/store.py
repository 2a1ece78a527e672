"""Files of a cache: written whole or not at all, and never trusted without their checksum."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from danlu.errors import DataError

HEADER_BYTES = 32
_POLL = 0.01
"""Seconds between two looks at a lock that another process has."""
_MAGIC = b"danlu\x00\x00\x01"
_HEADER = struct.Struct("<8sQQ8x")  # magic, length, checksum of name and content


def cache_folder(folder: str | Path | None = None) -> Path:
    """Where the cache is: `folder`, else the environment's ``DANLU_CACHE``, else ``~/.cache/danlu/tokens``."""
    return Path(folder or os.environ.get("DANLU_CACHE") or "~/.cache/danlu/tokens").expanduser()


def entry(folder: Path, key: str) -> Path:
    """The file that keeps what `key` stands for."""
    return folder / key[:2] / key


def write(path: Path, parts: Iterable[bytes]) -> None:
    """Put a file in place in one step, so that readers, other writers and a kill leave it whole.

    Raises:
        DataError: when the folder cannot be written.
    """
    content = b"".join(parts)
    header = _HEADER.pack(_MAGIC, len(content), _checksum(path, content))
    with _writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(header)
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file too large to be held, put in place once it is whole; whoever reads it checks its content by parts.

    Only one process at a time may write it (`locked`). So what a killed one left behind has a known name, and is
    overwritten by the next.

    Raises:
        DataError: when the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with _writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                yield file
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def locked(path: Path, patience: float | None = None) -> Iterator[None]:
    """Keep other processes out; one that dies lets go, and nothing is left behind.

    Args:
        path: what is to be written.
        patience: seconds after which it is gone on without, where that is only waste; None waits for ever.

    Raises:
        DataError: when the folder cannot be written.
    """
    lock, until = path.with_name(f".{path.name}.lock"), time.monotonic() + (math.inf if patience is None else patience)
    with _writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        while (file := _held(lock)) is None and time.monotonic() < until:
            time.sleep(_POLL)
        try:
            yield
        finally:
            if file is not None:
                lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone
                file.close()


def _held(lock: Path) -> BinaryIO | None:
    """The lock's file, unless another process has it, or has just removed it."""
    file = lock.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def read(path: Path) -> memoryview | None:
    """The content of a file that is there, complete and unaltered; else None."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    if len(data) < HEADER_BYTES:
        return None
    magic, length, checksum = _HEADER.unpack_from(data)
    content = data[HEADER_BYTES:]
    sound = magic == _MAGIC and length == len(content) and checksum == _checksum(path, content)
    return content if sound else None


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        do = "Set data.cache or DANLU_CACHE to a folder with room."
        raise DataError(f"the cache cannot be written ({fault.strerror or fault})", where=folder, do=do) from fault


def _checksum(path: Path, content: bytes | memoryview) -> int:
    return zlib.crc32(content, zlib.crc32(path.name.encode()))
