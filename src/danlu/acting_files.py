"""Agents as files, and back: tensors, and what they are made from as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from danlu.acting import Agent
from danlu.errors import CheckpointError, DataError
from danlu.reading import dump_recipe, read_recipe
from danlu.recipe_acting import ActingRecipe
from danlu.spaces import Spaces, in_words
from danlu.world.checks import Stacked, brief
from danlu.world.environments import Environments
from danlu.world.normalizing import Statistics

_CONFIG, _TENSORS = "agent.json", "model.safetensors"


def environments_of(
    recipe: ActingRecipe,
    *,
    num_envs: int | None = None,
    seed: int | None = None,
    like: Environments | None = None,
    time_limit: int | None = None,
    workers: int | None = None,
) -> Environments:
    """What a recipe's agent acts in.

    Args:
        recipe: what says so.
        num_envs: so many; the recipe's by default.
        seed: of all that is random in them; the recipe's by default.
        like: environments whose averages are used, and left as they are.
        time_limit: steps after which episodes are cut; the recipe's by default.
        workers: processes they are stepped in; the recipe's by default.

    Raises:
        RecipeError, UnsupportedError: when there is no such environment, or its package is missing.
    """
    data = recipe.data
    assert data.env is not None
    return Environments(
        data.env,
        data.num_envs if num_envs is None else num_envs,
        seed=recipe.run.seed if seed is None else seed,
        options=data.options,
        workers=data.workers if workers is None else workers,
        normalize_observations=data.normalize_observations,
        normalize_rewards=data.normalize_rewards,
        gamma=recipe.method.discount,
        time_limit=data.time_limit if time_limit is None else time_limit,
        timeout=data.timeout,
        statistics=None if like is None else like.statistics,
    )


def agent_of(recipe: ActingRecipe, environments: Environments | None) -> Agent:
    """A recipe's agent at its start.

    Raises:
        UnsupportedError: when it cannot act there.
    """
    spaces = Spaces.none() if environments is None else environments.spaces
    if environments is not None:
        recipe.method.check(spaces)
    return recipe.method.agent(spaces, recipe.model, recipe.run.seed)


def save_agent(agent: Agent, recipe: ActingRecipe, averages: Mapping[str, Any] | None, directory: Path) -> None:
    """Write an agent, and what environments were normalised by."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in agent.state_dict().items()}, directory / _TENSORS)
    config = {"recipe": dump_recipe(recipe), "averages": averages}
    (directory / _CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


class Policy:
    """A trained agent that acts, one observation at a time or several.

    Args:
        agent: the agent.
        recipe: what it was trained by.
        averages: what observations are normalised by; None where they are not.

    Example:
        ``policy = danlu.load_agent("runs/c/final"); action = policy.act(observation)``
    """

    def __init__(self, agent: Agent, recipe: ActingRecipe, averages: Mapping[str, Any] | None) -> None:
        self.agent, self.recipe = agent, recipe
        self._shown = Stacked(agent.spaces.observation, "observation")
        self._statistics: Statistics | None = None
        if averages is not None:
            self._statistics = Statistics(agent.spaces.observation.shape, None)
            self._statistics.load(averages)

    @property
    def spaces(self) -> Spaces:
        """What it sees and does."""
        return self.agent.spaces

    @property
    def env_id(self) -> str | None:
        """What it was trained in."""
        return self.recipe.data.env

    @property
    def env_options(self) -> dict[str, Any]:
        """What that takes."""
        return self.recipe.data.options

    @property
    def time_limit(self) -> int | None:
        """Steps after which its episodes were cut; None for what the environment is registered with."""
        return self.recipe.data.time_limit

    def act(self, observation: Any) -> Any:
        """What it thinks best: an action for an observation, or one for each of several, ``[N, ...]``.

        Raises:
            DataError: for what is no observation of its space.
        """
        seen, one = self._seen(observation)
        seen = seen if self._statistics is None else self._statistics.normal(seen)
        chosen = self.agent.act(torch.from_numpy(seen[None] if one else seen), None).actions.numpy()
        chosen = self.spaces.possible(chosen)
        return (int(chosen[0]) if chosen.ndim == 1 else chosen[0]) if one else chosen

    def _seen(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Observations as an array, and whether it was one by itself."""
        space, known = self.spaces.observation, self._shown
        try:
            given = np.asarray(observation)
            seen = given.astype(known.dtype)
        except (TypeError, ValueError):
            what = f"an observation is {brief(observation)}, and these lie in {in_words(space)}"
            raise DataError(what, do="Give what the environment shows.") from None
        one = seen.shape == known.shape
        if not one and seen.shape[1:] != known.shape:
            what = f"observations have shape {seen.shape}, and one of {in_words(space)} has {known.shape}"
            raise DataError(what, do="Give one, or several as [N, ...].")
        several = seen[None] if one else seen
        changed = known.dtype.kind in "iub" and given.dtype.kind == "f" and bool((given != seen).any())
        if changed or (bad := known.wrong(several)) is not None:
            value = given if changed else several[bad]
            raise DataError(known.describe(np.asarray(value)), do="Give what the environment shows.")
        return seen, one


def load_agent(path: str | Path) -> Policy:
    """An agent as a run has left it: its directory, or the run's.

    Raises:
        CheckpointError: when there is none, or its files are damaged.
    """
    folder = Path(path)
    folder = folder / "final" if (folder / "final" / _CONFIG).exists() else folder
    if not (folder / _CONFIG).exists():
        do = "Give a run of a method that acts, which has ended, or its final/."
        raise CheckpointError(f"there is no agent here ({_CONFIG})", where=path, do=do)
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        recipe = read_recipe(config["recipe"])
        assert isinstance(recipe, ActingRecipe)
        tensors = load_file(folder / _TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the agent's files cannot be read: {error}", where=folder) from error
    environments = None if recipe.data.env is None else environments_of(recipe, num_envs=1, workers=0)
    agent = agent_of(recipe, environments)
    if environments is not None:
        environments.close()
    try:
        agent.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"the agent's tensors do not fit it: {first}", where=folder) from error
    return Policy(agent, recipe, config.get("averages"))
