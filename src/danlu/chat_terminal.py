"""`danlu chat`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console as Rich

from danlu.build import PRECISIONS, prepare
from danlu.engine.device import Device
from danlu.errors import CheckpointError, DanluError, RecipeError, did_you_mean
from danlu.generate import LanguageModel, Sampling
from danlu.generate.chat_session import ChatSession, chat_template

_PROMPT = "> "
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that steer a terminal, which a model has no business with."""
_HINT = "/help lists the commands; Ctrl-C stops a reply, Ctrl-D ends."


def chat(
    model: str | Path,
    *,
    template: str | None = None,
    system: str | None = None,
    temperature: float = 0.7,
    top_p: float | None = None,
    top_k: int | None = None,
    max_tokens: int = 1024,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Talk with a model: on a terminal with a prompt and commands, elsewhere a reply for every line that is read.

    Args:
        model: a directory in the hub's format.
        template: "chatml" or a template's file, instead of the checkpoint's own.
        system: the system message.
        temperature: what logits are divided by; 0 takes the most likely token.
        top_p: how much probability the tokens that may be drawn reach.
        top_k: how many of the most likely tokens may be drawn.
        max_tokens: the longest reply.
        seed: of the randomness.
        trust_remote_code: whether Python code that comes with the checkpoint may run.

    Raises:
        CheckpointError: when the directory is not sound, or has no chat template and none is given.
        DanluError: elsewhere than on a terminal, for a conversation that cannot go on.
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_tokens, seed=seed)
    loaded = LanguageModel.load(model, trust_remote_code=trust_remote_code)
    chosen = chat_template(loaded.tokenizer, template)
    if chosen is None:
        raise CheckpointError("the model has no chat template", where=model, do="Give it one by --template chatml.")
    session = ChatSession(loaded, chosen, sampling=sampling, system=system)
    device = Device.choose("auto", None)
    prepare(loaded.model, device, PRECISIONS["fp32" if device.kind == "cpu" else "bf16"], compiled=False)
    with suppress(AttributeError, ValueError):  # what is no file need not be told
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    if sys.stdin.isatty():
        Terminal(session, Rich(highlight=False, markup=False)).run(f"{Path(model).name}: {_HINT}")
    else:
        pipe(session)


def pipe(session: ChatSession) -> None:
    """Answer every line of the standard input that is not blank."""
    for line in sys.stdin:
        if line.strip():
            for piece in session.say(line.strip()):
                print(piece, end="", flush=True)
            print(flush=True)


@dataclass(frozen=True)
class Command:
    """What a line that begins with a slash asks for.

    Attributes:
        argument: what it is followed by, or "".
        summary: what it does.
        run: does it, given the argument.
    """

    argument: str
    summary: str
    run: Callable[[str], None]


class Terminal:
    """A session at a terminal; whatever is wrong with a line is one sentence, and the session goes on."""

    def __init__(self, session: ChatSession, rich: Rich) -> None:
        """Make one; `run` begins it."""
        self.session, self._rich = session, rich
        self.commands = {
            "reset": Command("", "Forget the conversation.", self._reset),
            "system": Command("TEXT", "Put a system message before it; none without TEXT.", self._system),
            "save": Command("FILE", "Write it as OpenAI messages; a .jsonl gets one more line.", self._save),
            "help": Command("", "List the commands.", self._help),
            "exit": Command("", "End, as Ctrl-D does.", lambda _: None),
        }

    def run(self, greeting: str) -> None:
        """Answer lines until the last."""
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() a history and keys to edit with
        self._note(greeting)
        for line in self._lines():
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line.strip():
                    self._answer(line.strip())
            except DanluError as error:
                self._note(str(error))
            except KeyboardInterrupt:
                self._note(f"\n{_HINT}")

    def _lines(self) -> Iterator[str]:
        """What is typed, up to /exit or Ctrl-D."""
        while True:
            try:
                line = input(_PROMPT)
            except KeyboardInterrupt:
                self._note(f"\n{_HINT}")
            except EOFError:
                self._note("")
                return
            else:
                if line.strip() == "/exit":
                    return
                yield line

    def _command(self, line: str) -> None:
        name, _, argument = line[1:].strip().partition(" ")
        command = self.commands.get(name)
        if command is None:
            do = f"{did_you_mean(name, self.commands)} A space before the slash makes it a message."
            raise RecipeError(f"there is no command '/{name}'", do=do)
        command.run(argument.strip())

    def _answer(self, text: str) -> None:
        try:
            with closing(self.session.say(text)) as reply:
                for piece in reply:
                    print(_STEERING.sub("\ufffd", piece), end="", flush=True)
        except KeyboardInterrupt:
            print(" ...", end="")
        print(flush=True)

    def _reset(self, _: str) -> None:
        self.session.reset()
        self._note("The conversation begins anew.")

    def _system(self, text: str) -> None:
        self.session.set_system(text)
        self._note("The system message is set." if text else "There is no system message.")

    def _save(self, file: str) -> None:
        if not file:
            raise RecipeError("/save needs a file", do="For example /save chat.jsonl.")
        self.session.save(file)
        self._note(f"Saved to {file}.")

    def _help(self, _: str) -> None:
        for name, command in self.commands.items():
            self._note(f"  {f'/{name} {command.argument}':<14} {command.summary}")

    def _note(self, text: str) -> None:
        self._rich.print(text, style="dim", soft_wrap=True)
