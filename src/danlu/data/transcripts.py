r"""Texts that do not say where a prompt ends and its answer begins: transcripts, and any two that begin alike.

References:
    Bai et al., 2022, "Training a helpful and harmless assistant with reinforcement learning from human feedback",
    https://arxiv.org/abs/2204.05862, whose turns are "\n\nHuman: ..." and "\n\nAssistant: ...".
"""

from __future__ import annotations

import re

from danlu.data.document import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_ANSWER = "\n\nAssistant:"


def asks(text: str) -> bool:
    r"""Whether a text is a transcript that ends where the assistant is to speak.

    Example:
        >>> asks("\n\nHuman: Hi\n\nAssistant:"), asks("Hi")
        (True, False)
    """
    return _TURN.match(text) is not None and text.rstrip().endswith(_ANSWER)


def common_prompt(chosen: str, rejected: str) -> str:
    r"""What two texts begin with alike: of transcripts up to an answer, of others whole words, some being left of both.

    Args:
        chosen: one that is not blank.
        rejected: another.

    Example:
        >>> common_prompt("The sky is blue.", "The sky is black.")
        'The sky is'
        >>> common_prompt("\n\nHuman: Hi\n\nAssistant: Hello.", "\n\nHuman: Hi\n\nAssistant: He?")
        '\n\nHuman: Hi\n\nAssistant:'
    """
    most = min(len(chosen), len(rejected))
    common = chosen[: next((i for i in range(most) if chosen[i] != rejected[i]), most)]
    if _TURN.match(common) and _ANSWER in common:
        return common[: common.rindex(_ANSWER) + len(_ANSWER)]
    common = common[: min(len(chosen.rstrip()), len(rejected.rstrip())) - 1]
    words = common[: max((i + 1 for i, character in enumerate(common) if character.isspace()), default=0)]
    return words.removesuffix(" ")  # tokenizers have a blank belong to the word after it


def turns(text: str) -> list[Message]:
    r"""The messages of a transcript, neighbours of one role as one; of any other text, one of no role.

    Example:
        >>> [(turn.role, turn.content) for turn in turns("\n\nHuman: Hi\n\nAssistant: Hello.")]
        [('user', 'Hi'), ('assistant', 'Hello.')]
    """
    head, *rest = _TURN.split(text)
    messages = [Message("", head)] if head.strip() else []
    for name, said in zip(rest[::2], rest[1::2], strict=True):
        content = said.strip()
        if messages and messages[-1].role == _ROLES[name]:
            content = f"{messages.pop().content}\n\n{content}"
        messages.append(Message(_ROLES[name], content))
    return messages
