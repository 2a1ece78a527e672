from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import danlu
from commands import Answer, Say
from danlu.data import Tokenizer
from danlu.errors import UnsupportedError
from danlu.reading import builtin_recipes, load_recipe
from danlu.registry import exported, kinds
from engine.runs import QWEN3, flip, lines, recipe, step_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve updates, with checkpoints at 8 and 12."""
    return danlu.train(recipe(tmp_path_factory.mktemp("cli"), QWEN3, eval_every=4)).path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, QWEN3, eval_every=6, prompts=["the"], prompt_tokens=3)))
    return path


def test_on_another_system_it_says_so(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(danlu, "_SYSTEM", "nt")
    answer = say("list")
    sentence = "Danlu runs on Linux and macOS. On Windows, use it within WSL."
    assert (answer.status, answer.out, answer.err) == (1, "", f"danlu: {sentence}\n")
    for ask in (lambda: danlu.train, lambda: danlu.load("model")):
        with pytest.raises(UnsupportedError, match="^Danlu runs on Linux and macOS"):
            ask()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the token cache's."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if "cache" not in f.relative_to(folder).parts}


def jsonl(folder: Path, *rows: str) -> str:
    path = folder / "some.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


GOOD = '{"text": "the furnace burns low"}'


def missing(folder: Path) -> tuple[list[str], str]:
    return ["data.train=nowhere.txt"], "nowhere.txt: there is no such file"


def no_match(folder: Path) -> tuple[list[str], str]:
    return ["data.train=nowhere/*.txt"], r"nowhere/\*\.txt: no file matches"


def empty(folder: Path) -> tuple[list[str], str]:
    (folder / "empty.txt").write_text("")
    return [f"data.train={folder / 'empty.txt'}"], f"{folder / 'empty.txt'}: the file is empty"


def blank(folder: Path) -> tuple[list[str], str]:
    return [f"data.train={jsonl(folder, '', '')}"], r"some\.jsonl: none of the 2 documents has two tokens"


def not_json(folder: Path) -> tuple[list[str], str]:
    return [f"data.train={jsonl(folder, GOOD, GOOD, '{text}')}"], r"some\.jsonl:3: the line is not JSON"


def no_field(folder: Path) -> tuple[list[str], str]:
    name = jsonl(folder, GOOD, '{"txet": "a"}')
    return [
        f"data.train={name}"
    ], r"some\.jsonl:2: the row's fields \('txet'\) are of no shape that is known\. Did you mean 'text'"


def field_of_numbers(folder: Path) -> tuple[list[str], str]:
    name = jsonl(folder, GOOD, '{"text": 5}')
    return [f"data.train={name}"], r"some\.jsonl:2: 'text' is a number, not text"


def not_utf8(folder: Path) -> tuple[list[str], str]:
    (folder / "latin.txt").write_bytes(b"the\nfurn\xe9\n")
    return [f"data.train={folder / 'latin.txt'}"], r"latin\.txt:2: byte 0xe9 is not UTF-8"


def held_out_not_there(folder: Path) -> tuple[list[str], str]:
    return ["data.held_out=nowhere.txt"], "nowhere.txt: there is no such file"


def outside_the_vocabulary(folder: Path) -> tuple[list[str], str]:
    return ["model.vocab_size=270"], "the data hold token 299, and the model's last is 269"


def larger_tokenizer(folder: Path) -> tuple[list[str], str]:
    Tokenizer.train_bpe([" ".join(map(str, range(3000)))], 700).save(folder / "larger")
    return [f"data.tokenizer={folder / 'larger'}", "model.vocab_size=300"], "larger: the data hold token "


def no_tokenizer(folder: Path) -> tuple[list[str], str]:
    return ["data.tokenizer=nowhere"], r"nowhere: there is no tokenizer\.json"


def unknown_key(folder: Path) -> tuple[list[str], str]:
    return ["run.furnace=1"], r"override run\.furnace=1: run\.furnace: there is no such key"


def misspelt_key(folder: Path) -> tuple[list[str], str]:
    return ["optimizer.lrr=1"], r"override optimizer\.lrr=1: optimizer\.lrr: there is no such key\. Did you mean 'lr'\?"


def wrong_type(folder: Path) -> tuple[list[str], str]:
    return ["run.steps=many"], r"override run\.steps=many: run\.steps: input should be a valid integer"


def fp16(folder: Path) -> tuple[list[str], str]:
    return ["run.precision=fp16"], r"run\.precision: fp16 products on a CPU"


def no_device(folder: Path) -> tuple[list[str], str]:
    return ["run.device=furnace"], r"run\.device: there is no device 'furnace' here"


def no_logger(folder: Path) -> tuple[list[str], str]:
    return ["run.loggers=[wandb]"], r"run\.loggers: wandb is not installed\. Install it with"


def no_hub_model(folder: Path) -> tuple[list[str], str]:
    return ["model=nowhere"], "nowhere: there is no such model directory"


def unwritable(folder: Path) -> tuple[list[str], str]:
    return ["run.out=/proc/nowhere/run"], "/proc/nowhere/run: the run directory cannot be written"


def below_a_file(folder: Path) -> tuple[list[str], str]:
    return [f"run.out={folder / 'documents.jsonl' / 'run'}"], "the run directory cannot be written: Not a directory"


BAD = [
    *(missing, no_match, empty, blank, not_json, no_field, field_of_numbers, not_utf8, held_out_not_there),
    *(outside_the_vocabulary, larger_tokenizer, no_tokenizer, unknown_key, misspelt_key, wrong_type),
    *(fp16, no_device, no_logger, no_hub_model, unwritable, below_a_file),
]


def refused(answer: Answer, words: str) -> None:
    """One sentence on stderr, nothing on stdout, a status that is not 0."""
    assert answer.status == 1
    assert answer.out == ""
    assert re.fullmatch(r"danlu: .*[.?]\n", answer.err), answer.err
    assert re.search(words, answer.err), answer.err


@pytest.mark.parametrize("fault", BAD, ids=lambda fault: fault.__name__)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(
    say: Say, tmp_path: Path, file: Path, fault: Callable[[Path], tuple[list[str], str]]
) -> None:
    overrides, words = fault(tmp_path)
    before = tree(tmp_path)
    refused(say("train", file, *overrides), words)
    assert tree(tmp_path) == before
    assert not (tmp_path / "run").exists()
    if fault not in (unwritable, below_a_file):
        refused(say("train", file, "--dry-run", *overrides), words)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"recipe\.yaml: there is no such recipe\. Give a file or a built-in name\."),
        ("model: [", r"recipe\.yaml:1: the recipe is not YAML"),
        ("model: gpt2\nmodel: gpt2", r"recipe\.yaml:2: the recipe is not YAML \(key 'model' is given twice\)"),
        ("- 1", r"recipe\.yaml: a recipe is a mapping of nouns"),
        ("{}", r"recipe\.yaml: model: it is not set"),
    ],
)
def test_a_recipe_that_is_none_is_one_sentence(
    say: Say, tmp_path: Path, file: Path, content: str | None, words: str
) -> None:
    file.unlink()
    if content is not None:
        file.write_text(content)
    for command in (["train"], ["train", "--dry-run"], ["recipe"]):
        refused(say(*command, file), words)


def test_an_existing_run_is_not_touched(say: Say, tmp_path: Path, file: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    before = tree(tmp_path)
    refused(say("train", file), r"the run directory exists\. Go on with it by: danlu resume .*/run; or choose another")
    assert tree(tmp_path) == before


def test_a_damaged_checkpoint_is_one_sentence_and_nothing_is_lost(say: Say, tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    damaged = step_folder(run, 12) / "model.safetensors"
    whole = damaged.read_bytes()
    for name, content in (("is cut short: 1000 of", whole[:1000]), ("is altered: its checksum differs", None)):
        if content is not None:
            damaged.write_bytes(content)
        else:
            damaged.write_bytes(whole)
            flip(damaged, len(whole) // 2)
        before = tree(tmp_path)
        refused(say("resume", run), rf"step-00000012/model\.safetensors: the file {name}.*--step 8")
        assert tree(tmp_path) == before
    refused(say("resume", run, "--step", "7"), r"there is no checkpoint of step 7\. There are: \[8, 12\]")
    answer = say("resume", run, "--step", "8")
    assert (answer.status, answer.err) == (0, "")
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == list(range(13))
    assert answer.rows[0]["kind"] == "resume"


def test_what_is_no_run_and_no_model_is_one_sentence(say: Say, tmp_path: Path, trained: Path) -> None:
    (tmp_path / "no").mkdir()
    for path in (tmp_path / "no", tmp_path / "nowhere"):
        refused(say("resume", path), "this is no run: it has no recipe")
        refused(say("report", path), "this is not a run")
        refused(say("generate", path, "-p", "a"), r"there is no such model directory|config\.json: the file is absent")
    broken = tmp_path / "broken"
    shutil.copytree(trained / "final", broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:500])
    refused(say("generate", broken, "-p", "a"), r"model\.safetensors: the file is cut short or altered")
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no").iterdir())


def test_other_mistakes_of_the_command_line(say: Say, file: Path, trained: Path) -> None:
    refused(say("list", "recipe"), r"there is no 'recipe' to list\. Did you mean 'recipes'\?")
    refused(say("list", "nothing"), r"there is no 'nothing' to list\. Known: .*method.*")
    refused(say("recipe", "quickstar"), r"Did you mean 'quickstart'\?")
    for command in (["trian"], ["train"], ["generate", trained / "final"], ["train", file, "--fast"]):
        answer = say(*command)
        assert answer.status == 2
        assert "Traceback" not in answer.err + answer.out


def test_train_report_and_generate_say_one_json_object_a_line(say: Say, tmp_path: Path, file: Path) -> None:
    answer = say("train", file)
    assert (answer.status, answer.err) == (0, "")
    rows = answer.rows
    assert [row.get("kind") for row in rows[:3]] == ["data", "model", "doctor"]
    (told,) = [row for row in rows[3:] if "kind" in row]
    assert (told["kind"], "are read a second time from step" in told["message"]) == ("warning", True)
    rows.remove(told)
    assert [row["step"] for row in rows[3:-1]] == [0, 6, 12]
    assert all("held_out_loss" in row for row in rows[3:])
    end = rows[-1]
    assert (end["run"], end["reason"], end["step"]) == (str(tmp_path / "run"), "done", 12)
    assert end["sample"].startswith("the")
    report = Path(end["report"])
    assert "<html" in report.read_text()
    report.unlink()
    answer = say("report", tmp_path / "run")
    assert (answer.status, answer.out.strip()) == (0, str(report))
    assert report.exists()
    answer = say("generate", tmp_path / "run" / "final", "-p", "the", "--prompt", "火", "--tokens", 5, "--top-k", 3)
    assert [row["prompt"] for row in answer.rows] == ["the", "火"]
    texts = danlu.load(tmp_path / "run" / "final").generate(
        ["the", "火"], max_new_tokens=5, top_k=3, temperature=0.8, top_p=0.95, seed=0
    )
    assert [row["text"] for row in answer.rows] == texts


@pytest.mark.parametrize(("launcher", "status"), [({}, 124), ({"TORCHELASTIC_RESTART_COUNT": "0"}, 0)])
def test_a_run_whose_time_is_over_says_so_and_goes_on_later(
    say: Say, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str], status: int
) -> None:
    with monkeypatch.context() as within:
        for name, value in launcher.items():
            within.setenv(name, value)
        answer = say("train", file, "run.max_time=0.001", "run.prompts=[]")
    assert (answer.status, answer.err, answer.rows[-1]["reason"]) == (status, "", "max_time")
    assert not (tmp_path / "run" / "final").exists()
    answer = say("resume", tmp_path / "run", "run.max_time=null")
    assert (answer.status, answer.rows[0]["step"], answer.rows[-1]["reason"]) == (0, 1, "done")


def test_rows_that_are_not_finite_are_still_json(
    say: Say, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a chip whose peak no table knows, and with a perplexity past all numbers."""
    nan = float("nan")
    monkeypatch.setattr("danlu.engine.device._measured_peak", lambda *_: nan)
    monkeypatch.setattr("danlu.method.likelihood.math.exp", lambda _: float("inf"))
    (plan,) = say("train", file, "--dry-run").rows
    assert plan["seconds_at_least"] is None
    rows = say("train", file, "run.steps=2", "run.eval_every=1").rows
    assert rows[-1]["held_out_perplexity"] is None
    assert rows[-1]["mfu"] is None


