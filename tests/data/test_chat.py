from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.data import Tokenizer
from danlu.data.chat import TRAIN_ON, Chat
from danlu.data.chat_template import ChatTemplate, resolve_template
from danlu.data.document import Completion, Conversation, Message, Text, Tokens
from danlu.data.shapes import recognise
from danlu.errors import DataError, RecipeError, UnsupportedError

from .templates import CASES, ENDLESS, MARKED_CHATML, THINKING_DEEPSEEK, tokenizer

PIECES = [
    "火候",
    "naïve",
    " ",
    "\n",
    "\n\n",
    "\n\n\n",
    "é",
    "🜂",
    "42",
    "assistant",
    "<|im_end|>",
    "</s>",
    "[/INST]",
    "<|",
]
PIECES += [
    "\ue000",
    "\ue0001\ue000",
    "{{ x }}",
    "{% if %}",
    "<start_of_turn>",
    "<｜Assistant｜>",
    "user\n",
    "<tool_call>",
    '"',
]
WORDS = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=6)
CONTENT = WORDS.map("".join)
TALK = st.lists(CONTENT, min_size=2, max_size=7).map(lambda said: said[: len(said) // 2 * 2])


def chat(name: str, *train_on: str) -> Chat:
    case = CASES[name]
    return Chat(case.tokenizer, case.template, train_on or ("assistant",))


def talk(*said: str, system: str | None = None) -> Conversation:
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
    return Conversation((*([Message("system", system)] if system is not None else []), *messages))


def learned(chat: Chat, document: Any) -> str:
    """The text of the tokens that are learned."""
    tokens = chat.encode(document, "f:1")
    assert tokens.weights is not None
    assert tokens.weights.dtype == np.float32
    assert len(tokens.ids) == len(tokens.weights)
    return chat.tokenizer.decode(tokens.ids[tokens.weights > 0])


def whole(chat: Chat, document: Any) -> str:
    return chat.tokenizer.decode(chat.encode(document, "f:1").ids)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60)
@given(said=TALK, system=st.none() | CONTENT)
@example(said=["a", "\n\nb", "c", "\n\n\n d"], system=None)
@example(said=["a", "", "c", " \n"], system="s")
def test_what_is_learned_is_what_the_assistants_say(name: str, said: list[str], system: str | None) -> None:
    case = CASES[name]
    if name == "chatml":  # with blocks the text is encoded whole, and a token may lie across the beginning of one
        said = [f"a{text}" for text in said]
    rows = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    if system is not None and case.system:
        rows.insert(0, {"role": "system", "content": system})
    _, document = recognise({"messages": rows}, "f:1")
    answers = said[1::2]
    wanted = [case.learned(text, i == len(answers) - 1) for i, text in enumerate(answers) if text.strip()]
    assert learned(chat(name), document) == "".join(wanted)
    assert whole(chat(name), document) == case.template.render(rows)


MARKED_LLAMA3 = CASES["llama3"].source.replace(
    """        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
""",
    """        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {%- if message.role == 'assistant' %}
            {%- generation %}{{- message.content | trim + '<|eot_id|>' }}{%- endgeneration %}
        {%- else %}{{- message.content | trim + '<|eot_id|>' }}{%- endif %}
""",
)
"""The same with generation blocks."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    loaded = {}
    for name, source in (("chatml", MARKED_CHATML), ("llama3", MARKED_LLAMA3)):
        folder = tmp_path_factory.mktemp(name)
        tokenizer(source, CASES[name].bos, CASES[name].eos).save(folder)
        loaded[name] = transformers.AutoTokenizer.from_pretrained(folder)
    return loaded


@pytest.mark.parametrize("name", ["chatml", "llama3"])
@settings(max_examples=60)
@given(said=TALK.filter(lambda said: all(text.strip() for text in said[1::2])))
@example(said=["a", "\n\nb", "c", "\n\n\n d"])
def test_the_mask_is_that_of_transformers_where_a_template_has_blocks(
    name: str, said: list[str], theirs: dict[str, Any]
) -> None:
    ours = tokenizer(theirs[name].chat_template, CASES[name].bos, CASES[name].eos)
    template = ChatTemplate.of(ours.files, "here")
    tokens = Chat(ours, template).encode(talk(*said), "f:1")
    messages = [message.as_dict() for message in talk(*said).messages]
    wanted = theirs[name].apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert tokens.ids.tolist() == wanted["input_ids"]
    assert tokens.weights is not None
    assert tokens.weights.tolist() == wanted["assistant_masks"]
    assert tokens.weights.any()


@settings(max_examples=60)
@given(TALK.map(lambda said: [f"a{text}" for text in said]))
def test_a_template_is_masked_alike_with_blocks_and_without(said: list[str]) -> None:
    blocks, plain = (chat(name).encode(talk(*said), "f:1") for name in ("chatml", "danlu"))
    assert blocks.weights is not None
    assert plain.weights is not None
    assert blocks.ids.tolist() == plain.ids.tolist()
    assert blocks.weights.tolist() == plain.weights.tolist()
    assert plain.weights.any()


@pytest.mark.parametrize("name", CASES)
@given(said=TALK.map(lambda said: [f"a{text}b" for text in said]))
def test_what_comes_before_is_encoded_as_serving_would(name: str, said: list[str]) -> None:
    case = CASES[name]
    prompt = case.template.render(
        [message.as_dict() for message in talk(*said[:-1]).messages], add_generation_prompt=True
    )
    served = case.tokenizer.encode_chat([prompt])[0][0]
    tokens = chat(name, "last").encode(talk(*said), "f:1")
    assert tokens.weights is not None
    assert tokens.ids[: len(served)].tolist() == served.tolist()
    assert np.flatnonzero(tokens.weights)[0] == len(served)


@pytest.mark.parametrize("name", ["chatml", "phi3", "llama3", "mistral"])
def test_the_end_stays_learned_where_it_is_also_the_pad(name: str) -> None:
    case = CASES[name]
    assert b'"pad_token": "' in case.tokenizer.files["tokenizer_config.json"]
    document = talk("hot?", "no", "why?", "rain")
    tokens = chat(name).encode(document, "f:1")
    assert tokens.weights is not None
    end = case.tokenizer.added_tokens[
        {"phi3": "<|end|>", "llama3": "<|eot_id|>", "mistral": "</s>"}.get(name, "<|im_end|>")
    ]
    ends = tokens.weights[tokens.ids == end]
    assert ends.sum() == 2


CALL = {
    "type": "function",
    "id": "call00100",
    "function": {"name": "heat", "arguments": {"to": "</tool_call>", "n": 1}},
}
TOOL = {"type": "function", "function": {"name": "heat", "parameters": {}}}


def called(content: str = "", later: tuple[str, ...] = ()) -> Conversation:
    return Conversation(
        (
            Message("user", "Heat it."),
            Message("assistant", content, 1.0, {"tool_calls": [CALL]}),
            Message("tool", "done", 1.0, {"tool_call_id": "call00100"}),
            Message("assistant", "It is hot."),
            *(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(later)),
        ),
        (TOOL,),
    )


@pytest.mark.parametrize(
    ("name", "call", "answer"),
    [
        (
            "danlu",
            '<tool_call>\n{"name": "heat", "arguments": {"to": "</tool_call>", "n": 1}}\n</tool_call><|im_end|>',
            "It is hot.<|im_end|>",
        ),
        (
            "qwen3",
            '<tool_call>\n{"name": "heat", "arguments": {"to": "</tool_call>", "n": 1}}\n</tool_call><|im_end|>',
            "It is hot.<|im_end|>",
        ),
        ("llama3", '{"name": "heat", "parameters": {"to": "</tool_call>", "n": 1}}<|eot_id|>', "It is hot.<|eot_id|>"),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "heat", "arguments": {"to": "</tool_call>", "n": 1}, "id": "call00100"}]</s>',
            " It is hot.</s>",
        ),
        (
            "deepseek",
            '<｜tool▁calls▁begin｜>heat\n{"to": "</tool_call>", "n": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
            "It is hot.<｜end▁of▁sentence｜>",
        ),
    ],
)
def test_calls_are_learned_with_what_ends_them(name: str, call: str, answer: str) -> None:
    last = answer.replace("It", "<think>\n\n</think>\n\nIt") if name == "qwen3" else answer
    assert learned(chat(name), called()) == call + last
    assert learned(chat(name, "last"), called()) == last
    if name != "mistral":  # it shows tools at the last user's message only, so earlier prompts were others
        assert learned(chat(name), called(later=("Thanks.", "Bye."))) == call + answer + last.replace(
            "It is hot", "Bye"
        )
    if name in ("danlu", "qwen3"):
        assert learned(chat(name), called("So.")) == f"So.\n{call}{last}"


def test_thoughts_are_learned_as_they_are_shown() -> None:
    thought = "<think>\nHm.\n</think>\n\n"
    ended = "<|im_end|>"
    assert learned(chat("qwen3"), talk("a", f"{thought}b")) == f"{thought}b{ended}"
    assert learned(chat("qwen3"), talk("a", f"{thought}b", "c", "d")) == f"b{ended}<think>\n\n</think>\n\nd{ended}"
    reasoned = Conversation((Message("user", "a"), Message("assistant", "b", 1.0, {"reasoning_content": "Hm."})))
    assert learned(chat("qwen3"), reasoned) == f"{thought}b{ended}"
    assert learned(chat("danlu"), reasoned) == f"{thought}b{ended}"
    only = Conversation((Message("user", "a"), Message("assistant", "", 1.0, {"reasoning_content": "Hm."})))
    assert learned(chat("danlu"), only) == f"{thought}{ended}"


def test_a_template_that_prompts_with_what_it_does_not_render_is_refused() -> None:
    deepseek = CASES["deepseek"]
    template = replace(deepseek.template, source=THINKING_DEEPSEEK)
    with pytest.raises(UnsupportedError, match="it prompts an answer with what it does not render before one"):
        Chat(deepseek.tokenizer, template).encode(talk("a", "b"), "some.jsonl:1")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (ENDLESS, "no token of its own ends an assistant's turn"),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "no token of its own ends an assistant's turn",
        ),
        (
            "{% for m in messages %}{{ m.content[:2] }}<|im_end|>{% endfor %}",
            "it leaves out the end of message 2, or repeats it",
        ),
        (
            "{% for m in messages %}{{ m.content * 2 }}<|im_end|>{% endfor %}",
            "it leaves out the end of message 2, or repeats it",
        ),
        (
            "{% for m in messages %}{{ m.content | length }}<|im_end|>{% endfor %}",
            "the text around a message depends on what",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}",
            "it leaves out the end of message 2",
        ),
        (
            "{% for m in messages %}{{ m.content[3:] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}x{% endif %}",
            "it prompts an answer with what it does not render before one",
        ),
    ],
)
def test_a_template_that_cannot_be_masked_is_refused(source: str, why: str) -> None:
    maker = Chat(CASES["chatml"].tokenizer, ChatTemplate(source, {}))
    with pytest.raises(UnsupportedError) as caught:
        maker.encode(talk("question", "answer"), "data.jsonl:5")
    assert str(caught.value).startswith(f"data.jsonl:5: the chat template cannot be masked: {why}")
    assert "data.chat_template=chatml" in str(caught.value)
    assert learned(replace(maker, train_on=("all",)), talk("question", "answer"))


def test_calls_that_a_template_does_not_show_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="it leaves out the end of message 2"):
        chat("phi3").encode(called(), "f:1")


def test_train_on() -> None:
    document = called(later=("Thanks.", "Bye."))
    call = '<tool_call>\n{"name": "heat", "arguments": {"to": "</tool_call>", "n": 1}}\n</tool_call><|im_end|>'
    assert learned(chat("danlu", "tool"), document) == "done<|im_end|>"
    assert learned(chat("danlu", "user"), document) == "Heat it.<|im_end|>Thanks.<|im_end|>"
    assert learned(chat("danlu", "last"), document) == "Bye.<|im_end|>"
    assert learned(chat("danlu", "last", "tool"), document) == "done<|im_end|>Bye.<|im_end|>"
    everyone = f"Heat it.<|im_end|>{call}done<|im_end|>It is hot.<|im_end|>Thanks.<|im_end|>Bye.<|im_end|>"
    assert learned(chat("danlu", "assistant", "user", "tool"), document) == everyone
    assert learned(chat("danlu", "all"), document) == whole(chat("danlu"), document)
    assert learned(chat("danlu", "system"), talk("a", "b", system="s")) == "s<|im_end|>"
    assert learned(chat("danlu", "system"), talk("a", "b")) == ""
    assert learned(chat("mistral", "system", "user"), talk("a", "b", system="s")) == "sa[/INST]"
    assert learned(chat("chatml", "user", "assistant"), talk("a", "b")) == "a<|im_end|>b<|im_end|>"
    assert learned(chat("chatml", "last"), talk("a", "b", "c", "d")) == "d<|im_end|>"
    for wrong in ((), ("asistant",)):
        with pytest.raises(RecipeError, match="data.train_on has"):
            chat("danlu").__class__(chat("danlu").tokenizer, None, wrong)
    assert {"assistant", "tool", "all", "last"} < set(TRAIN_ON)


@pytest.mark.parametrize("name", ["danlu", "chatml", "llama3"])
def test_a_messages_weight_is_that_of_its_tokens(name: str) -> None:
    said = [
        Message("user", "a"),
        Message("assistant", "b", 0.5),
        Message("user", "c", 0.0),
        Message("assistant", "d", 0.0),
    ]
    tokens = chat(name, "assistant", "user").encode(Conversation(tuple(said)), "f:1")
    assert tokens.weights is not None
    ids = {weight: tokens.ids[tokens.weights == np.float32(weight)] for weight in (0.5, 1.0)}
    end = CASES[name].learned("", False)
    assert chat(name).tokenizer.decode(ids[1.0]) == f"a{end}"
    assert chat(name).tokenizer.decode(ids[0.5]) == f"b{end}"
    assert learned(chat(name, "all"), Conversation(tuple(said))) == whole(chat(name), Conversation(tuple(said)))


def test_blocks_that_are_not_one_a_message() -> None:
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content }}"
    source += "{% endgeneration %}{% generation %}<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
    maker = Chat(CASES["chatml"].tokenizer, ChatTemplate(source, {}))
    assert learned(maker, talk("a", "b", "c", "d")) == "b<|im_end|>d<|im_end|>"
    with pytest.raises(UnsupportedError, match="f:1: the chat template has 4 generation blocks for 2 messages"):
        learned(replace(maker, train_on=("last",)), talk("a", "b", "c", "d"))


@pytest.mark.parametrize("bos", ["<s>", None])
def test_documents_without_a_template(bos: str | None) -> None:
    maker = Chat(tokenizer(None, bos, "</s>"), None)
    first = bos or ""
    text = Text("to be </s>")
    assert whole(maker, text) == learned(maker, text) == f"{first}to be </s></s>"
    ids = maker.encode(text, "f:1").ids
    inner = maker.tokenizer.encode(text.text)
    assert ids[len(ids) - 1 - len(inner) : -1].tolist() == inner.tolist()
    assert (inner != maker.tokenizer.eos_id).all()
    assert len(maker.encode(Text(""), "f:1").ids) == 0
    assert whole(replace(maker, add_bos=False, add_eos=False), text) == "to be </s>"
    for prompt, completion, joined in [
        ("Q", "A", "Q\nA"),
        ("Q ", "A", "Q A"),
        ("Q", "\nA", "Q\nA"),
        ("", "A", "A"),
    ]:
        document = Completion(prompt, completion)
        assert whole(maker, document) == f"{first}{joined}</s>"
        assert learned(maker, document) == f"{completion}</s>"
        assert learned(replace(maker, train_on=("all",)), document) == f"{first}{joined}</s>"
    assert learned(maker, Completion("Q", " ")) == ""


@pytest.mark.parametrize("name", CASES)
def test_a_completion_is_an_exchange_where_there_is_a_template(name: str) -> None:
    assert whole(chat(name), Completion("Q", "A")) == whole(chat(name), talk("Q", "A"))
    assert learned(chat(name), Completion("Q", "A")) == CASES[name].learned("A", True)
    assert learned(chat(name), Completion("Q", "")) == ""


def test_tokens_are_taken_as_they_are() -> None:
    maker = Chat(CASES["chatml"].tokenizer, None)
    ids = np.array([3, 1, 2])
    assert maker.encode(Tokens(ids), "f:1").weights is not None
    tokens = maker.encode(Tokens(ids, np.array([0, 1, 0.5], np.float32)), "f:1")
    assert tokens.weights is not None
    assert (tokens.ids.tolist(), tokens.weights.tolist()) == ([3, 1, 2], [0, 1, 0.5])
    for strange in (maker.tokenizer.vocab_size, -1):
        with pytest.raises(DataError, match=f"f:1: token {strange} is not of the tokenizer"):
            maker.encode(Tokens(np.array([1, strange])), "f:1")


def test_a_conversation_without_a_template_is_refused() -> None:
    with pytest.raises(DataError, match="f:1: the tokenizer has no chat template. Set data.chat_template=chatml"):
        Chat(tokenizer(None, None, "</s>"), None).encode(talk("a", "b"), "f:1")


def test_parts_become_lines_and_what_is_no_text_is_refused() -> None:
    parts = ({"type": "text", "text": "a"}, {"type": "text", "text": "b"})
    document = Conversation((Message("user", parts), Message("assistant", parts)))
    assert learned(chat("danlu"), document) == "a\nb<|im_end|>"
    with pytest.raises(DataError, match="f:1: a part of a message is not text"):
        chat("danlu").encode(Conversation((Message("user", ({"type": "image"},)),)), "f:1")


def test_it_travels_to_a_worker() -> None:
    document = called()
    for maker in (chat("danlu"), chat("chatml", "all")):
        before = maker.encode(document, "f:1")
        after = pickle.loads(pickle.dumps(maker)).encode(document, "f:1")
        assert np.array_equal(before.ids, after.ids)
        assert np.array_equal(before.weights, after.weights)


@given(CONTENT)
def test_places_are_of_characters(text: str) -> None:
    maker = CASES["chatml"].tokenizer
    [(ids, places)] = maker.encode_chat([text])
    assert maker.decode(ids) == text
    covered = [text[start:end] for (start, end), _ in itertools.groupby(map(tuple, places.tolist()))]
    assert "".join(covered) == text


def test_spaces_belong_to_the_places_of_tokens_whatever_the_post_processor(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import processors

    backend = Backend.from_str(CASES["chatml"].tokenizer.json.decode())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trimming = Tokenizer({**CASES["chatml"].tokenizer.files, "tokenizer.json": backend.to_str().encode()}, None, None)
    for maker in (trimming, CASES["chatml"].tokenizer):
        assert maker.encode_chat([" a  b "])[0][1].min() == 0
        assert maker.encode_chat([" a  b "])[0][1].tolist() == trimming.encode_chat([" a  b "])[0][1].tolist()


def test_a_megabyte_in_one_message() -> None:
    long = "the furnace burns low " * 48_000
    tokens = chat("danlu").encode(talk("a", long), "f:1")
    assert tokens.weights is not None
    assert tokens.weights.sum() > 100_000


def test_chatml_masks_any_tokenizer() -> None:
    held = CASES["gemma"].tokenizer
    maker = Chat(held, resolve_template("chatml", held))
    assert learned(maker, talk("a", "b", "c", "d")) == "b<|im_end|>d<|im_end|>"


def test_a_tokenizer_that_begins_texts_with_a_space_is_given_whole_texts() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False)
    backend.train_from_iterator(["user assistant\nIs it hot? No.\n"], trainer)
    held = Tokenizer({"tokenizer.json": backend.to_str().encode()}, None, None)
    maker = Chat(held, resolve_template("chatml", held))
    text, spans = maker.spans(talk("Is it hot?", "No."), "f:1")
    tokens = maker.encode(talk("Is it hot?", "No."), "f:1")
    assert [text[start:end] for start, end, _ in spans] == ["No.<|im_end|>"]
    assert tokens.ids.tolist() == held.encode_chat([text])[0][0].tolist()
    assert learned(maker, talk("Is it hot?", "No.")).endswith("No.<|im_end|>")
