from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

import danlu
from danlu.config import Config
from danlu.data import Part
from danlu.errors import RecipeError
from danlu.reading import _kind, dump_recipe, load_recipe
from danlu.recipe import HubModel, Recipe, Roles
from danlu.registry import exported
from danlu.resuming import RULES, changes, refuse_or_tell, rule_of
from danlu.yaml_text import parse_value
from engine.runs import QWEN3, experiment, lines, recipe


def keys(config: type[Config], below: str = "") -> Iterator[str]:
    """The dotted name of every field that a recipe may have, whatever is chosen where there is a choice."""
    for name, info in config.model_fields.items():
        key = f"{below}{name}"
        parts = [entry.target for entry in exported(kind)] if (kind := _kind(info)) else _config(info)
        if kind is not None:
            yield f"{key}.name"
        if kind == "architecture":
            parts += [HubModel, Roles] if config is Recipe else [HubModel]
        for part in parts:
            yield from keys(part, f"{key}.")
        if not parts:
            yield key
    if config.__name__ == "DataConfig":
        yield from (f"{below}train.0.{name}" for name in Part.model_fields)


def _config(info: FieldInfo) -> list[type[Config]]:
    return [info.annotation] if isinstance(info.annotation, type) and issubclass(info.annotation, Config) else []


KEYS = sorted(set(keys(Recipe)))


def test_every_field_there_is_has_a_rule_of_its_own() -> None:
    """What is new under `run` falls through to the last rule, and here; another noun's new field has the noun's rule."""
    assert len(KEYS) > 80
    assert {"run.steps", "data.train.0.weight", "optimizer.schedule.cooldown", "method.z_loss", "model.path"} <= {*KEYS}
    assert [key for key in KEYS if rule_of(key) is RULES[-1]] == []
    assert all(rule.told and rule.kind in ("free", "warned", "refused") for rule in RULES)
    assert rule_of("furnace.heat") is RULES[-1]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("method.reference", "free"),
        ("method.beta", "warned"),
        ("model.policy.path", "warned"),
        ("model.policy.hidden_size", "refused"),
        ("model.reference.path", "warned"),
        ("model.reference", "refused"),
        ("model.reference.bridge", "refused"),
    ],
)
def test_what_becomes_of_roles(key: str, kind: str) -> None:
    assert rule_of(key).kind == kind


def test_no_rule_is_hidden_by_one_above_it() -> None:
    for number, rule in enumerate(RULES):
        example = rule.pattern.replace("*", "zzz")
        assert RULES.index(rule_of(example)) == number, rule.pattern


EXPECTED = {
    "free": "run.steps run.epochs run.eval_every run.checkpoint_every run.keep_checkpoints run.prompts run.loggers "
    "run.threads run.device run.pack_tokens run.compile run.parallel run.context_parallel run.recompute run.max_time run.guards.spike "
    "data.workers data.timeout data.cache data.quarantine",
    "warned": "optimizer.lr optimizer.schedule.name optimizer.schedule.warmup optimizer.clip_norm optimizer.betas "
    "optimizer.weight_decay run.precision method.label_smoothing data.step_samples data.step_tokens "
    "data.train.1.weight data.train model.path",
    "refused": "model.hidden_size model.name run.seed run.out method.name optimizer.name "
    "data.context data.tokenizer data.shuffle data.train.0.seed data.train.0.files data.add_eos data.vocab_size",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_free_told_and_refused(kind: str) -> None:
    assert {rule_of(key).kind for key in EXPECTED[kind].split()} == {kind}


DATA = {
    "data.workers=1",
    "data.quarantine=aside",
    "data.cache=other",
    "data.step_samples=3",
    "data.held_out_samples=2",
    "data.train=[{files: F, weight: 2}, {files: G, weight: 1}]",
    "data.train=[{files: F, weight: 1, epochs: 2}, {files: G, weight: 1}]",
    "data.train=[{files: F, weight: 1, seed: 3}, {files: G, weight: 1}]",
    "data.train=[{files: G, weight: 1}, {files: F, weight: 1}]",
    "data.train=[{files: F, weight: 1, field: '{text}!'}, {files: G, weight: 1}]",
    "data.context=16",
    "data.shuffle=false",
    "data.add_eos=false",
    "data.too_long=truncate_left",
    "data.held_out=0.3",
    "data.field='{text}?'",
    "data.vocab_size=290",
    "run.seed=4",
    "run.pack_tokens=80",
    "run.epochs=3",
    "run.steps=99",
    "optimizer.lr=1",
    "method.z_loss=0.1",
}


@pytest.mark.parametrize("override", sorted(DATA))
def test_of_the_data_what_the_sources_state_identifies_is_refused_and_nothing_else(
    tmp_path: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the states of two sources, which are told apart exactly where a checkpoint's is refused."""
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"other {'lead ' * i}"}) + "\n" for i in range(20)))
    made = recipe(tmp_path)
    files = {"F": made["data"]["train"], "G": str(other)}
    made["data"]["train"] = [{"files": file, "weight": 1} for file in files.values()]
    value = override.partition("=")[2]
    for letter, file in files.items():
        value = value.replace(f"files: {letter}", f"files: {file}")
    override = f"{override.partition('=')[0]}={value}"
    before, after = load_recipe(made), load_recipe(made, [override])
    found = changes(dump_recipe(before), dump_recipe(after))
    assert found

    def identity(*overrides: str) -> Any:
        parts = experiment(made, *overrides)
        state = parts.source.state_dict()
        parts.close()
        return [{k: part[k] for k in ("corpus", "seed", "shuffle", "pool_bytes")} for part in state["parts"]]

    refused = any(change.kind == "refused" for change in found)
    assert refused == (identity() != identity(override)), [change.sentence for change in found]


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    return dump_recipe(load_recipe(recipe(tmp_path, QWEN3)))


