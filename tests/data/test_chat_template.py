from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.chat_template import ChatTemplate, resolve_template, special_tokens
from danlu.errors import DanluError, DataError, UnsupportedError

from .templates import CASES, MARKED_CHATML, THINKING_DEEPSEEK, Case, tokenizer

TOOL = {"type": "function", "function": {"name": "heat", "description": "<b> & 火", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "call00100", "function": {"name": "heat", "arguments": {"by": "20 °C", "n": [1, 2]}}}
USER, SAID = {"role": "user", "content": " Is it\nhot?  "}, {"role": "assistant", "content": "\n No, <i>火</i>. "}
SYSTEM = {"role": "system", "content": " You tend a furnace. "}
CALLED = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "done", "tool_call_id": "call00100", "name": None},
    SAID,
]


def conversations(case: Case) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """What a template of a kind is to render."""
    thoughtful = {**SAID, "content": "<think>\nHm.\n</think>\n\nNo.", "reasoning_content": None}
    plain = [[USER], [USER, SAID], [USER, SAID, USER, SAID], [USER, thoughtful], [USER, thoughtful, USER, SAID]]
    plain += [[USER, {**SAID, "reasoning_content": "So."}], [USER, {**SAID, "thinking": "So."}, USER]]
    plain += [[SYSTEM, *turns] for turns in plain] if case.system else []
    listed: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = [(turns, None) for turns in plain]
    return [*listed, (CALLED, [TOOL]), ([SYSTEM, *CALLED, USER], [TOOL])] if case.tools else listed


@pytest.mark.parametrize("name", [*CASES, "thinking"])
def test_it_renders_as_transformers_does(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    deepseek = CASES["deepseek"]
    case = CASES.get(name, Case(THINKING_DEEPSEEK, deepseek.bos, deepseek.eos, deepseek.learned))
    case.tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.of(case.tokenizer.files, "here")
    assert ours is not None
    assert ours.special == theirs.special_tokens_map
    compared = 0
    for messages, tools in conversations(case):
        for prompt in (False, True):
            for options in ({}, {"enable_thinking": False, "date_string": "1 May"}):
                wanted = theirs.apply_chat_template(
                    messages, tools=tools, add_generation_prompt=prompt, tokenize=False, **options
                )
                assert ours.render(messages, tools, prompt, **options) == wanted
                compared += 1
    assert compared >= 28


def test_loops_are_as_ever() -> None:
    source = """\
{%- for key, value in tree.items() %}{{ loop.index }}/{{ loop.length }}{{ key }}{{ value }}{{ '' if loop.last else ',' }}{% endfor %};
{%- for x in [1, 2, 3, 4] if x is even %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% else %}none{% endfor %};
{%- for x in nothing %}{% else %}none{% endfor %};
{%- for x in nested recursive %}{{ x.n }}{{ loop(x.inner) if x.inner }}{% endfor %};
{%- for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.previtem is defined }}{{ m.role }}{% endfor %}"""
    options = {"tree": {"a": 1, "b": 2}, "nested": [{"n": 1, "inner": [{"n": 2}]}, {"n": 3}]}
    assert ChatTemplate(source, {}).render([USER], **options) == "1/2a1,2/2b2;2;none;123;Falseuser"


def test_generation_blocks_are_places_in_the_text() -> None:
    template = ChatTemplate(MARKED_CHATML, {})
    text, blocks = template.render_marked([USER, SAID, USER, SAID])
    assert blocks is not None
    assert [text[start:end] for start, end in blocks] == [f"{SAID['content']}<|im_end|>"] * 2
    assert text == template.render([USER, SAID, USER, SAID])
    assert CASES["llama3"].template.render_marked([USER, SAID])[1] is None


def test_generation_blocks_whose_place_is_lost_are_refused() -> None:
    source = "{% macro say(m) %}Says: {% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
    template = ChatTemplate(source + "a{% for m in messages %}b{{ say(m) }}c{% endfor %}", {})
    with pytest.raises(
        UnsupportedError, match="f:3: the place of the chat template's generation blocks cannot be told"
    ):
        template.render_marked([USER], where="f:3")


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        (
            "{{ raise_exception('Users only. Sorry') }}",
            DataError,
            "the chat template refuses the conversation (Users only. Sorry)",
        ),
        ("{{ messages[0].nothing.more }}", DataError, "the chat template fails at the conversation ("),
        ("{{ messages[0].content + 1 }}", DataError, "the chat template fails at the conversation ("),
        ("{% for m in 3 %}{% endfor %}", DataError, "the chat template fails at the conversation ("),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DataError, "the chat template fails at the conversation ("),
        ("{% include 'other' %}", DataError, "the chat template fails at the conversation ("),
        (
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            UnsupportedError,
            "the chat template does what no template may (",
        ),
        ("{{ messages.append(1) }}", UnsupportedError, "the chat template does what no template may ("),
        (
            "{% for i in range(10000000) %}{% endfor %}",
            UnsupportedError,
            "the chat template does what no template may (",
        ),
        (
            "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% for k in r %}x{% endfor %}{% endfor %}{% endfor %}",
            UnsupportedError,
            "the chat template does what no template may (its loops do not come to an end)",
        ),
    ],
)
def test_a_template_that_raises_or_forgets_itself_is_a_sentence(source: str, kind: type[DanluError], says: str) -> None:
    with pytest.raises(kind) as caught:
        ChatTemplate(source, {}).render([USER], where="data.jsonl:9")
    assert str(caught.value).startswith(f"data.jsonl:9: {says}")