def test_a_dry_run_is_one_object_and_no_file(say: Say, tmp_path: Path, file: Path) -> None:
    before = tree(tmp_path)
    answer = say("train", file, "--dry-run")
    assert (answer.status, answer.err) == (0, "")
    (plan,) = answer.rows
    assert plan["steps"] == 12
    assert tree(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_list_shows_all_that_is_exported(say: Say) -> None:
    everything = [line.split("\t") for line in say("list").out.splitlines()]
    assert all(len(row) == 4 for row in everything)
    for kind in kinds():
        wanted = {entry.name for entry in exported(kind)}
        assert {name for found, name, _, _ in everything if found == kind} == wanted
        assert {line.split("\t")[1] for line in say("list", kind).out.splitlines()} == wanted
        assert say("list", f"{kind}s").out == say("list", kind).out
    assert [line.split("\t")[1] for line in say("list", "recipes").out.splitlines()] == builtin_recipes()


def test_recipe_prints_what_train_reads(say: Say, tmp_path: Path) -> None:
    answer = say("recipe", "quickstart")
    (tmp_path / "mine.yaml").write_text(answer.out)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("quickstart")


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_on_a_terminal_it_says_it_in_words(
    say: Say, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", say("train", file).out)
    for words in (
        "33 documents (33 text), ",
        "looked at ",
        "qwen3: ",
        "step      6  held out: loss",
        "bits/byte",
        "bits per byte",
        "report.html",
    ):
        assert words in out
    assert "{" not in out
    assert "weights gradients optimizer bytes" in say("train", file, "--dry-run", f"run.out={tmp_path}/b").out
    assert "Loshchilov" in say("list", "optimizers").out
    assert say("generate", tmp_path / "run/final", "-p", "the fur", "--tokens", 2).out.startswith("the fur")


def process(*arguments: str | Path, folder: Path) -> Answer:
    """A command in a process of its own."""
    environment = {**os.environ, "DANLU_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-W", "error", "-m", "danlu", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=folder
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def test_as_a_process_of_its_own(tmp_path: Path, file: Path) -> None:
    jsonl(tmp_path, GOOD, "{text}")
    answer = process("train", "recipe.yaml", "data.train=some.jsonl", folder=tmp_path)
    refused(answer, r"some\.jsonl:2: the line is not JSON .*Remove or repair it")
    assert not (tmp_path / "run").exists()
    answer = process("--help", folder=tmp_path)
    assert answer.status == 0
    for command in ("train", "resume", "report", "generate", "list", "recipe"):
        assert command in answer.out


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["generate", "--help"]])
def test_help_is_quick(tmp_path: Path, command: list[str]) -> None:
    heavy = {"torch", "transformers", "plotly", "numpy", "pyarrow", "tokenizers", "safetensors"}
    script = (
        "import sys, danlu.cli\n"
        f"sys.argv = ['danlu', *{command!r}]\n"
        "try:\n    danlu.cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(re.findall(r"'([\w.]+)'", done.stderr))
    assert "danlu.cli" in loaded
    assert not heavy & loaded
