"""Files of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write safetensors, readable for whom its folder is; the library keeps what it writes to its owner.

    Raises:
        OSError, SafetensorError: when it cannot be written.
    """
    save_file(dict(tensors), path, metadata=dict(metadata))
    path.chmod(path.parent.stat().st_mode & 0o666)
