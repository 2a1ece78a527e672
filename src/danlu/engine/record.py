"""What a run writes down as it goes: metrics, events, and what else listens."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from danlu.errors import RunError, UnsupportedError


class Listener(Protocol):
    """Something that wants to hear of a run while it goes."""

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One step's measurements."""
        ...

    def event(self, event: Mapping[str, Any]) -> None:
        """Something that happened."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Recorder:
    """Appends to ``metrics.jsonl`` and ``events.jsonl``, line by line, and passes on to listeners.

    Args:
        run: the run's directory.
        listeners: who else hears of it.
        silent: write nothing, as ranks do whose first one writes for all.
    """

    def __init__(self, run: Path, listeners: Sequence[Listener] = (), *, silent: bool = False) -> None:
        self._run, self._listeners, self._silent = run, listeners, silent

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Write down one step."""
        self._append("metrics.jsonl", row)
        for listener in self._listeners:
            listener.metrics(row)

    def event(self, kind: str, **fields: Any) -> None:
        """Write down that something happened now."""
        event = {"time": time.time(), "kind": kind, **fields}
        self._append("events.jsonl", event)
        for listener in self._listeners:
            listener.event(event)

    def close(self) -> None:
        """Tell the listeners that the run is over."""
        for listener in self._listeners:
            listener.close()

    def cut_back(self, step: int, then: float | None = None) -> None:
        """Forget what was measured after a step, so that no step is ever there twice.

        Args:
            step: the last one from now on.
            then: events that are later than this time and of a later step are forgotten, too; None keeps all.

        Raises:
            RunError: when that cannot be written.
        """
        self._keep("metrics.jsonl", lambda row: row.get("step", 0) <= step)
        if then is not None:
            self._keep("events.jsonl", lambda row: row.get("time", 0.0) <= then or row.get("step", 0) <= step)

    def _keep(self, name: str, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Leave only the wanted rows in a file."""
        file = self._run / name
        if not file.exists():
            return
        kept = [row for row in rows_of(file) if wanted(row)]
        unfinished = file.with_suffix(".tmp")
        with _writing(file):
            unfinished.write_text("".join(f"{json_line(row)}\n" for row in kept), encoding="utf-8")
            unfinished.replace(file)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if self._silent:
            return
        file = self._run / name
        with _writing(file):
            _append(file, f"{json_line(row)}\n".encode())


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the file could not be written: {error.strerror or error}",
            where=file,
            do=f"Make room, then: danlu resume {file.parent}.",
        ) from error


def _append(file: Path, line: bytes) -> None:
    """Add a line; of a small network's update, `open` would take as long as a layer."""
    opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        while line:
            line = line[os.write(opened, line) :]
    finally:
        os.close(opened)


def json_line(row: Mapping[str, Any]) -> str:
    """A row as JSON, which has no word for what is not finite: null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return _AS_JSON(plain)


_AS_JSON = json.JSONEncoder(ensure_ascii=False).encode


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, in order, without a line that a crash cut short.

    Only a newline ends a line: the other characters that Unicode breaks lines at may stand in a text.

    Raises:
        OSError: when the file cannot be read.
    """
    with file.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError:  # also what is cut within a character
                continue
            if isinstance(row, dict):
                yield row


def require_loggers(names: Sequence[str]) -> None:
    """What these loggers need is installed.

    Raises:
        UnsupportedError: when it is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise _absent(name)


class TensorBoard:
    """Scalars into the run's directory, for TensorBoard."""

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _absent("tensorboard") from None
        self._writer = SummaryWriter(str(run / "tensorboard"))  # type: ignore[no-untyped-call]

    def metrics(self, row: Mapping[str, Any]) -> None:
        """See `Listener`."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, row["step"])  # type: ignore[no-untyped-call]

    def event(self, event: Mapping[str, Any]) -> None:
        """See `Listener`."""
        if event["kind"] == "sample":
            self._writer.add_text(event["prompt"], event["text"], event["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """See `Listener`."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WeightsAndBiases:
    """Scalars and the recipe to Weights & Biases."""

    def __init__(self, run: Path, recipe: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise _absent("wandb") from None
        self._run = wandb.init(project="danlu", name=run.name, dir=str(run), config=dict(recipe))

    def metrics(self, row: Mapping[str, Any]) -> None:
        """See `Listener`."""
        self._run.log(dict(row), step=row["step"])

    def event(self, event: Mapping[str, Any]) -> None:
        """See `Listener`."""

    def close(self) -> None:
        """See `Listener`."""
        self._run.finish()


def _absent(package: str) -> UnsupportedError:
    return UnsupportedError(
        f"{package} is not installed", where="run.loggers", do=f"Install it with: pip install 'danlu[{package}]'."
    )
