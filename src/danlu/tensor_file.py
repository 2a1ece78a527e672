"""Files of tensors: safetensors, whatever is wrong with one told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from danlu.errors import CheckpointError


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write safetensors, readable for whom its folder is; the library keeps what it writes to its owner.

    Raises:
        OSError, SafetensorError: when it cannot be written.
    """
    save_file(dict(tensors), path, metadata=dict(metadata))
    path.chmod(path.parent.stat().st_mode & 0o666)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file on the host, and its metadata.

    Raises:
        CheckpointError: when it is absent, cut short or altered.
    """
    with explained(path), safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Within, what is wrong with a file is a `CheckpointError`."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError("the file is absent", where=file) from None
    except SafetensorError as error:
        raise CheckpointError(
            f"the file is cut short or altered ({error})", where=file, do="Fetch it again."
        ) from error