def changed(recipe: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return dump_recipe(load_recipe(recipe, overrides))


def test_nothing_changed_is_no_change(plain: dict[str, Any]) -> None:
    assert changes(plain, changed(plain)) == []
    assert refuse_or_tell([]) == []


def test_all_that_is_refused_is_told_in_one_sentence(plain: dict[str, Any]) -> None:
    after = changed(plain, "model.hidden_size=16", "run.seed=1", "run.threads=2", "data.tokenizer=some/where")
    with pytest.raises(RecipeError) as caught:
        refuse_or_tell(changes(plain, after), where="runs/a")
    assert str(caught.value) == (
        "runs/a: cannot be changed in a run that has begun: model.hidden_size (32 -> 16), "
        "data.tokenizer (null -> some/where), run.seed (0 -> 1). Start a new run with run.out=..."
    )


def test_what_may_change_is_told_field_by_field(plain: dict[str, Any]) -> None:
    after = changed(plain, "run.threads=2", "optimizer.betas=[0.8, 0.9]", "run.prompts=[the]", "run.epochs=3")
    assert refuse_or_tell(changes(plain, after)) == [
        "optimizer.betas is [0.8, 0.9] from here on, and was [0.9, 0.95]: "
        "averages that were made with the old value are gone on with",
        "run.threads is 2 from here on, and was 1: results may differ in their last bits",
        "run.epochs is 3 from here on, and was null: the schedule ends with the run, so its horizon moves",
        'run.prompts is ["the"] from here on, and was []: a matter of what is shown',
    ]


def test_of_a_part_with_another_name_only_the_name_is_told(plain: dict[str, Any]) -> None:
    found = changes(plain, changed(plain, "optimizer.schedule=wsd", "method=sft", "model=gpt2"))
    assert [(change.key, change.before, change.after, change.kind) for change in found] == [
        ("model.name", "qwen3", "gpt2", "refused"),
        ("method.name", "next_token", "sft", "refused"),
        ("optimizer.schedule.name", "cosine", "wsd", "warned"),
    ]


def test_fields_that_one_side_lacks_are_changes(plain: dict[str, Any]) -> None:
    older = {**plain, "run": {k: v for k, v in plain["run"].items() if k != "compile"}}
    assert [(c.key, c.before, c.after) for c in changes(older, plain)] == [("run.compile", None, False)]
    assert [(c.key, c.before, c.after) for c in changes(plain, older)] == [("run.compile", False, None)]


def test_parts_of_a_mixture_are_compared_one_by_one(plain: dict[str, Any]) -> None:
    parts = "[{files: a, weight: 1}, {files: b, weight: %s}]"
    one, two, three = (changed(plain, f"data.train={text}") for text in (parts % 1, parts % 3, "[{files: a}]"))
    (weight,) = changes(one, two)
    assert (weight.key, weight.before, weight.after, weight.kind) == ("data.train.1.weight", 1.0, 3.0, "warned")
    (train,) = changes(one, three)
    assert (train.key, train.kind) == ("data.train", "warned")  # its content decides
    assert len(train.shown) < 150


RATES = [
    ("run.steps=24", "{name: wsd, warmup: 0.25, cooldown: 0.5}", " by the old horizon"),
    ("run.steps=30", "{name: cosine}", " by the old horizon"),
    ("optimizer.lr=0.5e-3", "{name: cosine}", ""),
    ("optimizer.schedule.floor=0.9", "{name: cosine}", ""),
]


@pytest.mark.parametrize(("override", "schedule", "by"), RATES)
def test_the_learning_rates_that_are_told_are_those_of_the_runs(
    tmp_path: Path, override: str, schedule: str, by: str
) -> None:
    """Of the ninth update, in the run as it was and in the run as it goes on."""
    made = recipe(tmp_path, QWEN3, eval_every=4, checkpoint_every=4)
    made["optimizer"]["schedule"] = parse_value(schedule)
    run = danlu.train(made).path
    rate = lines(run / "metrics.jsonl")[9]["lr"]
    before = dump_recipe(load_recipe(run / "recipe.yaml"))
    (change,) = changes(before, changed(before, override), step=8)
    danlu.resume(run, override, step=8)
    row = lines(run / "metrics.jsonl")[9]
    assert row["step"] == 9
    assert row["lr"] != pytest.approx(rate, rel=1e-2)
    told = f"; the learning rate of step 9 was {rate:.4g}{by} and is {row['lr']:.4g}"
    assert change.sentence.endswith(told)


def test_the_rate_of_a_run_of_so_many_passes_is_by_passes_and_told_once(plain: dict[str, Any]) -> None:
    before = changed(plain, "run.steps=null", "run.epochs=2", "optimizer.schedule={name: wsd, cooldown: 1, warmup: 0}")
    after = changed(before, "run.epochs=4", "run.steps=1000")
    found = changes(before, after, step=30, epochs=1.0)
    assert [change.key for change in found] == ["run.steps", "run.epochs"]
    assert found[0].sentence.endswith("the learning rate of step 31 was about 0.0005 by the old horizon and is 0.00075")
    assert "learning rate" not in found[1].sentence
    constant = changed(plain, "optimizer.schedule={name: constant, warmup: 0}")
    (change,) = changes(constant, changed(constant, "run.steps=90"), step=8)
    assert "learning rate" not in change.sentence
