"""Everything a recipe of acting names, made and checked: an experiment that is ready to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danlu.acting import Agent
from danlu.acting_files import Policy, agent_of, environments_of, save_agent
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.device import Device
from danlu.engine.loop import Loop, Plan
from danlu.engine.parallel import Parallel
from danlu.engine.ranks import ALONE, Ranks
from danlu.engine.record import Recorder
from danlu.engine.turns import Turns
from danlu.errors import DanluError, RecipeError, UnsupportedError
from danlu.experience.source import Acted
from danlu.gif import write_gif
from danlu.random import fold
from danlu.reading import dump_recipe
from danlu.recipe_acting import ActingRecipe
from danlu.registry import name_of
from danlu.turning import loop_over
from danlu.world.environments import Environments
from danlu.world.recording import record

_SHOWN_STATES = 4096
"""States of a finite world whose values are written down, at most."""


@dataclass(frozen=True)
class ActingExperiment:
    """Everything a recipe of acting names, made and checked; nothing has been trained or written.

    Attributes:
        recipe: what is to be.
        device: where.
        environments: what is acted in; None where a method needs nothing to act in.
        policy: the agent.
        parallel: of one process.
        began: when it was begun to be made, by `time.monotonic`.
    """

    recipe: ActingRecipe
    device: Device
    environments: Environments | None
    policy: Agent
    parallel: Parallel
    began: float

    @property
    def ranks(self) -> Ranks:
        """The process of the run."""
        return self.parallel.ranks

    @property
    def steps(self) -> int:
        """Turns of the run; 0 where it is as long as its steps in the world last."""
        return self.recipe.run.steps or 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of the agent."""
        return ()

    def close(self) -> None:
        """End what works in the background."""
        if self.environments is not None:
            self.environments.close()

    def source(self, folder: Path | None) -> Acted:
        """What comes of acting, what is remembered of it in a folder."""
        recipe = self.recipe
        return Acted(
            self.environments,
            recipe.data.env or "",
            recipe.data.options,
            seed=recipe.run.seed,
            budget=recipe.data.env_steps,
            remembers=recipe.method.remembers,
            folder=folder,
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """What moves the agent's parameters."""
        if any(p.requires_grad for p in self.policy.parameters()):
            return self.recipe.optimizer.of(self.policy.groups())
        return torch.optim.SGD([torch.zeros(1)], lr=0.0)  # a table is moved by its method

    def loop(self, run: Path, recorder: Recorder, stopping: Callable[[], str | None]) -> Loop:
        """The loop over these parts, writing into a run's directory."""
        recipe, settings = self.recipe, self.recipe.run
        source, checkpoints = self.source(run / "replay"), Checkpoints(run / "checkpoints", self.ranks)
        plan = Plan(
            steps=settings.steps,
            epochs=None if recipe.data.env_steps is None else 1,
            eval_every=settings.eval_every,
            checkpoint_every=settings.checkpoint_every or settings.eval_every,
            lr=recipe.optimizer.lr,
        )
        turns = Turns(
            agent=self.policy,
            method=recipe.method,
            optimizer=self.optimizer(),
            schedule=recipe.optimizer.schedule,
            lr=recipe.optimizer.lr,
            clip_norm=recipe.optimizer.clip_norm,
            share=lambda step: plan.share(step, source.epochs),
            tried=self.tried,
            seed=settings.seed,
            way_on=lambda: _way_on(run, checkpoints),
            parallel=self.parallel,
        )
        return loop_over(
            turns,
            source,
            checkpoints=checkpoints,
            settings=settings,
            guards=settings.guards.model_copy(update={"spike": "ignore", "unmoved_after": None}),
            plan=plan,
            schedule=recipe.optimizer.schedule,
            device=self.device,
            began=self.began,
            steps=self.steps,
            recorder=recorder,
            identity={"recipe": dump_recipe(recipe), "base": None, "asked": {}},
            held_out=None if self.environments is None or not recipe.data.eval_episodes else lambda: (),
            shown=lambda history: self._shown(run, history.progress.step),
            stopping=stopping,
        )

    def tried(self, agent: Agent) -> Sequence[float]:
        """What whole episodes come to without exploring."""
        if self.environments is None or not self.recipe.data.eval_episodes or self.recipe.method.goal == "prediction":
            return []  # a policy that is given comes to what it comes to
        num, longest = self.recipe.data.eval_episodes, self.recipe.data.eval_steps
        limit = min(longest, self.environments.limit or longest)
        seed = fold(self.recipe.run.seed, "measure") % 2**31
        returns: dict[int, float] = {}
        with environments_of(self.recipe, num_envs=num, seed=seed, like=self.environments, time_limit=limit) as apart:
            for _ in range(limit):
                chosen = agent.act(torch.from_numpy(apart.observations), None)
                for episode in apart.step(apart.spaces.possible(chosen.actions.numpy())).ended:
                    returns.setdefault(episode.index, episode.rewards)
                if len(returns) == num:
                    break
        return list(returns.values())

    def _shown(self, run: Path, step: int) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Values and what is done in each state of a finite world; an episode in pictures, where that is asked for."""
        environments = self.environments
        if environments is None:
            return
        states = environments.spaces.num_states
        if states is not None and states <= _SHOWN_STATES:
            every = environments.spaces.first_state + torch.arange(states)
            values, fields = self.policy.values(every), dict[str, Any]()
            if self.recipe.method.goal != "prediction":
                fields["actions"] = self.policy.act(every, None).actions.tolist()
            if values is not None:
                yield "values", {"values": [round(float(v), 6) for v in values], **fields}
        if self.recipe.data.record:
            yield "frames", self._recorded(run, step)

    def _recorded(self, run: Path, step: int) -> dict[str, Any]:
        """An episode in pictures, in a file of the run."""
        data, policy = self.recipe.data, Policy(self.policy, self.recipe, self._averages)
        assert data.env is not None
        seed = fold(self.recipe.run.seed, "show") % 2**31
        longest, limit = data.time_limit or data.eval_steps, data.time_limit
        seen = record(data.env, policy.act, options=data.options, seed=seed, longest=longest, time_limit=limit)
        path = run / "frames" / f"step-{step}.gif"
        path.parent.mkdir(exist_ok=True)
        write_gif(path, seen.frames, seen.frames_per_second)
        return {"path": str(path.relative_to(run)), "return": seen.rewards, "length": seen.length}

    @property
    def _averages(self) -> dict[str, Any] | None:
        """What observations are normalised by, where they are."""
        known = None if self.environments is None else self.environments.statistics
        return None if known is None or known.observations is None else known.save()

    def export(self, directory: Path, writing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Write the agent: its tensors, and what it is made from."""
        with writing():
            save_agent(self.policy, self.recipe, self._averages, directory)


def _way_on(run: Path, checkpoints: Checkpoints) -> str:
    """What one does with a run that failed within a turn."""
    with suppress(DanluError):
        checkpoints.wait()
    return f"It goes on where it was saved by: danlu resume {run}." if checkpoints.steps() else ""


def assemble_acting(recipe: ActingRecipe, ranks: Ranks = ALONE) -> ActingExperiment:
    """Make and check everything a recipe of acting names.

    Raises:
        RecipeError, UnsupportedError: for what cannot be made.
    """
    began = time.monotonic()
    if ranks.size > 1:
        what = f"an agent learns in one process, and these are {ranks.size}"
        raise UnsupportedError(what, do="Leave torchrun out; data.workers runs slow environments in processes.")
    if recipe.data.workers and recipe.method.by_episode:
        what = f"{name_of(type(recipe.method))} plays whole episodes, one after another and in this process"
        raise RecipeError(what, where="data.workers", do="Leave it out, or choose a method that takes steps.")
    device = Device.choose("cpu" if recipe.run.device == "auto" else recipe.run.device, recipe.run.threads, ranks)
    environments = None if recipe.data.env is None else environments_of(recipe)
    try:
        policy = agent_of(recipe, environments)
    except BaseException:
        if environments is not None:
            environments.close()
        raise
    return ActingExperiment(recipe, device, environments, policy, Parallel(), began)
