"""Chat templates, rendered as transformers renders them: Jinja in a sandbox, for their makers are strangers.

A template sees `messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens by name and options of its
own. It may use ``raise_exception``, ``strftime_now``, ``tojson``, ``break`` and ``continue``, and put what the model is
to say between ``{% generation %}`` and ``{% endgeneration %}``.

References:
    Hugging Face, "Chat templates", https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.exceptions import SecurityError

from danlu.data.jinja import CHATML, PROGRESS, Progress, RefusalError, compile_template
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError, UnsupportedError

_END = "<|im_end|>"
_JINJA, _JSON, _CONFIG, _SPECIAL = (
    *("chat_template.jinja", "chat_template.json"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)
_NAMED = "additional_chat_templates/"
_SPECIAL_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplate:
    """What makes one text of a conversation.

    The date that ``strftime_now`` tells is that of this object's making, and no part of what it is compared by: a run
    that is resumed on another day may render other texts than before, and nothing says so. Give the same `made` to
    render the same.

    Attributes:
        source: the Jinja.
        special: what it may call ``bos_token``, ``eos_token`` and so on.
        with_tools: the Jinja for conversations that have tools, where there is another for these.
        made: what ``strftime_now`` tells: the same time in every worker and in every rendering.

    Raises:
        DataError: when the Jinja is not sound.

    Example:
        >>> template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}",
        ...                         {"eos_token": "</s>"})
        >>> template.render([{"role": "user", "content": "Hi"}])
        'user: Hi</s>'
    """

    source: str
    special: Mapping[str, str]
    with_tools: str | None = None
    made: datetime = field(default_factory=datetime.now, compare=False)

    def __post_init__(self) -> None:
        for source in (self.source, self.with_tools):
            if source is not None:
                _check(source, None)

    @classmethod
    def of(cls, files: Mapping[str, bytes], where: str) -> ChatTemplate | None:
        """The template among a tokenizer's files, if there is one.

        Args:
            files: their contents by name.
            where: the folder they are from, for errors.

        Raises:
            DataError: when a file is damaged or its template is not sound.
            UnsupportedError: when there are several, and none is the default.
        """
        found, name = _find(files, where)
        if not found:
            return None
        place = f"{where}/{name}"
        if "default" not in found:
            listed = ", ".join(sorted(found))
            do = "Save one of them as a .jinja file and name it as data.chat_template."
            raise UnsupportedError(f"of several chat templates ({listed}) none is the default", where=place, do=do)
        for source in found.values():
            _check(source, place)
        return cls(found["default"], special_tokens(files, where), found.get("tool_use"))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        where: str | None = None,
        **options: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: as dictionaries; a field that is None is as good as absent.
            tools: as JSON schemas.
            add_generation_prompt: end with what comes before an assistant's message.
            where: the conversation's ``file:line``, for errors.
            options: what else the template understands.

        Raises:
            DataError: when the template raises.
            UnsupportedError: when it does what it may not, or does not come to an end.
        """
        return self._run(messages, tools, where, {**options, "add_generation_prompt": add_generation_prompt})[0]

    def render_marked(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        where: str | None = None,
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """The text of a conversation, and which characters lie in generation blocks: of each its first and its end.

        The places are None where the template has no such blocks at all.

        Raises:
            DataError: when the template raises.
            UnsupportedError: as `render`, and when a block's place in the text cannot be told.
        """
        return self._run(messages, tools, where, {"add_generation_prompt": False})

    def _run(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        where: str | None,
        options: Mapping[str, Any],
    ) -> tuple[str, list[tuple[int, int]] | None]:
        compiled, has_blocks = compile_template(
            self.source if tools is None or self.with_tools is None else self.with_tools
        )
        progress = Progress()
        given = {"messages": [_message(message) for message in messages], "tools": tools, "documents": None}
        shown = {**self.special, "strftime_now": self.made.strftime, **given, **options, PROGRESS: progress}
        try:
            for piece in compiled.generate(shown):
                progress.pieces.append(piece)
                progress.length += len(piece)
        except (SecurityError, OverflowError) as fault:
            what = f"the chat template does what no template may ({_line(fault)})"
            raise UnsupportedError(what, where=where, do="Set data.chat_template to another one.") from None
        except RefusalError as fault:
            what = f"the chat template refuses the conversation ({_line(fault)})"
            raise DataError(what, where=where, do="Write the conversation as the model's template wants it.") from None
        except Exception as fault:  # a template can run into any of Python's
            what = f"the chat template fails at the conversation ({_line(fault)})"
            raise DataError(what, where=where, do="Look for what its template does not expect.") from None
        text = "".join(progress.pieces)
        if any(text[start : start + len(said)] != said for start, said in progress.blocks):
            what = "the place of the chat template's generation blocks cannot be told, as they are in a macro"
            raise UnsupportedError(what, where=where, do="Write them outside of macros and {% set %}.")
        return text, [(start, start + len(said)) for start, said in progress.blocks] if has_blocks else None


def resolve_template(name_or_path: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that a recipe names: "chatml", or the path of a ``.jinja`` file.

    Raises:
        DataError: when there is no such file, or it is no template.
        UnsupportedError: when the tokenizer has no token for the end of a turn.
    """
    special = special_tokens(tokenizer.files, "tokenizer")
    if name_or_path == "chatml":
        own = None if tokenizer.eos_id is None else tokenizer.decode([tokenizer.eos_id])
        end = _END if _END in tokenizer.added_tokens else special.setdefault("eos_token", own or "")
        if not end:
            what = f"the tokenizer has neither {_END} nor an eos_token, so nothing could end a turn"
            raise UnsupportedError(what, do="Add an eos_token to its tokenizer_config.json.")
        return ChatTemplate(CHATML.replace(_END, end), special)
    try:
        source = Path(name_or_path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as fault:
        what = f"the chat template cannot be read ({_line(fault)})"
        raise DataError(what, where=name_or_path, do="Give the path of a .jinja file, or chatml.") from None
    _check(source, name_or_path)
    return ChatTemplate(source, special)


def special_tokens(files: Mapping[str, bytes], where: str) -> dict[str, str]:
    """What a tokenizer's files call ``bos_token``, ``eos_token`` and so on.

    Raises:
        DataError: when a file is damaged.
    """
    found: dict[str, str] = {}
    for name in (_SPECIAL, _CONFIG):  # the second has the last word
        for key, token in _json(files, name, where).items():
            content = token.get("content") if isinstance(token, dict) else token
            if key in _SPECIAL_NAMES and isinstance(content, str):
                found[key] = content
    return found


def _find(files: Mapping[str, bytes], where: str) -> tuple[dict[str, str], str]:
    """The templates by name, and the file they are from."""
    listed = {Path(name).stem: name for name in files if name.startswith(_NAMED) and name.endswith(".jinja")}
    listed |= {"default": _JINJA} if _JINJA in files else {}
    if listed:
        return {key: _text(files[name], f"{where}/{name}") for key, name in listed.items()}, listed.get("default", "")
    for name in (_JSON, _CONFIG):
        held = _json(files, name, where).get("chat_template")
        if isinstance(held, str):
            return {"default": held}, name
        if isinstance(held, list):
            held = {each.get("name"): each.get("template") for each in held if isinstance(each, dict)}
        if isinstance(held, dict) and held:
            return {str(key): str(source) for key, source in held.items()}, name
    return {}, ""


def _json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        raise DataError("the file is not JSON", where=f"{where}/{name}", do="Get it anew.") from None
    return content if isinstance(content, dict) else {}


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DataError("the file is not UTF-8", where=where, do="Get it anew.") from None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers shows it to a template: without nulls, its reasoning under every name in use."""
    held = {key: value for key, value in message.items() if value is not None}
    reasoning = next((held[name] for name in _REASONING if name in held), None)
    return held if reasoning is None else {"thinking": reasoning, **held, "reasoning_content": reasoning}


def _check(source: str, where: str | None) -> None:
    try:
        compile_template(source)
    except TemplateSyntaxError as fault:
        what = f"the chat template is not sound: {_line(fault)} (its line {fault.lineno})"
        raise DataError(what, where=where, do="Get it anew, or set data.chat_template to another one.") from None
    except Exception as fault:  # too deep, or too large a number in it
        what = f"the chat template is not sound ({_line(fault)})"
        raise DataError(what, where=where, do="Get it anew, or set data.chat_template to another one.") from None


def _line(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")
