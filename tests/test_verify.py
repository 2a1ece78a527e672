from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import danlu
from commands import Say
from danlu.contracts import Outcome
from danlu.data.chat import Chat
from danlu.engine.history import History
from danlu.engine.update import Updater
from danlu.errors import DataError, RecipeError, RunError
from danlu.experiment import Experiment
from danlu.method.next_token import NextToken
from danlu.packed import Packed
from danlu.parts.readout import Hidden
from danlu.reading import dump_recipe
from danlu.sight import Sight
from danlu.verifying import Checked, gradients, neighbours, processes, runs, serving
from danlu.verifying.checks import CHECKS
from danlu.verifying.subject import Subject, few, prepared
from danlu.verifying.verdict import Check
from engine.runs import GPT2, QWEN3, experiment, groups, preferring, recipe
from test_cli import Terminal
from test_sft import chats, checkpoint, write

DROPPING = {**GPT2, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
TEXT = [check.name for check in CHECKS if check is not serving.training_template_is_serving_template]


def alone(arguments: Sequence[str], count: int, seconds: float, log: Path) -> None:
    """In place of several processes, this one."""
    assert count == 2
    assert seconds > 0
    command, file, *overrides = arguments
    assert command == "train"
    several = ("run.parallel=", "run.context_parallel=")
    danlu.train(file, *(each for each in overrides if not each.startswith(several)))


def changing(change: Callable[[Tensor], Tensor]) -> Callable[[Any, str], None]:
    """In place of recomputation, blocks with something done to what they give."""

    def recompute(model: Any, mode: str) -> None:
        for block in model.blocks:
            block.register_forward_hook(lambda _, __, out: change(out))

    return recompute


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "launch", alone)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    yield from looked_at(tmp_path, DROPPING)


@pytest.fixture
def chatting(tmp_path: Path) -> Iterator[Subject]:
    with prepared(danlu.load_recipe("sft", sft(tmp_path)), tmp_path) as made:
        yield made


def looked_at(folder: Path, model: dict[str, Any]) -> Iterator[Subject]:
    with prepared(danlu.load_recipe(recipe(folder, model)), folder) as made:
        yield made


def sft(folder: Path, *overrides: str) -> list[str]:
    """What is said of a recipe for chats, tiny."""
    model, data = checkpoint(folder / "model"), chats(folder)
    given = (f"model={model}", f"data.train={data}", f"data.cache={folder / 'cache'}", f"run.out={folder / 'run'}")
    return [*given, "run.device=cpu", "run.threads=1", "data.step_samples=4", *overrides]


def fails(check: Check, subject: Subject, words: str) -> None:
    checked = check(subject)
    assert checked.verdict == "fails", checked
    assert re.search(words, checked.sentence), checked.sentence


def verdicts(found: danlu.Verification) -> dict[str, str]:
    return {checked.name: checked.verdict for checked in found.checks}


@pytest.mark.parametrize("method", ["dpo", "kto", "reward", {"name": "dpo", "reference": "precomputed"}], ids=str)
def test_all_that_applies_holds_on_preferences(tmp_path: Path, method: Any) -> None:
    found = danlu.verify(preferring(tmp_path, method, steps=4))
    assert found.holds, [checked for checked in found.checks if checked.verdict == "fails"]
    left_out = {"training_template_is_serving_template": "does not apply"}
    assert verdicts(found) == {**dict.fromkeys(TEXT, "holds"), **left_out}


@pytest.mark.parametrize("model", [DROPPING, {**QWEN3, "hidden_dropout": 0.2, "attention_dropout": 0.1}], ids=str)
def test_all_that_applies_holds_on_text_and_nothing_is_left(tmp_path: Path, model: dict[str, Any]) -> None:
    before = recipe(tmp_path, model)
    heard: list[str] = []
    found = danlu.verify(before, progress=heard.append)
    assert found.holds
    assert verdicts(found) == {
        **dict.fromkeys(TEXT, "holds"),
        "training_template_is_serving_template": "does not apply",
    }
    assert heard == [check.title for check in CHECKS]
    assert (found.architecture, found.samples) == (model["name"], 5)
    assert 0 < found.checks[0].error < found.checks[0].tolerance  # it is other arithmetic
    assert {each.name for each in tmp_path.iterdir()} == {"documents.jsonl", "cache", "temporary"}
    assert not list((tmp_path / "temporary").iterdir())