@pytest.mark.parametrize(
    "expression",
    [
        "'a' * 10**10",
        "10**10 * 'a'",
        "[1] * 10**10",
        "10 ** (10 ** 10)",
        "'a'.center(10**10)",
        "'a'.ljust(10**10)",
        "'%10000000000d' % 1",
        "'%*d' % (10**10, 1)",
        "'%(a)10000000000d' % {'a': 1}",
        "'%10000000000d' | format(1)",
        "'{:10000000000}'.format(1)",
        "'{:{}}'.format(1, 10**10)",
        "'{a:{b}}'.format_map({'a': 1, 'b': 10**10})",
        "'a' | center(10**10)",
        "'a' | indent(10**10, true)",
        "['a'] | map('center', 10**10) | join",
        "range(10**10) | list",
    ],
)
def test_a_template_makes_no_more_than_a_machine_can_hold(expression: str) -> None:
    sources = [f"{{{{ {expression} }}}}", f"{{% macro f() %}}{{{{ {expression} }}}}{{% endmacro %}}{{{{ f() }}}}"]
    for source in sources:
        with pytest.raises(UnsupportedError, match="f:1: the chat template does what no template may"):
            ChatTemplate(source, {}).render([USER], where="f:1")


def test_what_is_multiplied_counts_together() -> None:
    source = "{% for i in range(99) %}{% set s = 'a' * 1000000 %}{% endfor %}"
    with pytest.raises(UnsupportedError, match=r"\(what it multiplies grows out of bounds\)"):
        ChatTemplate(source, {}).render([USER])
    powers = "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}"
    with pytest.raises(UnsupportedError, match=r"\(what it multiplies grows out of bounds\)"):
        ChatTemplate(powers, {}).render([USER])


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("'-' * 3 ~ 2 * 'ab' ~ '=' * -1 ~ [1, 2] * 2", "---abab[1, 2, 1, 2]"),
        ("6 * 7 ~ 2.5 * 2 ~ 2 ** 10 ~ 2 ** -1 ~ 7 % 4", "425.010240.53"),
        (
            "'%d%% 20990101 %5.2f|%-4s|' % (3, 2.5, 'x') ~ '%s' % 'y' ~ '%(a)03d' % {'a': 7}",
            "3% 20990101  2.50|x   |y007",
        ),
        ("'%s: %s' | format('a', 10**12) ~ '%(context)s' | format(context=1)", "a: 10000000000001"),
        ("'{:>4}|{a[0]!r}|{}'.format('x', 10**12, a=['y'])", "   x|'y'|1000000000000"),
        ("'{a}'.format_map({'a': 1}) ~ 'ab'.center(4) ~ '7'.zfill(3)", "1 ab 007"),
        ("'x' | center(3) ~ ('a\nb' | indent) ~ ('a\nb' | indent('> ', first=true))", " x a\n    b> a\n> b"),
    ],
)
def test_what_a_template_multiplies_is_as_ever(expression: str, wanted: str) -> None:
    assert ChatTemplate(f"{{{{ {expression} }}}}", {}).render([USER]) == wanted


@pytest.mark.parametrize(
    "source", ["{% if %}", "{% for %}", "{{", "{% unknown %}", "{% generation %}", "{{ 'a' | nothing }}"]
)
def test_what_is_no_jinja_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the chat template is not sound"):
        ChatTemplate(source, {})
    with pytest.raises(DataError, match="here/chat_template.jinja: the chat template is not sound"):
        ChatTemplate.of({"chat_template.jinja": source.encode()}, "here")
    path = tmp_path / "own.jinja"
    path.write_text(source)
    with pytest.raises(DataError, match="own.jinja: the chat template is not sound"):
        resolve_template(str(path), CASES["chatml"].tokenizer)


