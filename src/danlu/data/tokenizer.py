"""Text to token ids and back: an existing tokenizer in the hub's format, or a byte-level BPE trained here."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt

from danlu.data.words import PieceEncoder, can_be_cut
from danlu.errors import CheckpointError, DataError

END_OF_TEXT = "<|endoftext|>"
"""The one special token of a tokenizer trained here, both first and last of a document."""
SMALLEST_VOCABULARY = 257
"""Every byte, and `END_OF_TEXT`."""

_JSON, _CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_FILES = (
    *(_JSON, _CONFIG, _SPECIAL, "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json"),
)


class Tokenizer:
    """A tokenizer and the files it came from, which it keeps to the byte.

    A document is data: the text of a special token inside it is encoded like any other text, so it cannot end itself.

    Attributes:
        vocab_size: one more than the largest token id.
        bos_id: what a document begins with, if anything.
        eos_id: what a document ends with, if anything.
        fingerprint: a hash of all that decides the ids.
    """

    def __init__(self, files: Mapping[str, bytes], bos_id: int | None, eos_id: int | None) -> None:
        """Make a tokenizer of its files' contents; `load` and `train_bpe` find these."""
        from tokenizers import Tokenizer as Backend

        self._files = dict(files)
        self._backend = Backend.from_str(self._files[_JSON].decode())
        self._backend.no_truncation()
        self._backend.no_padding()
        content = self._backend.to_str()
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        self._can_be_cut = can_be_cut(content)
        self._encode_pieces = PieceEncoder(self._encode)
        self._backend.encode_special_tokens = True
        self.vocab_size = max(self._backend.get_vocab().values(), default=-1) + 1
        self.bos_id = bos_id
        self.eos_id = eos_id

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to a worker process as files."""
        return Tokenizer, (self._files, self.bos_id, self.eos_id)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a directory in the hub's format, or its ``tokenizer.json``.

        The first and last token are those of ``tokenizer_config.json``, else of ``special_tokens_map.json``, else of
        the model's ``config.json``.

        Raises:
            CheckpointError: when the directory has no sound ``tokenizer.json``, or names a token that is not in it.
        """
        source = Path(path).expanduser()
        directory = source.parent if source.is_file() else source
        main = source if source.is_file() else directory / _JSON
        if not main.is_file():
            do = "Give a directory with one; transformers' `save_pretrained` of a fast tokenizer writes it."
            raise CheckpointError(f"there is no {_JSON}", where=directory, do=do)
        templates = sorted(directory.glob("additional_chat_templates/*.jinja"))
        beside = [file for file in (*(directory / name for name in _FILES), *templates) if file.is_file()]
        files = {str(file.relative_to(directory)): file.read_bytes() for file in beside} | {_JSON: main.read_bytes()}
        try:
            tokenizer = cls(files, None, None)
        except Exception as fault:  # the library raises bare Exceptions
            raise CheckpointError(f"the file is no tokenizer ({fault})", where=main, do="Get it anew.") from None
        tokenizer.bos_id, tokenizer.eos_id = (tokenizer._end(directory, which) for which in ("bos", "eos"))
        if _CONFIG not in files:
            tokenizer._files[_CONFIG] = _config(tokenizer._token(tokenizer.bos_id), tokenizer._token(tokenizer.eos_id))
        return tokenizer

    def _token(self, token_id: int | None) -> str | None:
        return None if token_id is None else self._backend.id_to_token(token_id)

    @property
    def pad_id(self) -> int | None:
        """What others fill batches with, where its files say."""
        token = json.loads(self._files.get(_CONFIG, b"{}")).get("pad_token")
        found = token.get("content") if isinstance(token, dict) else token
        return None if found is None else self._backend.token_to_id(str(found))

    def _end(self, directory: Path, which: str) -> int | None:
        for name in (_CONFIG, _SPECIAL):
            token = _read_json(directory / name).get(f"{which}_token")
            if isinstance(token, dict):
                token = token.get("content")
            if token is not None:
                found = self._backend.token_to_id(str(token))
                if found is None:
                    what = f"{which}_token {token!r} is not in the vocabulary"
                    raise CheckpointError(what, where=directory / name, do=f"Add it to {_JSON}, or remove it here.")
                return int(found)
        listed = _read_json(directory / "config.json").get(f"{which}_token_id")
        first = listed[0] if isinstance(listed, list) and listed else listed
        return first if isinstance(first, int) and 0 <= first < self.vocab_size else None

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE: GPT-2's splitting, all bytes in the alphabet, so any text makes the round trip.

        Args:
            texts: what to learn the merges from.
            vocab_size: how large the vocabulary may become, at least `SMALLEST_VOCABULARY`; little text gives fewer.

        Raises:
            DataError: when `vocab_size` cannot hold every byte.

        References:
            Radford et al., "Language Models are Unsupervised Multitask Learners", 2019,
            https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf

        Example:
            >>> tokenizer = Tokenizer.train_bpe(["to be or not to be"], vocab_size=260)
            >>> tokenizer.decode(tokenizer.encode("to be, 是"))
            'to be, 是'
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if vocab_size < SMALLEST_VOCABULARY:
            what = f"a byte-level vocabulary of {vocab_size} cannot hold every byte"
            raise DataError(what, do=f"Set vocab_size to {SMALLEST_VOCABULARY} or more.")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return cls.of_bpe(backend.to_str(pretty=True).encode())

    @classmethod
    def of_bpe(cls, content: bytes) -> Tokenizer:
        """The tokenizer that `train_bpe` made, from its `json`."""
        special = json.dumps({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}, indent=2).encode()
        return cls({_JSON: content, _CONFIG: _config(END_OF_TEXT, END_OF_TEXT), _SPECIAL: special}, bos_id=0, eos_id=0)

    @property
    def json(self) -> bytes:
        """The content of its ``tokenizer.json``."""
        return self._files[_JSON]

    @property
    def files(self) -> Mapping[str, bytes]:
        """The content of its files, by their names."""
        return self._files

    @functools.cached_property
    def added_tokens(self) -> dict[str, int]:
        """The tokens that a chat's text is searched for before it is cut into words, and their ids."""
        return {token.content: i for i, token in self._backend.get_added_tokens_decoder().items()}

    @functools.cached_property
    def special_ids(self) -> list[int]:
        """The ids of its special tokens, which stand for no text."""
        added = json.loads(self.json).get("added_tokens") or []
        return [token["id"] for token in added if token.get("special")]

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The narrowest type that holds every id: uint16 or uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, text: str) -> Int64[np.ndarray, " T"]:
        """The ids of a text, without a first or last token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Int64[np.ndarray, " _"]]:
        """The ids of each text."""
        joined, lengths = self.encode_joined(texts)
        return np.split(joined.astype(np.int64), np.cumsum(lengths)[:-1]) if texts else []

    def encode_joined(self, texts: Sequence[str]) -> tuple[UInt[np.ndarray, " T"], Int64[np.ndarray, " N"]]:
        """The ids of all texts one after another, and how many are whose.

        Raises:
            DataError: when the tokenizer has no ids for a text, which a byte-level one always has.
        """
        return self._encode_pieces(texts) if self._can_be_cut else self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> tuple[UInt[np.ndarray, " T"], Int64[np.ndarray, " N"]]:
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as fault:  # the library raises bare Exceptions
            raise _no_ids(fault) from None
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(itertools.chain.from_iterable(ids), self.dtype, int(lengths.sum())), lengths

    def encode_chat(self, texts: Sequence[str]) -> list[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, "_ 2"]]]:
        """The ids of each text, and the characters of it that each id stands for, from first to one past the last.

        A text is a rendered chat: special tokens written out in it are special tokens.

        Raises:
            DataError: when the tokenizer has no ids for a text, which a byte-level one always has.
        """
        try:
            encodings = self._chat_backend.encode_batch(list(texts), add_special_tokens=False)
        except Exception as fault:  # the library raises bare Exceptions
            raise _no_ids(fault) from None
        ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
        places = (itertools.chain.from_iterable(encoding.offsets) for encoding in encodings)
        return [
            (i, np.fromiter(place, np.int64, 2 * len(i)).reshape(-1, 2)) for i, place in zip(ids, places, strict=True)
        ]

    @functools.cached_property
    def _chat_backend(self) -> Any:
        from tokenizers import Tokenizer as Backend

        parts = json.loads(self._files[_JSON])
        parts["post_processor"] = None  # it would leave the spaces at a token's ends out of its place
        backend = Backend.from_str(json.dumps(parts))
        backend.no_truncation()
        backend.no_padding()
        return backend

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, special tokens written out."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def save(self, directory: str | Path) -> None:
        """Write its files, as they were found, so that ``transformers.AutoTokenizer`` loads the directory."""
        for name, content in self._files.items():
            path = Path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError("the file is not JSON", where=path, do="Get it anew.") from None
    return content if isinstance(content, dict) else {}


def _no_ids(fault: Exception) -> DataError:
    return DataError(f"the tokenizer cannot encode a text ({fault})", do="Use a byte-level tokenizer.")


def _config(bos_token: str | None, eos_token: str | None) -> bytes:
    ends = {"bos_token": bos_token, "eos_token": eos_token}
    rest = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps(ends | rest, indent=2).encode()