def test_of_data_that_end_what_there_is_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "the first"}\n{"text": "the second"}\n')
    raw = dump_recipe(danlu.load_recipe(recipe(tmp_path, GPT2)))
    raw["data"]["train"] = [{"files": str(tmp_path / "few.jsonl"), "epochs": 1}]
    raw["data"]["held_out"] = None
    with prepared(danlu.load_recipe(raw), tmp_path) as made:
        assert len(made.groups) == 2


def test_a_recipe_for_a_ring_is_looked_at_by_one_process(tmp_path: Path) -> None:
    shared = danlu.load_recipe(recipe(tmp_path, GPT2, pack_tokens=16, context_parallel=2))
    assert shared.run.pack_tokens < shared.data.context
    with prepared(shared, tmp_path) as made:
        assert made.experiment.recipe.run.pack_tokens == 32
        assert gradients.micro_batches_and_order(made).verdict == "holds"


@pytest.mark.parametrize("bridge", ["false", "true"])
def test_all_holds_on_chats_by_either_way_to_run_a_checkpoint(tmp_path: Path, bridge: str) -> None:
    found = danlu.verify("sft", *sft(tmp_path, f"model.bridge={bridge}"))
    assert verdicts(found) == dict.fromkeys((check.name for check in CHECKS), "holds"), found
    assert "too" in found.checks[-1].measured


def test_one_who_has_no_transformers_is_told_what_was_not_asked(
    chatting: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    checked = serving.exported_model(chatting)
    assert (checked.verdict, checked.error) == ("does not apply", None)
    assert checked.sentence == "The package transformers is not installed."
    assert "not asked" in serving.training_template_is_serving_template(chatting).measured


def leaking(packed: Packed) -> Sight:
    """Every row sees all before it."""
    count = len(packed)
    rows = torch.arange(count)
    call = torch.tensor([[0, count, 0, count, 1]])
    return Sight(call, rows, torch.full((count,), count), rows, rows)


def test_a_leak_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packed, "sight", property(leaking))
    fails(
        gradients.packed_equals_one_by_one, subject, r"^In a pack .* is another than of its samples alone\.$|^In a pack"
    )
    fails(
        neighbours.no_leak,
        subject,
        "^With (other tokens|another length) of .* the log-probabilities of other samples in its pack change",
    )


@pytest.mark.parametrize("what", ["other tokens", "another length"])
def test_a_leak_of_tokens_or_of_lengths_alone_is_found(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    forward = type(subject.policy).forward

    def leaking(model: Any, packed: Packed, readouts: Any, memory: Any = None) -> Any:
        (values,) = forward(model, packed, readouts, memory)
        leak = float(packed.tokens[:20].sum()) if what == "other tokens" else len(packed)
        return (values - 1e-3 * leak,)

    monkeypatch.setattr(type(subject.policy), "forward", leaking)
    fails(neighbours.no_leak, subject, f"^With {what} of")


def test_a_mean_over_a_pack_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = NextToken.loss

    def averaged(method: Any, models: Any, batch: Any) -> Outcome:
        outcome = loss(method, models, batch)
        return replace(outcome, losses={name: value / len(batch.targets) for name, value in outcome.losses.items()})

    monkeypatch.setattr(NextToken, "loss", averaged)
    fails(gradients.packed_equals_one_by_one, subject, "^In a pack the (loss|gradient of '.*') is .* its samples alone")
    fails(gradients.micro_batches_and_order, subject, r"^In \d packs.* the gradient of '.*' is another\.$")


def test_dropout_from_a_generator_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.parts.linear.dropout", lambda x, keys, place, p: nn.functional.dropout(x, p))
    fails(gradients.packed_equals_one_by_one, subject, "^In a pack")
    fails(gradients.micro_batches_and_order, subject, "is another")
    fails(neighbours.no_leak, subject, "log-probabilities of other samples")
    fails(runs.resuming, subject, r"^\d+ of \d+ differ")


def test_randomness_by_the_place_in_a_pack_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "danlu.batch.token_keys", lambda key, sample, _: torch.arange(len(sample), dtype=torch.int32) * 7919
    )
    fails(gradients.micro_batches_and_order, subject, "is another")