def files(**contents: object) -> dict[str, bytes]:
    suffixes = {"chat_template": ".json", "chat_template_jinja": ".jinja", "tokenizer_config": ".json"}
    named = {key.removesuffix("_jinja") + suffixes.get(key, ".json"): value for key, value in contents.items()}
    return {
        key: value.encode() if isinstance(value, str) else json.dumps(value).encode() for key, value in named.items()
    }


@pytest.mark.parametrize(
    ("held", "source", "with_tools"),
    [
        (files(), None, None),
        (files(tokenizer_config={"eos_token": "</s>"}), None, None),
        (files(tokenizer_config={"chat_template": "c"}), "c", None),
        (files(tokenizer_config={"chat_template": "c"}, chat_template={"chat_template": "b"}), "b", None),
        (files(tokenizer_config={"chat_template": "c"}, chat_template_jinja="a"), "a", None),
        (
            files(
                tokenizer_config={
                    "chat_template": [{"name": "default", "template": "c"}, {"name": "tool_use", "template": "t"}]
                }
            ),
            "c",
            "t",
        ),
        ({"chat_template.jinja": b"a", "additional_chat_templates/tool_use.jinja": b"t"}, "a", "t"),
    ],
)
def test_the_template_is_found_among_a_tokenizers_files(
    held: dict[str, bytes], source: str | None, with_tools: str | None
) -> None:
    found = ChatTemplate.of(held, "here")
    if source is None:
        assert found is None
        return
    assert found is not None
    assert (found.source, found.with_tools) == (source, with_tools)
    assert found.render([USER], [TOOL]) == (with_tools or source)
    assert found.render([USER]) == source


def test_what_is_damaged_or_undecided_is_named() -> None:
    two = [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]
    with pytest.raises(
        UnsupportedError, match=r"here/tokenizer_config.json: of several chat templates \(rag, tool_use\) none is"
    ):
        ChatTemplate.of(files(tokenizer_config={"chat_template": two}), "here")
    with pytest.raises(DataError, match="here/tokenizer_config.json: the file is not JSON"):
        ChatTemplate.of(files(tokenizer_config="{"), "here")
    with pytest.raises(DataError, match="here/chat_template.jinja: the file is not UTF-8"):
        ChatTemplate.of({"chat_template.jinja": b"\xff"}, "here")


def test_special_tokens_are_those_of_either_file() -> None:
    held = files(
        tokenizer_config={"eos_token": {"content": "</s>", "special": True}, "pad_token": None, "add_bos_token": True},
        special_tokens_map={
            "eos_token": "<old>",
            "bos_token": {"content": "<s>"},
            "additional_special_tokens": ["<x>"],
        },
    )
    assert special_tokens(held, "here") == {"eos_token": "</s>", "bos_token": "<s>"}


def test_chatml_ends_turns_with_a_token_that_the_tokenizer_has() -> None:
    with_end = resolve_template("chatml", CASES["llama3"].tokenizer)
    assert with_end.render([USER, SAID]).endswith(f"{SAID['content']}<|im_end|>\n")
    plain = tokenizer(None, None, "<|endoftext|>")
    plain.added_tokens.pop("<|im_end|>")
    try:
        assert resolve_template("chatml", plain).render([USER, SAID]).endswith(f"{SAID['content']}<|endoftext|>\n")
    finally:
        del plain.added_tokens
    endless = tokenizer(None, None, None)
    endless.added_tokens.pop("<|im_end|>")
    try:
        with pytest.raises(UnsupportedError, match="neither <|im_end|> nor an eos_token"):
            resolve_template("chatml", endless)
    finally:
        del endless.added_tokens


def test_a_template_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{{ eos_token }}{{ messages[0].content }}", encoding="utf-8")
    assert resolve_template(str(path), CASES["llama3"].tokenizer).render([USER]) == f"<|eot_id|>{USER['content']}"
    with pytest.raises(DataError, match="none.jinja: the chat template cannot be read"):
        resolve_template(str(tmp_path / "none.jinja"), CASES["llama3"].tokenizer)


def test_it_travels_and_tells_one_time_only() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}", {})
    assert pickle.loads(pickle.dumps(template)).render([USER]) == template.render([USER])
    assert template.render([USER]) == template.made.strftime("%Y-%m-%d %H:%M:%S.%f")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["content", "role", "tool_calls", "reasoning_content", "name"])


@given(st.lists(st.dictionaries(FIELDS, JSON, max_size=4), max_size=3), st.sampled_from(sorted(CASES)))
def test_whatever_it_is_shown_it_renders_or_refuses(messages: list[dict[str, Any]], name: str) -> None:
    place = "f:1"
    try:
        CASES[name].template.render(messages, where="f:1")
    except DanluError as fault:
        place = str(fault.where)
    assert place == "f:1"
