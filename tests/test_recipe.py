from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.commented import commented_recipe
from danlu.config import Config
from danlu.errors import RecipeError
from danlu.reading import builtin_recipes, dump_recipe, family_of, load_recipe, read_recipe, recipe_text
from danlu.recipe import HubModel, Recipe
from danlu.registry import exported, lookup
from danlu.yaml_text import to_yaml

PLAIN: dict[str, Any] = {
    "model": {"name": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2},
    "method": "next_token",
    "data": {"train": "a.txt", "context": 32, "step_samples": 5},
    "run": {"steps": 6},
}
TEXT = """\
# a comment
model:
  name: qwen3
  hidden_size: 32
method: next_token
data:
  train: a.txt
  context: 32
  step_samples: 5

optimizer:
  lr: 1e-3
  name: adamw
  schedule: {name: cosine,
             warmup: 0.5}
run:
  steps: 6
"""


def sentence(source: Any, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(found: str, place: str, words: str) -> bool:
    """Whether a sentence begins with a place and goes on so; a question mark stands for itself."""
    return re.fullmatch(re.escape(place) + words.replace("?", "[?]") + "( .*)?", found) is not None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    return path


def changed(file: Path, old: str, new: str) -> Path:
    assert TEXT.count(old) == 1
    file.write_text(TEXT.replace(old, new))
    return file


def test_a_recipe_is_read(file: Path) -> None:
    recipe = load_recipe(file)
    assert (recipe.model.model_type, recipe.model.hidden_size) == ("qwen3", 32)
    assert (recipe.optimizer.lr, recipe.optimizer.schedule.warmup) == (1e-3, 0.5)
    assert recipe.run.steps == 6
    assert load_recipe(recipe) == recipe
    assert load_recipe(str(file)) == recipe


FAULTS = [
    ("hidden_size: 32", "hiden_size: 32", 4, "model.hiden_size: there is no such key. Did you mean 'hidden_size'?"),
    ("hidden_size: 32", "hidden_size: wide", 4, "model.hidden_size: input should be a valid integer, .*, not 'wide'."),
    ("hidden_size: 32", "hidden_size: 1", 4, "model.hidden_size: input should be greater than or equal to 2, not 1."),
    ("hidden_size: 32", "hidden_size:", 4, "model.hidden_size: input should be a valid integer, not None."),
    ("name: qwen3", "name: qwen33", 3, "model.name: no architecture is called 'qwen33'. Did you mean 'qwen3'?"),
    ("  name: qwen3\n", "", 2, "model: it does not name its architecture. Known: .*gpt2.*"),
    ("next_token", "next_tokn", 5, "method.name: no method is called 'next_tokn'. Did you mean 'next_token'?"),
    (
        "next_token",
        "[next_token]",
        5,
        r"method: expected a name \(method\) or a mapping with one, not \['next_token'\].",
    ),
    ("method: next_token", "methd: next_token", 5, "methd: there is no such key. Did you mean 'method'?"),
    ("train: a.txt", "train: 5", 7, "data.train: input should be a valid string, not 5."),
    ("train: a.txt", "trian: a.txt", 7, "data.trian: there is no such key. Did you mean 'train'?"),
    ("  train: a.txt\n", "", 6, "data.train: it is not set. Write it, or give data.train=... after the recipe."),
    ("train: a.txt", "{train: a.txt, held_out: 1.5}", 7, None),
    ("train: a.txt", "train: a.txt\n  held_out: 1.5", 8, "data.held_out: input should be less than 1, not 1.5."),
    (
        "step_samples: 5",
        "step_samples: 5\n  step_tokens: 9",
        6,
        "data: a step is so many samples or so many tokens: .*",
    ),
    ("lr: 1e-3", "lr: -1e-3", 12, "optimizer.lr: input should be greater than 0, not -0.001."),
    ("lr: 1e-3", "betas: [0.9, 1.5]", 12, "optimizer.betas.1: input should be less than 1, not 1.5."),
    ("name: adamw", "name: adam", 13, "optimizer.name: no optimizer is called 'adam'. Did you mean 'adamw'?"),
    ("warmup: 0.5", "warmup: 2", 15, "optimizer.schedule.warmup: input should be less than 1, not 2."),
    ("warmup: 0.5", "warmpu: 0", 15, "optimizer.schedule.warmpu: there is no such key. Did you mean 'warmup'?"),
    ("steps: 6", "steps: 0", 17, "run.steps: input should be greater than or equal to 1, not 0."),
    ("steps: 6", "steps: 1.5", 17, "run.steps: input should be a valid integer, .*, not 1.5."),
    ("  steps: 6", "  seed: 1", 16, "run: a run is so many steps or so many epochs: set steps, epochs or both."),
    ("run:\n  steps: 6", "run: 6", 16, "run: expected fields of RunConfig, not 6."),
    (
        "steps: 6",
        "steps: 6\n  precision: int4",
        18,
        "run.precision: input should be 'fp32', 'bf16' or 'fp16', not 'int4'.",
    ),
    (
        "steps: 6",
        "steps: 6\n  loggers: [stdout]",
        18,
        "run.loggers.0: input should be 'tensorboard' or 'wandb', not 'stdout'.",
    ),
    (
        "method: next_token",
        "method: next_token\nmethod: next_token",
        6,
        r"the recipe is not YAML \(key 'method' is given twice\).",
    ),
    ("lr: 1e-3", "lr: 1e-3\n  lr: 1e-3", 13, r"the recipe is not YAML \(key 'lr' is given twice\)."),
    ("lr: 1e-3", "lr: 1e-3: 5", 12, r"the recipe is not YAML \(mapping values are not allowed here\)."),
    ("lr: 1e-3", "? [lr]\n  : 5", 12, r"the recipe is not YAML \(a key is not a word\)."),
    (
        "lr: 1e-3",
        "lr: !!python/name:os.system",
        12,
        r"the recipe is not YAML \(could not determine a constructor .*\).",
    ),
    ("lr: 1e-3", "\tlr: 1e-3", 12, r"the recipe is not YAML \(.*\)."),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_every_fault_is_named_by_its_line(file: Path, old: str, new: str, line: int, words: str | None) -> None:
    found = sentence(changed(file, old, new))
    if words is not None:
        assert said(found, f"{file}:{line}: ", words), found
    else:
        assert found.startswith(f"{file}:")


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just words", "5", "null", "# nothing"])
def test_what_is_no_mapping_is_no_recipe(file: Path, content: str) -> None:
    file.write_text(content)
    expected = f"{file}: a recipe is a mapping of nouns: model, method, data, optimizer, run."
    assert sentence(file) == expected


def test_what_cannot_be_read_is_no_recipe(tmp_path: Path, file: Path) -> None:
    file.write_bytes(b"model: \xff")
    assert sentence(file) == f"{file}: the recipe is not UTF-8 text."
    file.write_text("model: \x01")
    assert sentence(file).startswith(f"{file}: the recipe is not YAML (unacceptable character")
    file.write_text("a: &a {b: *a}")
    assert sentence(file) == f"{file}: the recipe is nested too deeply."
    file.write_text("[" * 5000)
    assert sentence(file) == f"{file}: the recipe is nested too deeply."
    assert sentence("quickstar").endswith("Give a file or a built-in name. Did you mean 'quickstart'?")
    assert sentence(tmp_path).startswith(f"{tmp_path}: there is no such recipe")
    assert sentence(file / "below").startswith(f"{file / 'below'}: there is no such recipe")
    assert sentence("x" * 5000).startswith("x" * 5000 + ": the recipe cannot be read: File name too long")


def test_a_noun_that_is_missing_is_named(file: Path) -> None:
    assert (
        sentence(changed(file, "run:\n  steps: 6\n", ""))
        == f"{file}: run: it is not set. Write it, or give run=... after the recipe."
    )
    assert (
        sentence({k: v for k, v in PLAIN.items() if k != "model"})
        == "recipe: model: it is not set. Write it, or give model=... after the recipe."
    )


def test_what_does_not_go_together_is_said(file: Path) -> None:
    assert sentence(file, "run.pack_tokens=31") == (
        f"{file}: run.pack_tokens (31) is less than data.context (32): one sample would not fit."
    )
    assert sentence(PLAIN, "model.n_positions=8") == "recipe: data.context (32) exceeds the model's 8 positions."
    assert "n_embd (32) is not a multiple of n_head (3)" in sentence(PLAIN, "model.n_head=3")


def test_overrides_set_one_key(file: Path) -> None:
    recipe = load_recipe(
        file, ["run.steps=9", "optimizer.lr=2e-4", "data.train=[a, b]", "run.out=a=b", "run.prompts=['x: y', '']"]
    )
    assert (recipe.run.steps, recipe.optimizer.lr, recipe.run.out) == (9, 2e-4, "a=b")
    assert (recipe.data.train, recipe.run.prompts) == (["a", "b"], ("x: y", ""))
    recipe = load_recipe(PLAIN, ["optimizer.weight_decay=0", "optimizer.name=adamw", "method.z_loss=1e-4"])
    assert (recipe.optimizer.weight_decay, recipe.method.z_loss) == (0, 1e-4)
    assert load_recipe(PLAIN, ["run.steps=null", "run.epochs=3"]).run.epochs == 3
    assert load_recipe(PLAIN, ["model=gpt2"]).model.n_embd == 768
    assert load_recipe(PLAIN, ["model=some/dir"]).model == HubModel(path="some/dir")
    short = {**PLAIN, "model": "gpt2", "optimizer": "adamw"}
    recipe = load_recipe(short, ["model.n_layer=3", "optimizer.schedule.warmup=0.3"])
    assert (recipe.model.n_layer, recipe.optimizer.schedule.warmup) == (3, 0.3)
    assert load_recipe(PLAIN, ["optimizer.eps=1e-6"]).optimizer.eps == 1e-6  # of the one it is by default
    assert load_recipe(short, ["optimizer.schedule=wsd"]).optimizer.schedule == lookup("schedule", "wsd")()


def test_a_model_may_have_roles(file: Path) -> None:
    pairs = {**PLAIN, "method": "dpo", "run": {"steps": 6, "pack_tokens": 64}}
    plain = load_recipe(pairs)
    assert (plain.policy, plain.asked("reference")) == (plain.model, None)
    other = {"name": "qwen3", "hidden_size": 32}
    recipe = load_recipe({**pairs, "model": {"policy": pairs["model"], "reference": other}})
    assert recipe.policy == plain.model
    assert recipe.asked("reference") == lookup("architecture", "qwen3")(hidden_size=32)
    assert dump_recipe(recipe)["model"].keys() == {"policy", "reference"}
    assert load_recipe(dump_recipe(recipe)) == recipe
    for overrides in (["model=some/dir", "model.reference=qwen3"], ["model.policy=some/dir", "model.reference=qwen3"]):
        named = load_recipe({**pairs, "model": {"policy": "gpt2"}}, overrides)
        assert named.policy == HubModel(path="some/dir")
        assert named.asked("reference") == lookup("architecture", "qwen3")()
    beside = load_recipe(pairs, ["model.reference=other/dir", "model.reference.bridge=true"])
    assert beside.policy == plain.model
    assert beside.asked("reference") == HubModel(path="other/dir", bridge=True)
    assert load_recipe({**pairs, "model": {"policy": "gpt2", "reference": None}}).policy.n_embd == 768
    larger = recipe.with_model("reference", recipe.policy)
    assert (larger.policy, larger.asked("reference")) == (recipe.policy, recipe.policy)
    assert plain.with_model("policy", HubModel(path="a")).model == HubModel(path="a")


ROLE_FAULTS = [
    ({"reference": "gpt2"}, "recipe: model: it does not name its architecture. Known: .*"),
    ({"policy": "gpt2", "referent": "gpt2"}, "recipe: model.referent: there is no such key. Did you mean 'reference'?"),
    ({"policy": "gpt2", "path": "a"}, "recipe: model.path: there is no such key.*"),
    ({"policy": "gpt2", "reference": "gtp2"}, "recipe: model.reference: 'gtp2' is neither an architecture nor .*"),
    ({"policy": {"name": "gpt2", "n_embedding": 3}}, "recipe: model.policy.n_embedding: there is no such key.*"),
    ({"policy": {"policy": "gpt2"}}, "recipe: model.policy: it does not name its architecture. .*"),
]


@pytest.mark.parametrize(("model", "words"), ROLE_FAULTS)
def test_roles_that_cannot_be_meant_are_told(model: Any, words: str) -> None:
    found = sentence({**PLAIN, "method": "dpo", "run": {"steps": 6, "pack_tokens": 64}, "model": model})
    assert re.fullmatch(words.replace("?", "[?]"), found), found


OVERRIDE_FAULTS = [
    ("run.stepz=9", "run.stepz: there is no such key. Did you mean 'steps'?"),
    ("run.steps=many", "run.steps: input should be a valid integer, .*, not 'many'."),
    ("run.steps=[1", r"run.steps: input should be a valid integer, .*, not '\[1'."),
    ("run={steps: many}", "run.steps: input should be a valid integer, .*, not 'many'."),
    ("run.steps.much=1", "run.steps: input should be a valid integer, not {'much': 1}."),
    ("modle.hidden_size=9", "modle: there is no such key. Did you mean 'model'?"),
    ("method=next", "method.name: no method is called 'next'. .*"),
    ("model.name=gtp2", "model.name: no architecture is called 'gtp2'. Did you mean 'gpt2'?"),
    ("optimizer.schedule=cosin", "optimizer.schedule.name: no schedule is called 'cosin'. Did you mean 'cosine'?"),
    ("run", "an override is key=value. For example run.steps=100."),
    ("=5", "an override is key=value. For example run.steps=100."),
    ("run..steps=5", "an override is key=value. For example run.steps=100."),
]


@pytest.mark.parametrize(("override", "words"), OVERRIDE_FAULTS, ids=[fault[0] for fault in OVERRIDE_FAULTS])
def test_a_fault_of_an_override_is_named_by_it(file: Path, override: str, words: str) -> None:
    found = sentence(file, "run.seed=1", override)
    assert said(found, f"override {override}: ", words), found


def test_overrides_leave_a_dictionary_as_it_was() -> None:
    raw = {**PLAIN, "run": {"steps": 6}}
    load_recipe(raw, ["run.steps=9", "model.n_layer=1"])
    assert raw == {**PLAIN, "run": {"steps": 6}}


def test_numbers_are_read_as_people_write_them(file: Path) -> None:
    for written, value in (
        ("1e-3", 1e-3),
        ("5E-4", 5e-4),
        ("1.e-3", 1e-3),
        (".5e-2", 5e-3),
        ("1_0e-4", 1e-3),
        ("0.1", 0.1),
    ):
        assert load_recipe(file, [f"optimizer.lr={written}"]).optimizer.lr == value
    for written in ("e3", "1e", "x1e3", "1e3x"):
        assert load_recipe(file, [f"run.out={written}"]).run.out == written


def test_stdlib_stands_for_the_standard_library(file: Path) -> None:
    stdlib = sysconfig.get_paths()["stdlib"]
    source = changed(file, "train: a.txt", "train: ['${stdlib}/*.py', b.txt]\n  held_out: ${stdlib}/json")
    recipe = load_recipe(source, ["run.out=${stdlib}x"])
    assert (recipe.data.train, recipe.data.held_out) == ([f"{stdlib}/*.py", "b.txt"], f"{stdlib}/json")
    assert recipe.run.out == f"{stdlib}x"
    assert load_recipe(source, interpolate=False).data.train == ["${stdlib}/*.py", "b.txt"]


def test_builtin_recipes_are_sound() -> None:
    assert "quickstart" in builtin_recipes()
    for name in builtin_recipes():
        recipe = read_recipe(name)
        assert read_recipe(dump_recipe(recipe)) == recipe
        assert recipe_text(name).startswith("#")


WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(lambda t: "${" not in t),
    st.sampled_from(
        ["1e5", ".5e3", "1_0", "0x1f", "null", "~", "yes", "12:30", "2020-01-01", "a\nb", "a\n", "\n", " a ", "#x", "'", '"', "-",
         "{a}\n{b}", "- x", "a: b", "[a", "&a", "*a", "!x", "%", "@", "`", "=", "<<", "\t", "火", "\u2028", "\x85", ""]
    ),
)  # fmt: skip
SCHEDULES = st.one_of(
    st.builds(lambda w: {"name": "constant", "warmup": w}, st.floats(0, 0.9)),
    st.builds(lambda w, f: {"name": "cosine", "warmup": w, "floor": f}, st.floats(0, 0.9), st.floats(0, 1)),
    st.builds(lambda w, c: {"name": "wsd", "warmup": w, "cooldown": c}, st.floats(0, 0.5), st.floats(0.01, 0.5)),
)
MODELS = st.one_of(
    st.builds(lambda path: {"path": path}, WORDS),
    st.builds(lambda n, p: {"name": "gpt2", "n_layer": n, "embd_pdrop": p}, st.integers(1, 9), st.floats(0, 0.9)),
    st.builds(
        lambda name, theta: {
            "name": name,
            "rope_theta": theta,
            "rope_scaling": {"rope_type": "linear", "factor": theta},
        },
        st.sampled_from(["llama", "qwen2", "qwen3"]),
        st.floats(1e-3, 1e12),
    ),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe."""
    run: dict[str, Any] = {draw(st.sampled_from(["steps", "epochs"])): draw(st.integers(1, 9))}
    run |= {
        "out": draw(st.none() | WORDS),
        "prompts": draw(st.lists(WORDS, max_size=3)),
        "compile": draw(st.booleans()),
    }
    run |= {
        "precision": draw(st.sampled_from(["fp32", "bf16", "fp16"])),
        "loggers": draw(st.sampled_from([[], ["wandb"]])),
    }
    data = {"train": draw(WORDS | st.lists(WORDS, min_size=1, max_size=3)), "context": draw(st.integers(1, 64))}
    data |= {draw(st.sampled_from(["step_samples", "step_tokens"])): 3, "field": draw(WORDS)}
    data |= {"held_out": draw(st.none() | st.floats(0.01, 0.99) | WORDS | st.lists(WORDS, min_size=1, max_size=2))}
    optimizer = {"name": "adamw", "lr": draw(st.floats(1e-12, 1e3)), "schedule": draw(SCHEDULES)}
    optimizer |= {"betas": [draw(st.floats(0, 0.999)), 0.5], "clip_norm": draw(st.none() | st.floats(1e-9, 9))}
    method = {"name": "next_token", "label_smoothing": draw(st.floats(0, 0.9))}
    return load_recipe({"model": draw(MODELS), "method": method, "data": data, "optimizer": optimizer, "run": run})


@settings(max_examples=60)
@given(recipes())
def test_what_is_dumped_is_loaded(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    assert load_recipe(dump_recipe(recipe)) == recipe
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(to_yaml(dump_recipe(recipe)), encoding="utf-8")
    assert load_recipe(file) == recipe
    file.write_text(commented_recipe(str(file)), encoding="utf-8")
    assert load_recipe(file) == recipe
    assert set(yaml.safe_load(file.read_text(encoding="utf-8"))) == set(Recipe.model_fields)


def configs(config: Config) -> Iterator[Config]:
    """A config and those within it."""
    yield config
    for field in type(config).model_fields:
        value = getattr(config, field)
        if isinstance(value, Config):
            yield from configs(value)


def unwrapped(text: str) -> str:
    """A recipe's comments as running text."""
    return " ".join(line.strip().lstrip("# ") for line in text.splitlines())


@pytest.mark.parametrize("name", [*builtin_recipes(), "a file"])
def test_a_commented_recipe_has_every_field_with_what_it_means(name: str, file: Path) -> None:
    source = str(file) if name == "a file" else name
    text = commented_recipe(source)
    written = file.parent / "commented.yaml"
    written.write_text(text, encoding="utf-8")
    recipe = read_recipe(source)
    assert read_recipe(written) == recipe
    assert max(map(len, text.splitlines())) <= 600
    running, position = unwrapped(text), 0
    for config in configs(recipe):
        for field, info in type(config).model_fields.items():
            assert info.description, f"{type(config).__name__}.{field} is not documented"
            assert re.search(rf"^ *{field}:", text, re.MULTILINE)
            assert " ".join(info.description.split()) in running
            position += 1
    assert position > 25
    named = []
    if isinstance(recipe, Recipe):
        named += [] if isinstance(recipe.policy, HubModel) else ["architecture"]
    elif recipe.model is not None:
        named += ["network"]
    for kind in (*named, "method", "optimizer", "schedule"):
        alike = [e for e in exported(kind) if kind != "method" or family_of(e.target) is type(recipe)]
        assert ", ".join(entry.name for entry in alike) in text
    assert yaml.safe_load(text)["run"].keys() == type(recipe.run).model_fields.keys()


@pytest.mark.parametrize("kind", ["architecture", "method", "optimizer", "schedule"])
def test_every_exported_config_documents_every_field(kind: str) -> None:
    for entry in exported(kind):
        for field, info in entry.target.model_fields.items():
            assert (info.description or "").endswith("."), f"{entry.name}.{field}"