def test_what_couples_samples_is_named(tmp_path: Path) -> None:
    for subject in looked_at(tmp_path, QWEN3):
        subject.policy.layers[1].input_layernorm = nn.BatchNorm1d(QWEN3["hidden_size"])
        named = r"'layers\.1\.input_layernorm' is a BatchNorm1d, whose statistics are of all samples in a pack\.$"
        for check in (gradients.packed_equals_one_by_one, gradients.micro_batches_and_order, neighbours.no_leak):
            fails(check, subject, named)


def other_seed(arguments: Sequence[str], *_: Any) -> None:
    """It would draw other samples, and start from other weights."""
    danlu.train(arguments[1], arguments[2], "run.seed=5")


def other_rate(arguments: Sequence[str], *_: Any) -> None:
    danlu.train(arguments[1], arguments[2], "optimizer.lr=1.02e-3")


def averaged(arguments: Sequence[str], *_: Any) -> None:
    """Each of two processes has the gradient of half of the samples, and the mean of both is taken."""
    gradient = Updater.gradient

    def halved(updater: Any, *given: Any) -> Any:
        measured = gradient(updater, *given)
        for parameter in updater.policy.parameters():
            parameter.grad /= 2
        return measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updater, "gradient", halved)
        danlu.train(arguments[1], arguments[2])


def refused(*_: Any) -> None:
    raise RunError("2 processes failed: rank 1 lost the others")


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (other_seed, "^With WAY the loss is another|^With WAY '"),
        (other_rate, r"^With WAY '.*' ends elsewhere\.$"),
        (averaged, "the norm of the gradient is another"),
        (refused, "^2 processes failed: rank 1 lost the others.$"),
    ],
)
def test_ranks_that_do_not_agree_are_found(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, launch: Any, words: str
) -> None:
    monkeypatch.setattr(processes, "launch", launch)
    fails(runs.one_process_equals_two, subject, words.replace("WAY", r"run\.parallel=(ddp|zero3)"))
    fails(runs.ring_equals_one_process, subject, words.replace("WAY", r"run\.context_parallel=2"))


