"""The models that a recipe names: what is trained, and what stands beside it only to be asked."""

from __future__ import annotations

import copy

import torch

from danlu.contracts import ArchitectureConfig, SequenceModel
from danlu.data import Tokenizer
from danlu.engine.frozen import Bare, freeze
from danlu.errors import RecipeError, UnsupportedError
from danlu.fingerprint import fingerprints, total
from danlu.pretrained import Pretrained, read_pretrained
from danlu.recipe import HubModel, Recipe


def read_model(named: ArchitectureConfig | HubModel, seed: int, *, fingerprinted: bool = False) -> Pretrained:
    """A model that a recipe names, on the host, and the fingerprint of its files' weights if it is wanted."""
    if isinstance(named, HubModel):
        return read_pretrained(
            named.directory,
            trust_remote_code=named.trust_remote_code,
            bridge=named.bridge,
            quantize=named.quantize,
            fingerprinted=fingerprinted,
        )
    model = named.build()
    named.initialize(model, seed)
    return Pretrained(model, None)


def models_beside(recipe: Recipe, policy: SequenceModel) -> dict[str, SequenceModel]:
    """The models that the method asks beside what it trains, on the host; none for what the policy itself can say."""
    asked = {}
    for role, way in recipe.method.asks.items():
        named = recipe.asked(role)
        if named is not None:
            model = asked[role] = freeze(read_model(named, recipe.run.seed).model)
            _check_beside(role, named, model.config, policy.config, recipe)
        elif way != "model" and _comes_off(policy):
            asked[role] = Bare(policy)
        elif way != "precomputed":
            asked[role] = freeze(copy.deepcopy(policy))
    return asked


def _comes_off(policy: SequenceModel) -> bool:
    """Whether it wears an adapter without which it is what it was: one that leaves the model's own weights alone."""
    if policy.adapted is None:
        return False
    try:
        with policy.adapted.off():
            return True
    except UnsupportedError:
        return False


def mark_of(model: SequenceModel, base: int | None) -> int | None:
    """The fingerprint of what a model is made of: of one without its adapter, that of its base."""
    return base if isinstance(model, Bare) else total(fingerprints(model.parameters()))


def bytes_of(named: ArchitectureConfig | HubModel) -> int:
    """How much a model takes on the host, in float32."""
    if isinstance(named, HubModel):
        return 2 * sum(file.stat().st_size for file in named.directory.glob("*.safetensors"))
    with torch.device("meta"):
        return 4 * sum(p.numel() for p in named.build().parameters())


def _check_beside(
    role: str,
    named: ArchitectureConfig | HubModel,
    config: ArchitectureConfig,
    policy: ArchitectureConfig,
    recipe: Recipe,
) -> None:
    """A model can be asked about the policy's tokens.

    Raises:
        RecipeError: when it has others, or fewer positions than the data need.
    """
    where = f"model.{role}"
    if config.vocabulary != policy.vocabulary:
        what = f"the {role} has {config.vocabulary} tokens, and the policy {policy.vocabulary}"
        raise RecipeError(what, where=where, do="Give one with the policy's tokenizer.")
    if config.scores:
        raise RecipeError(f"the {role} scores sequences, and predicts no tokens", where=where)
    if config.longest is not None and recipe.data.context > config.longest:
        what = f"data.context ({recipe.data.context}) exceeds the {role}'s {config.longest} positions"
        raise RecipeError(what, where=where, do="Lower data.context.")
    if isinstance(named, HubModel) and isinstance(recipe.policy, HubModel):
        both = [each.directory / "tokenizer.json" for each in (named, recipe.policy)]
        if all(file.is_file() for file in both):
            own, theirs = (Tokenizer.load(file.parent).fingerprint for file in both)
            if own != theirs:
                what = f"the {role}'s tokenizer is another than the policy's"
                raise RecipeError(what, where=where, do="Give one with the policy's tokenizer.")
