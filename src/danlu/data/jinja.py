"""The Jinja that chat templates are run by: a sandbox with transformers' extensions, and limits to what it may take.

Loops are counted, and so is what a template makes out of nothing: by multiplying, by powers and by the widths of
formats. Texts that it only puts together are not counted, as a conversation may be of any length.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from string import Formatter
from types import BuiltinMethodType
from typing import Any, NoReturn

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages and messages[0].role in ['system', 'developer'] %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'These tools may be called, each by a JSON object with its name and arguments in <tool_call></tool_call>:' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message.role in ['system', 'developer']) %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) }}
            {{- '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""A template for tokenizers without one; `resolve_template` ends its turns with their eos_token if need be."""

PROGRESS = " progress"
"""Where a template's functions find its rendering: no name that a template could write."""

_MOST_TURNS = 10_000_000
"""How often the loops of one rendering may turn, all of them together."""
_MOST_MADE = 10_000_000
"""How many characters, items and bits of numbers one rendering may make by multiplying, all of them together."""
_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes")
_PERCENT = re.compile(r"%(?:\([^)]*\))?([-+#0 *.0-9]*).", re.DOTALL)
"""One thing to be filled in by the operator %, and its width."""


@dataclass
class Progress:
    """One rendering, as far as it has come.

    Attributes:
        pieces: the text so far.
        length: its characters.
        blocks: where each generation block began, and its text.
        turns: how often loops have turned.
        made: characters, items and bits of numbers that multiplying has made.
    """

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    blocks: list[tuple[int, str]] = field(default_factory=list)
    turns: int = 0
    made: int = 0

    def turn(self, count: int) -> None:
        """Count turns of a loop, before they are taken.

        Raises:
            SecurityError: when they are too many.
        """
        self.turns += count
        if self.turns > _MOST_TURNS:
            raise SecurityError("its loops do not come to an end")

    def make(self, size: int) -> None:
        """Count what is going to be made by multiplying.

        Raises:
            SecurityError: when it is too much.
        """
        self.made += max(size, 0)
        if self.made > _MOST_MADE:
            raise SecurityError("what it multiplies grows out of bounds")


class RefusalError(TemplateError):
    """A template has called ``raise_exception``."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox in which operators and methods that make much of little are counted before they do."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        context[PROGRESS].make(_product(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        context[PROGRESS].make(_padding(called, (*args, *kwargs.values())))
        return super().call(context, called, *args, **kwargs)


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}``, which leaves the text as it is and remembers its place."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("remember", [nodes.ContextReference()]), [], [], body).set_lineno(line)

    @staticmethod
    def remember(context: Context, caller: Callable[[], str]) -> str:
        progress: Progress = context[PROGRESS]
        start, said = progress.length, caller()
        progress.blocks.append((start, said))
        return said


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> tuple[Compiled, bool]:
    """A template, every loop of which counts its turns, and whether it has generation blocks."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
    environment.filters.update(tojson=_tojson, counted=_counted)
    environment.filters.update(format=_format, center=_center, indent=_indent)
    environment.globals.pop("lipsum")  # text without end
    environment.globals["raise_exception"] = _raise
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno, environment=environment)
    has_blocks = any(each.name == "remember" for each in tree.find_all(nodes.ExtensionAttribute))
    return environment.from_string(tree), has_blocks


@pass_context
def _counted(context: Context, items: Any) -> Any:
    progress: Progress = context[PROGRESS]
    held = items if isinstance(items, Sized) else list(items)
    progress.turn(len(held))
    return held


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise RefusalError(str(message))


@pass_context
def _format(context: Context, value: Any, /, *args: Any, **kwargs: Any) -> str:
    context[PROGRESS].make(_product("%", value, args))
    return FILTERS["format"](value, *args, **kwargs)


@pass_context
def _center(context: Context, value: Any, width: int = 80) -> str:
    context[PROGRESS].make(width)
    return FILTERS["center"](value, width)


@pass_context
def _indent(context: Context, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    context[PROGRESS].make(width * (value.count("\n") + 1) if isinstance(width, int) else 0)
    return FILTERS["indent"](value, width, first, blank)


def _product(operator: str, left: Any, right: Any) -> int:
    """How many characters, items or bits an operator is about to make; 0 where it makes no more than it is given."""
    if operator == "%":
        given = right if isinstance(right, tuple) else (right,)
        return _widths(_PERCENT.findall(left), given) if isinstance(left, str) else 0
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
    for items, count in ((left, right), (right, left)):
        if isinstance(items, Sized) and isinstance(count, int):
            return len(items) * count
    return 0


def _padding(called: Any, given: Iterable[Any]) -> int:
    """How many characters a method of text is about to add, at most."""
    method = inspect.unwrap(called)  # the sandbox wraps what formats
    if not isinstance(method, BuiltinMethodType):
        return 0
    if method.__name__ in _PADDING:
        return _sum(given)
    if method.__name__ not in ("format", "format_map"):
        return 0
    values = [each for value in given for each in (value.values() if isinstance(value, Mapping) else (value,))]
    return _widths([spec or "" for _, _, spec, _ in Formatter().parse(str(method.__self__))], values)


def _widths(specs: Iterable[str], given: Iterable[Any]) -> int:
    """The sum of the widths in what says how to format, and where one is itself to be filled in, of all that could."""
    written = "\n".join(specs)
    return sum(map(int, re.findall("[0-9]+", written))) + (_sum(given) if "*" in written or "{" in written else 0)


def _sum(given: Iterable[Any]) -> int:
    return sum(abs(each) for each in given if isinstance(each, int))
