"""Which way environments are stepped: the fastest that changes no result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from danlu.world.dynamics import VECTORIZED, exact
from danlu.world.grids import Grids
from danlu.world.making import find
from danlu.world.stepping import Simulators, Stepper
from danlu.world.tables import TABULATED, Tables, follows_table
from danlu.world.workers import Workers

_GRIDS = "danlu.world.gridworld:GridWorld"


@dataclass(frozen=True)
class How:
    """How environments are stepped, which changes no result.

    Attributes:
        workers: processes for it; 0 for this one.
        timeout: seconds a process may say nothing.
        vectorize: whether those known here are stepped all at once.
    """

    workers: int = 0
    timeout: float = 120.0
    vectorize: bool = True


def start(env_id: str, num_envs: int, options: Mapping[str, Any], limit: int | None, how: How) -> Stepper:
    """Environments, ready to begin.

    Args:
        env_id: see `danlu.world.making.find`.
        num_envs: how many.
        options: what each takes.
        limit: steps after which an episode is cut; None for never.
        how: they are stepped.
    """
    spec = find(env_id)
    entry = str(spec.entry_point)
    given = {**spec.kwargs, **options}
    known = how.vectorize and not spec.additional_wrappers
    if known and entry == _GRIDS:  # so light that processes would only slow it down
        return Grids(num_envs, limit, {name: value for name, value in given.items() if name != "render_mode"})
    if how.workers:
        return Workers(env_id, options, limit, num_envs, how.workers, how.timeout)
    if known and entry in VECTORIZED and exact():
        kind = VECTORIZED[entry]
        if num_envs >= kind.pays_from and kind.takes.issuperset(given):
            return kind(num_envs, limit, given)
    if known and entry in TABULATED and follows_table(given):
        return Tables(num_envs, limit, given, env_id)
    return Simulators(env_id, options, limit, range(num_envs))
