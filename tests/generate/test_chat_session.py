from __future__ import annotations

import json
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.chat_template import ChatTemplate
from danlu.errors import DataError, RecipeError, UnsupportedError
from danlu.generate import LanguageModel, Sampling, complete
from danlu.generate.chat_session import ChatSession, chat_ids, chat_template, turn_ending, until
from evaluation.chats import CHATML, END, checkpoint, learned

SHORT = Sampling(max_new_tokens=24, seed=5)
TURNS = ("hello", "and again?", "火候 到 了")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.load(folder)


def session(model: LanguageModel, sampling: Sampling = SHORT, **options: Any) -> ChatSession:
    template = chat_template(model.tokenizer)
    assert template is not None
    return ChatSession(model, template, sampling=sampling, **options)


def say(one: ChatSession, text: str) -> str:
    return "".join(one.say(text))


class Fed:
    """How many rows each pass of a model has."""

    def __init__(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        forward = model.model.forward

        def counted(packed: Any, *rest: Any) -> Any:
            self.rows.append(len(packed))
            return forward(packed, *rest)

        monkeypatch.setattr(model.model, "forward", counted)


def test_a_reply_is_what_generating_behind_the_rendered_conversation_gives(model: LanguageModel) -> None:
    one = session(model, system="be brief")
    reply = say(one, "hello")
    rendered = one.template.render(one.messages[:2], add_generation_prompt=True)
    assert rendered.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello")
    ids = chat_ids(model.tokenizer, rendered)
    (written,) = complete(model.model, [ids], SHORT, stop=model.stop)
    kept = [token for token in written.tokens if token not in model.stop]
    assert reply == model.tokenizer.decode([*ids, *kept])[len(rendered) :]
    assert [message["role"] for message in one.messages] == ["system", "user", "assistant"]
    assert one.messages[2]["content"] == reply


def test_transformers_writes_the_same(folder: Path, model: LanguageModel) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    one = session(model, Sampling(temperature=0, max_new_tokens=20))
    for text in TURNS:
        asked = [*one.messages, {"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        reply = say(one, text)
        with torch.no_grad():
            written = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0]
        expected = [int(token) for token in written[len(ids) :] if int(token) != tokenizer.eos_token_id]
        assert reply == tokenizer.decode([*ids, *expected])[len(tokenizer.decode(ids)) :]


def test_what_was_seen_is_kept_from_turn_to_turn_and_changes_nothing(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, fed = session(model, Sampling(temperature=0, max_new_tokens=6)), Fed(model, monkeypatch)
    for text in TURNS:
        before, begun = one.messages, len(fed.rows)
        reply = say(one, text)
        again = session(model, one.sampling)
        again._turns = before
        passes = fed.rows[begun:]
        assert say(again, text) == reply
        whole = fed.rows[begun + len(passes)]
        assert passes[1:] == [1] * (len(passes) - 1)
        assert passes[0] == whole if not before else passes[0] < whole


def test_a_conversation_that_begins_otherwise_is_seen_anew(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, fed = session(model), Fed(model, monkeypatch)
    first = say(one, "hello")
    one.reset()
    assert one.messages == []
    begun = len(fed.rows)
    assert say(one, "hello") == first
    assert fed.rows[begun] == fed.rows[0]
    one.set_system("be brief")
    assert one.messages[0] == {"role": "system", "content": "be brief"}
    another = session(model, system="be brief")
    another._turns = one.messages[1:]
    assert say(one, "more") == say(another, "more")
    one.set_system("")
    assert one.messages[0]["role"] == "user"


def test_a_reply_that_is_stopped_stays_as_far_as_it_came(model: LanguageModel) -> None:
    one = session(model)
    with closing(one.say("hello")) as reply:
        heard = "".join(islice(reply, 3))
    assert [m["content"] for m in one.messages] == ["hello", heard]
    another = session(model)
    another._turns = one.messages
    assert say(one, "go on") == say(another, "go on")
    before = one.messages
    one.say("never begun").close()
    assert one.messages == before


@pytest.mark.parametrize("broken", [0, 4])
def test_a_pass_that_breaks_off_leaves_nothing_half_seen(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    one, block = session(model), list(model.model.blocks)[-1]
    say(one, "hello")
    before, forward, calls = one.messages, block.forward, iter(range(99))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == broken:
            raise KeyboardInterrupt
        return forward(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(block, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            say(one, "and again?")
    assert one.messages[:2] == before
    assert len(one.messages) == (2 if broken == 0 else 4)
    another = session(model)
    another._turns = one.messages
    assert say(one, "go on") == say(another, "go on")


def test_a_turn_ends_as_the_template_ends_it_though_the_checkpoint_names_no_such_token(tmp_path: Path) -> None:
    model = LanguageModel.load(checkpoint(tmp_path, eos=None))
    assert model.stop == frozenset()
    one = session(model)
    assert one.ending == END
    whole = say(one, "hello")
    one.reset()
    one.ending = whole[7:9]
    assert say(one, "hello") == whole.partition(one.ending)[0]


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        (CHATML, END),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", ""),
        ("{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %}{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}<|endoftext|>", END),
    ],
)
def test_how_a_template_ends_a_turn(model: LanguageModel, source: str, ending: str) -> None:
    assert turn_ending(model.tokenizer, ChatTemplate(source, {})) == ending


@given(st.lists(st.text("ab<|>", max_size=4)), st.text("ab<|>", max_size=4))
def test_a_text_goes_as_far_as_its_ending(texts: list[str], ending: str) -> None:
    given = list(until(texts, ending))
    assert "".join(given) == ("".join(texts).partition(ending)[0] if ending else "".join(texts))
    assert all(given)


def test_saved_conversations_are_what_training_reads(model: LanguageModel, tmp_path: Path) -> None:
    shapes = pytest.importorskip("danlu.data.shapes")
    one = session(model, system="be brief")
    with pytest.raises(RecipeError, match="nothing was said"):
        one.save(tmp_path / "chat.json")
    say(one, "hello")
    first = one.messages
    one.save(tmp_path / "chat.json")
    one.save(tmp_path / "chat.jsonl")
    say(one, "more")
    one.save(tmp_path / "chat.jsonl")
    with pytest.raises(RecipeError, match=r"chat\.json: the file exists"):
        one.save(tmp_path / "chat.json")
    with pytest.raises(DataError, match="cannot be written"):
        one.save(tmp_path / "nowhere" / "chat.json")
    lines = (tmp_path / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["messages"] for line in lines] == [first, one.messages]
    assert json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["messages"] == first
    _, document = shapes.recognise(json.loads(lines[1]), "chat.jsonl:2", None)
    assert [message.as_dict() for message in document.messages] == one.messages


def test_a_conversation_ends_where_positions_do(tmp_path: Path) -> None:
    model = LanguageModel.load(checkpoint(tmp_path, learned(longest=48), eos=None))
    one = session(model, Sampling(temperature=0, max_new_tokens=30))
    ids = chat_ids(model.tokenizer, f"<|im_start|>user\nhello{END}\n<|im_start|>assistant\n")
    reply = chat_ids(model.tokenizer, say(one, "hello"))
    assert len(reply) <= 48 - len(ids)
    before = one.messages
    with pytest.raises(UnsupportedError, match=r"the model has positions for 48. Begin anew with /reset"):
        one.say("more than there is room for, surely")
    assert one.messages == before


def test_a_conversation_that_the_template_refuses_leaves_the_session_as_it_was(model: LanguageModel) -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    one = ChatSession(model, ChatTemplate(refusing + CHATML, {}), sampling=SHORT)
    say(one, "hello")
    before = one.messages
    one.set_system("be brief")
    with pytest.raises(DataError, match="no system"):
        one.say("more")
    one.set_system(None)
    assert one.messages == before
    assert say(one, "more")
