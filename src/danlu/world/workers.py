"""Environments in processes of their own, for simulators that are slow.

Each process steps a share of them. One that dies, or that says nothing for longer than it may, ends the run with a
sentence that names the environment it was at.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from danlu.errors import DanluError, RunError
from danlu.world.checks import brief
from danlu.world.stepping import Moved, Simulators, Stepper

_TO_START = 120.0
"""Seconds a process has to be ready, at least."""


def work(
    connection: Connection,
    at: Any,
    env_id: str,
    options: Mapping[str, Any],
    time_limit: int | None,
    indices: Sequence[int],
) -> None:
    """What a process does: step its environments as it is told, until nobody tells it any more.

    Args:
        connection: to who tells it.
        at: a shared integer: the place of the environment it is at.
        env_id: see `Simulators`.
        options: see `Simulators`.
        time_limit: see `Simulators`.
        indices: see `Simulators`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for who tells it to stop

    def progress(place: int) -> None:
        at.value = place

    simulators: Simulators | None = None
    try:
        simulators = Simulators(env_id, options, time_limit, indices, progress)
        connection.send((True, simulators.name))
        while True:
            told = connection.recv()
            if told is None:
                break
            connection.send((True, _do(simulators, told)))
    except EOFError:
        pass
    except DanluError as error:
        connection.send((False, error))
    finally:
        if simulators is not None:
            simulators.close()


def _do(simulators: Simulators, told: tuple[Any, ...]) -> Any:
    task, *given = told
    if task == "begin":
        return simulators.begin(*given)
    if task == "replay":
        return simulators.replay(*given)
    actions, seeds = given
    return simulators.step(actions, seeds.__getitem__)


class Workers(Stepper):
    """Environments in `num_workers` processes.

    Args:
        env_id: see `Simulators`.
        options: see `Simulators`.
        time_limit: see `Simulators`.
        num_envs: N.
        num_workers: how many processes; no more than N are started.
        timeout: seconds a process may say nothing.
    """

    def __init__(
        self,
        env_id: str,
        options: Mapping[str, Any],
        time_limit: int | None,
        num_envs: int,
        num_workers: int,
        timeout: float,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = env_id
        self.timeout = timeout
        self.shares = [share.tolist() for share in np.array_split(np.arange(num_envs), min(num_workers, num_envs))]
        self._last: np.ndarray | None = None
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._at = [context.RawValue("i", 0) for _ in self.shares]
        for share, at in zip(self.shares, self._at, strict=True):
            here, there = context.Pipe()
            arguments = (there, at, env_id, dict(options), time_limit, share)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)
        self.name = self._answers("making it", max(timeout, _TO_START))[0]

    def begin(self, indices: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """See `Stepper.begin`."""
        self._last = None
        asked, rows = [], []
        for number, share in enumerate(self.shares):
            mine = [row for row, index in enumerate(indices) if index in share]
            if mine:
                told = [indices[row] - share[0] for row in mine], [seeds[row] for row in mine]
                self._tell(number, ("begin", *told))
                asked.append(number)
                rows.extend(mine)
        shown = np.concatenate(self._answers("its reset", self.timeout, asked))
        return shown[np.argsort(rows)]

    def step(self, actions: np.ndarray, seeds: Callable[[int], int]) -> Moved:
        """See `Stepper.step`."""
        self._last = actions
        for number, share in enumerate(self.shares):
            self._tell(number, ("step", actions[share[0] : share[-1] + 1], [seeds(index) for index in share]))
        moved: list[Moved] = self._answers("a step", self.timeout)
        following = np.concatenate([each.following for each in moved])
        ended = any(each.observations is not each.following for each in moved)
        return Moved(
            np.concatenate([each.observations for each in moved]) if ended else following,
            following,
            np.concatenate([each.rewards for each in moved]),
            np.concatenate([each.terminated for each in moved]),
            np.concatenate([each.truncated for each in moved]),
        )

    def replay(self, index: int, seed: int, actions: np.ndarray) -> np.ndarray:
        """See `Stepper.replay`."""
        self._last = None
        number = next(number for number, share in enumerate(self.shares) if index in share)
        self._tell(number, ("replay", index - self.shares[number][0], seed, actions))
        allowed = max(self.timeout, _TO_START, 0.1 * self.timeout * len(actions))
        return np.asarray(self._answers("a replay", allowed, [number])[0])

    def close(self) -> None:
        """See `Stepper.close`."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)
            connection.close()
        self._connections = []
        for process in self._processes:
            process.join(1.0)
        self._end()

    def _tell(self, number: int, told: tuple[Any, ...]) -> None:
        try:
            self._connections[number].send(told)
        except (OSError, IndexError):
            raise self._died(number, "a step") from None

    def _answers(self, during: str, timeout: float, numbers: Sequence[int] | None = None) -> list[Any]:
        """What processes say, in order; the first one's error, if any."""
        waiting = dict.fromkeys(range(len(self.shares)) if numbers is None else numbers)
        said: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while waiting:
            by_connection = {self._connections[number]: number for number in waiting}
            ready = wait(list(by_connection), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._hung(next(iter(waiting)), during, timeout)
            for connection in ready:
                number = by_connection[connection]  # type: ignore[index]
                try:
                    fine, answer = self._connections[number].recv()
                except (EOFError, OSError):
                    raise self._died(number, during) from None
                if not fine:
                    self._end()
                    raise answer
                said[number] = answer
                del waiting[number]
        return [said[number] for number in sorted(said)]

    def _died(self, number: int, during: str) -> RunError:
        process = self._processes[number]
        process.join(1.0)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        where, did = self._place(number)
        self._end()
        return RunError(f"its process {how} during {during}{did}", where=where, do="See what it printed before.")

    def _hung(self, number: int, during: str, timeout: float) -> RunError:
        where, did = self._place(number)
        self._end()
        what = f"its process said nothing for {timeout:g} s during {during}{did}"
        return RunError(what, where=where, do="Mend the environment, or allow it more time by data.timeout.")

    def _place(self, number: int) -> tuple[str, str]:
        index = self.shares[number][self._at[number].value]
        did = "" if self._last is None else f" with action {brief(self._last[index])}"
        return f"{self.name}, environment {index}", did

    def _end(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join(5.0)
