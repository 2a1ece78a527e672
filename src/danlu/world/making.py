"""One Gymnasium environment, made, or a sentence that says why it could not be."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import OrderEnforcing

from danlu.errors import DanluError, RecipeError, UnsupportedError, did_you_mean
from danlu.world import GRIDWORLD

_SHORT = {"gridworld": GRIDWORLD}
_EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "toy_text": "toy-text", "classic_control": "classic-control"}
_OUR_OWN = "mujoco"
"""What Danlu installs, too."""
_PACKAGES = {
    "ALE": ("ale-py", "ale_py"),
    "MiniGrid": ("minigrid", "minigrid"),
    "BabyAI": ("minigrid", "minigrid"),
    "dm_control": ("shimmy", "shimmy"),
}
"""By what their environments' names begin with: packages, and the modules that register them."""
_JAX = ("phys2d", "tabular")
_OF_ALL = {"self", "args", "kwargs", "render_mode"}


@dataclass(frozen=True, eq=False)
class Made:
    """One environment, without the wrapper that cuts its episodes.

    Attributes:
        env: to be stepped.
        name: the id Gymnasium knows it by.
        limit: steps after which an episode is to be cut; None for never, or where the environment does so itself.
    """

    env: gymnasium.Env[Any, Any]
    name: str
    limit: int | None


def find(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an environment.

    Args:
        env_id: an id, as "CartPole-v1"; "gridworld"; or "module:Id", whose module is imported first.

    Raises:
        RecipeError: where there is none, with the nearest that there is.
        UnsupportedError: where a package of its own has it, which is not there.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:
            what = f"the module '{module}' of '{env_id}' cannot be imported: {type(error).__name__}: {error}"
            raise RecipeError(what, where="data.env") from None
    name = _SHORT.get(name, name)
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return spec
    namespace = name.partition("/")[0] if "/" in name else name.partition("-")[0]
    if namespace in _PACKAGES:
        what = f"'{name}' comes with a package that is not installed, or not imported"
        package, its_module = _PACKAGES[namespace]
        do = f"Run `pip install {package}`, and name its module: data.env={its_module}:{name}."
        raise UnsupportedError(what, where="data.env", do=do)
    raise RecipeError(f"there is no environment '{name}'", where="data.env", do=_near(name))


def make(
    env_id: str,
    options: Mapping[str, Any] | None = None,
    *,
    time_limit: int | None = None,
    render_mode: str | None = None,
) -> Made:
    """Make one environment, with as little around it as can be.

    Args:
        env_id: see `find`.
        options: what the environment takes.
        time_limit: steps after which an episode is cut; None for what the environment is registered with.
        render_mode: what `render` gives.

    Raises:
        RecipeError: for an unknown id, or options that the environment does not take.
        UnsupportedError: for a package that is missing.
    """
    spec = find(env_id)
    given = dict(options or {})
    rendering = {} if render_mode is None else {"render_mode": render_mode}
    try:
        env = gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **given, **rendering)
    except DanluError:
        raise
    except (DependencyNotInstalled, ImportError) as error:
        said, do = str(error), _install(spec)
        said = said.partition(", run `pip")[0] if do else said  # which is told once
        what = f"'{spec.id}' needs a package that is missing: {said}"
        raise UnsupportedError(what, where="data.env", do=do) from None
    except Exception as error:
        said = str(error).partition(" was raised from the environment creator")[0]
        if isinstance(error, TypeError) and given and "argument" in said:
            what = f"'{spec.id}' does not take {given}: {said}"
            raise RecipeError(what, where="data.options", do=_takes(spec, given)) from None
        what = f"'{spec.id}' could not be made with {given}: {type(error).__name__}: {said}"
        raise RecipeError(what, where="data.env") from error
    # It refuses a step before a reset, which cannot happen here, and costs a call a step.
    bare = env.env if type(env) is OrderEnforcing and render_mode is None else env
    return Made(bare, spec.id, spec.max_episode_steps if time_limit is None else time_limit)


def _near(name: str) -> str:
    known = [*gymnasium.registry, *_SHORT]
    kind = name.rpartition("-v")[0] or name
    versions = sorted(other for other in known if other.rpartition("-v")[0] == kind)
    if versions:
        return f"There is {', '.join(versions)}."
    suggestion = did_you_mean(name, known)
    return suggestion if suggestion.startswith("Did") else "`gymnasium.pprint_registry()` lists what there is."


def _install(spec: EnvSpec) -> str:
    place = str(spec.entry_point)
    if any(f".{part}." in place for part in _JAX):
        return 'Run `pip install "gymnasium[jax]"`.'
    extra = next((extra for part, extra in _EXTRAS.items() if f".{part}" in place), None)
    if extra is None and spec.id.partition("-")[0] in _mujoco_names():
        extra = "mujoco"
    if extra is None:
        return ""
    package = "danlu" if extra == _OUR_OWN else "gymnasium"
    return f'Run `pip install "{package}[{extra}]"`.'


def _mujoco_names() -> set[str]:
    """Names of which some version is MuJoCo's; older versions need a package that is no longer kept up."""
    return {s.id.partition("-")[0] for s in gymnasium.registry.values() if ".mujoco." in str(s.entry_point)}


def _takes(spec: EnvSpec, given: Mapping[str, Any]) -> str:
    entry = spec.entry_point
    creator = entry if callable(entry) else load_env_creator(str(entry))
    names = [name for name in inspect.signature(creator).parameters if name not in _OF_ALL]
    if not names:
        return "It takes no options."
    wrong = next((name for name in given if name not in names), None)
    suggestion = did_you_mean(wrong, names) if wrong is not None else ""
    return suggestion if suggestion.startswith("Did") else f"It takes {', '.join(names)}."
