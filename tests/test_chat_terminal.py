from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu import chat_terminal
from danlu.errors import CheckpointError, UnsupportedError
from evaluation.chats import checkpoint, learned

TALK = "import sys; from danlu.chat_terminal import chat; chat(sys.argv[1], max_tokens=int(sys.argv[2]), temperature=0)"
PATIENCE = 180.0


class Talk:
    """A session in a real terminal of its own."""

    def __init__(self, model: Path, max_tokens: int) -> None:
        self._end, theirs = pty.openpty()
        command = [sys.executable, "-c", TALK, str(model), str(max_tokens)]
        environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}

        def own() -> None:
            os.login_tty(theirs)  # its terminal, from which Ctrl-C comes
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background is begun without it

        self.process = subprocess.Popen(command, preexec_fn=own, env=environment)  # noqa: PLW1509 - nothing else runs
        os.close(theirs)
        self.said = ""

    def hear(self, until: str) -> str:
        """What comes up to a text."""
        deadline = time.monotonic() + PATIENCE
        while until not in self.said:
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"nothing more came behind {self.said!r}"
            try:
                self.said += os.read(self._end, 4096).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"it ended behind {self.said!r}")
        heard, _, self.said = self.said.partition(until)
        return heard

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def press(self, key: str, until: str) -> None:
        """A key, again when nothing comes of it: it may have come just before the prompt was ready for it."""
        for _ in range(int(PATIENCE)):
            self.type(key)
            if select.select([self._end], [], [], 1.0)[0]:
                self.hear(until)
                return
        pytest.fail(f"nothing came of {key!r}")

    def interrupt(self) -> None:
        """Ctrl-C until the reply, which may say anything, is broken off and there is a prompt."""
        while not self.said.endswith("\n> "):
            self.type("\x03")
            until = time.monotonic() + 2.0
            while not self.said.endswith("\n> ") and time.monotonic() < until:
                if select.select([self._end], [], [], 0.2)[0]:
                    self.said += os.read(self._end, 4096).decode("utf-8", "replace")
        assert " ..." in self.said
        self.said = "> "

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    one = Talk(checkpoint(tmp_path / "model", eos=None), max_tokens=100_000)
    yield one
    one.close()


def test_a_conversation_in_a_terminal(talk: Talk, tmp_path: Path) -> None:
    assert "/help lists the commands" in talk.hear("> ")
    talk.type("hello\n")
    talk.hear("hello")
    talk.hear("\n")
    time.sleep(0.3)  # some of the reply
    talk.interrupt()
    talk.hear("> ")
    talk.type("/sytem be brief\n")
    assert "Did you mean 'system'?" in talk.hear("makes it a message.")
    talk.hear("> ")
    talk.type("/system be brief\n")
    talk.hear("The system message is set.")
    talk.hear("> ")
    file = tmp_path / "chat.jsonl"
    talk.type(f"/save {file}\n")
    talk.hear("Saved to")
    talk.hear("> ")
    saved = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[1]["content"] == "hello"
    talk.type("/reset\n")
    talk.hear("begins anew")
    talk.hear("> ")
    talk.type("/save again.jsonl\n")
    talk.hear("nothing was said")
    talk.hear("> ")
    talk.press("\x03", until="Ctrl-D ends")  # at the prompt it ends nothing
    talk.hear("> ")
    talk.type("/help\n")
    talk.hear("/exit")
    talk.hear("> ")
    talk.type("\x04")
    assert talk.process.wait(PATIENCE) == 0


def test_exit_ends_it_too(talk: Talk) -> None:
    talk.hear("> ")
    talk.type("/exit\n")
    assert talk.process.wait(PATIENCE) == 0


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    lines = io.StringIO("hello\n\nand again?\n")
    monkeypatch.setattr(sys, "stdin", lines)
    return lines


def test_through_a_pipe_every_line_is_answered(
    stdin: io.StringIO, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from danlu.generate import LanguageModel, Sampling
    from danlu.generate.chat_session import ChatSession, chat_template

    path = checkpoint(tmp_path)
    chat_terminal.chat(path, max_tokens=8, temperature=0, system="be brief")
    loaded = LanguageModel.load(path)
    template = chat_template(loaded.tokenizer)
    assert template is not None
    one = ChatSession(loaded, template, sampling=Sampling(temperature=0, max_new_tokens=8), system="be brief")
    expected = ["".join(one.say(text)) for text in ("hello", "and again?")]
    assert capsys.readouterr().out == "".join(f"{reply}\n" for reply in expected)


def test_a_pipe_stops_at_what_cannot_be_answered(stdin: io.StringIO, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="positions for 16"):
        chat_terminal.chat(checkpoint(tmp_path, learned(longest=16)), max_tokens=8)


def test_a_model_without_a_template_is_refused_with_what_to_do(stdin: io.StringIO, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, template=None)
    with pytest.raises(CheckpointError, match=r"the model has no chat template. Give it one by --template chatml\."):
        chat_terminal.chat(path)
    chat_terminal.chat(path, template="chatml", max_tokens=2)