def test_a_method_that_asks_for_more_than_sums_has_no_ring(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(method: Any, models: Any, batch: Any) -> Outcome:
        (values,) = models["policy"](batch.packed, [Hidden(batch.targets.rows)])
        return Outcome({"nll": -values.sum()}, {})

    monkeypatch.setattr(NextToken, "loss", loss)
    checked = runs.ring_equals_one_process(subject)
    assert checked.verdict == "does not apply"
    assert checked.sentence == "Hidden has no answer that adds up over ranks which hold some rows each."
    assert runs.one_process_equals_two(subject).verdict == "holds"


def test_two_processes_end_as_one_in_the_mode_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with prepared(danlu.load_recipe(recipe(tmp_path, DROPPING), ["run.parallel=zero3"]), tmp_path) as made:
        modes, ring = runs.one_process_equals_two(made), runs.ring_equals_one_process(made)
    for checked in (modes, ring):
        assert checked.verdict == "holds", checked
        assert 0 < checked.error < 0.1 * checked.tolerance
    assert "ddp" not in modes.measured


def test_a_single_accelerator_has_no_second_rank(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    device = replace(subject.experiment.device, kind="cuda")
    single = replace(subject, experiment=replace(subject.experiment, device=device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for check in (runs.one_process_equals_two, runs.ring_equals_one_process):
        checked = check(single)
        assert (checked.verdict, checked.sentence) == ("does not apply", "There is one cuda device here.")


def test_a_build_that_knows_no_processes_has_no_second(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    for check in (runs.one_process_equals_two, runs.ring_equals_one_process):
        checked = check(subject)
        assert checked.verdict == "does not apply"
        words = "This build of torch has no torch.distributed, by which 2 processes would talk."
        assert checked.sentence == words


def lose_averages(history: History) -> None:
    for state in history.updater.optimizer.state.values():
        state["exp_avg_sq"].zero_()


def lose_the_place(history: History) -> None:
    history.source.draw()


@pytest.mark.parametrize("lose", [lose_averages, lose_the_place])
def test_a_resume_that_loses_something_is_found(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, lose: Callable[[History], None]
) -> None:
    assert runs.resuming(subject).verdict == "holds"
    restore = History.restore

    def restored(history: History, *given: Any) -> Any:
        step = restore(history, *given)
        lose(history)
        return step

    monkeypatch.setattr(History, "restore", restored)
    fails(runs.resuming, subject, r"^\d+ of \d+ differ, '(model|optimizer)/.*' first\.$")


def test_recomputation_that_changes_something_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gradients, "recompute", lambda model, mode: mode == "full" and changing(lambda out: 1.001 * out)(model, mode)
    )
    fails(gradients.recomputation, subject, r"^With run\.recompute=full the gradient of '.*' is another\.$")


def test_an_export_with_a_wrong_weight_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    export = Experiment.export

    def wrong(made: Experiment, folder: Path, *writing: Any) -> None:
        export(made, folder, *writing)
        file = folder / "model.safetensors"
        weights = load_file(file)
        name = "transformer.h.1.attn.c_attn.weight"
        weights[name] = weights[name].roll(1, dims=1)
        save_file(weights, file, metadata={"format": "pt"})

    assert serving.exported_model(subject).verdict == "holds"
    runs.shutil.rmtree(runs.straight_run(subject))
    monkeypatch.setattr(Experiment, "export", wrong)
    fails(serving.exported_model, subject, r"^In transformers the exported model has other logits on .*\.jsonl:\d+")


def test_serving_otherwise_is_found(chatting: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    check = serving.training_template_is_serving_template
    chat_ids = serving.chat_ids
    monkeypatch.setattr(serving, "chat_ids", lambda tokenizer, text: [*chat_ids(tokenizer, text), 5])
    fails(check, chatting, r"chats\.jsonl:1 message 2 training has other tokens than serving renders, and \d+ more")


def test_a_mask_that_begins_elsewhere_is_found(chatting: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Chat.encode

    def late(chat: Chat, document: Any, where: str) -> Any:
        tokens = encode(chat, document, where)
        return replace(tokens, weights=torch.from_numpy(tokens.weights).roll(1).numpy())

    monkeypatch.setattr(Chat, "encode", late)
    fails(serving.training_template_is_serving_template, chatting, "training has other tokens than serving renders")


BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}THOUGHT"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(("thought", "verdict"), [("", "holds"), ("<think>\n</think>\n", "fails")])
def test_each_answer_of_a_conversation_is_asked_about(tmp_path: Path, thought: str, verdict: str) -> None:
    """A template whose answers begin with what it does not prompt for teaches what serving never asks."""
    overrides = sft(tmp_path, f"data.chat_template={tmp_path / 'blocks.jinja'}")
    (tmp_path / "blocks.jinja").write_text(BLOCKS.replace("THOUGHT", thought))
    said = [("system", "burn low"), ("user", "who?"), ("assistant", "me"), ("user", "why?"), ("assistant", "lead")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    write(tmp_path / "chats.jsonl", *[row] * 6)
    with prepared(danlu.load_recipe("sft", overrides), tmp_path) as made:
        checked = serving.training_template_is_serving_template(made)
    assert (checked.verdict, checked.error) == (verdict, 12.0 if thought else 0.0)
    assert checked.measured.startswith("prompts of 12 answers in 6 conversations")


def test_another_template_beside_the_export_is_found(chatting: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    export = Experiment.export

    def wrong(made: Experiment, folder: Path, *writing: Any) -> None:
        export(made, folder, *writing)
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text().replace("assistant\n", "assistant "))

    monkeypatch.setattr(Experiment, "export", wrong)
    fails(serving.training_template_is_serving_template, chatting, "^The exported tokenizer renders .* otherwise")


def test_what_raises_or_is_not_a_number_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(subject.policy.parameters())
    before = first.data.clone()
    first.data.fill_(float("nan"))
    for check in (gradients.packed_equals_one_by_one, neighbours.no_leak, gradients.micro_batches_and_order):
        checked = check(subject)
        assert (checked.verdict, checked.error) == ("fails", None)
    first.data.copy_(before)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("by the\nfurnace")

    monkeypatch.setattr(type(subject.policy), "forward", broken)
    fails(neighbours.no_leak, subject, r"^It came to no end: ZeroDivisionError: by the\.$")


def test_a_bad_row_is_no_verdict(tmp_path: Path) -> None:
    overrides = sft(tmp_path)
    good = (tmp_path / "chats.jsonl").read_text().splitlines()
    write(tmp_path / "chats.jsonl", *good[:3], "{not json", *good[3:])
    with pytest.raises(DataError, match=r"chats\.jsonl:4: the line is not JSON"):
        danlu.verify("sft", *overrides)
    found = danlu.verify("sft", *overrides, f"data.quarantine={tmp_path / 'aside'}")
    assert found.holds
    assert not (tmp_path / "aside").exists()


def test_within_several_processes_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="without torchrun"):
        danlu.verify(recipe(tmp_path))


def test_few_samples_are_the_first_that_fit_or_the_shortest(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path), "data.step_samples=20")
    (step,) = groups(parts)
    assert few(step) == step[:8]
    long = [
        replace(group, packed=Packed.tree([[1] * n])) for group, n in zip(step, (900, 300, 100, 1200), strict=False)
    ]
    assert [len(group) for group in few(long)] == [900, 100]
    assert [len(group) for group in few([long[3], long[0], long[3]])] == [900, 1200]


def test_an_error_is_relative_and_an_absent_gradient_is_zero() -> None:
    expected = {"a": torch.tensor([10.0, 1.0]), "b": torch.tensor([1e-9])}
    assert gradients.worst({"a": torch.tensor([10.0, 1.1]), "b": torch.tensor([1e-9])}, expected) == (
        pytest.approx(0.01),
        "a",
    )
    assert gradients.worst({"b": torch.tensor([1e-9])}, expected) == (1.0, "a")
    assert gradients.worst({**expected, "b": torch.tensor([0.0])}, expected)[0] == pytest.approx(1e-8)


def test_on_the_command_line(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path, QWEN3)))
    answer = say("verify", file, "--json")
    assert answer.status == 0
    (told,) = answer.rows
    assert told["holds"] is True
    assert [each["name"] for each in told["checks"]] == [check.name for check in CHECKS]
    assert {key for each in told["checks"] for key in each} == set(Checked.__dataclass_fields__)
    assert answer.err.splitlines() == [check.title for check in CHECKS]
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(processes, "launch", refused)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    answer = say("verify", file)
    assert answer.status == 1
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", answer.out)
    for words in (
        "check  ",
        "2 processes failed: rank 1 lost the others.",
        "does not apply",
        "2 of 9 checks fail: qwen3, 5",
    ):
        assert words in out
    answer = say("verify", file, "data.train=nowhere.txt")
    assert (answer.status, answer.out) == (1, "")
    assert re.fullmatch(r"danlu: .*nowhere\.txt: there is no such file.*\n", answer.err)


def test_processes_say_why_they_fail_and_none_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"2 processes failed: nowhere\.yaml: there is no such recipe"):
        processes.launch(["train", "nowhere.yaml"], 2, 60, tmp_path / "log")
    assert (tmp_path / "log").read_text().count("there is no such recipe") == 1
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(RunError, match="2 processes did not end within 2 seconds; they wait for each other"):
        processes.launch(["chat", "nowhere"], 2, 2, tmp_path / "log")
    assert set(psutil.Process().children(recursive=True)) <= before
