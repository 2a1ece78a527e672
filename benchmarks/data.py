"""From a JSONL file to tokens in a cache and packs, against `datasets.map(batched=True)`."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import inputs, settings
from benchmarks.common import Facts, MissingError, Spread, child, environment, interleave, say, yes
from benchmarks.results import Table, installed
from benchmarks.settings import DATA_SPEED_UP, Options

REPEATS = 5
COPIES = 16
CHANGED = 0.02
"""Share of the words of a copy that are replaced by words seen nowhere else."""
CHUNK = 3 << 19
"""Bytes that Danlu encodes together, on average."""
THREADS = {1: "true", 2: "false"}
"""TOKENIZERS_PARALLELISM by the number of processes, the same on both sides."""

OURS, PEER, PEER_HUB = "danlu", "datasets.map, tokenizers", "datasets.map, transformers"


def run(options: Options, scratch: Path) -> list[Table]:
    """Both files, by one process and by two."""
    if not (installed("datasets") and installed("transformers")):
        raise MissingError("datasets and transformers are not installed")
    small = inputs.gsm8k()
    model = inputs.make("gsm8k", options, scratch, 1)["model"]
    copies = 2 if options.quick else COPIES
    large = vary(small, scratch / "varied.jsonl", copies)
    rows, raw, sound = [], {}, True
    for name, file in (("GSM8K", small), (f"GSM8K x {copies}, varied", large)):
        size = f"{file.stat().st_size / 2**20:.1f}"
        for processes, threads in THREADS.items():
            say(f" {name}, processes: {processes}")
            env = environment(options, scratch, TOKENIZERS_PARALLELISM=threads)
            given: dict[str, Any] = {"env": env, "file": str(file), "model": model, "processes": processes}
            sides = {
                OURS: partial(child, danlu_side, **given),
                PEER: partial(child, datasets_side, hub=False, **given),
                PEER_HUB: partial(child, datasets_side, hub=True, **given),
            }
            found = interleave(sides, options.rounds(REPEATS))
            sound &= len({facts["digest"] for side in found.values() for facts in side}) == 1
            raw[f"{name}, {processes}"] = found
            rows += [[name, size, str(processes), side, *_cells(side, found)] for side in found]
    notes = [
        f"Medians of {options.rounds(REPEATS)} repeats (least–most), ratios of each repeat.",
        "Danlu's seconds hold everything: reading JSON, encoding, the cache on disk, cutting, packing. Those of "
        "`datasets` hold `map` alone, its cache file included; 'with reading' adds `load_dataset`.",
        "The same tokenizer.json on all sides, called as `tokenizers.Tokenizer` or as transformers' fast tokenizer; "
        "every cache is empty at each repeat; imports are not counted; the ids of all sides "
        + ("are the same." if sound else "**differ: the comparison is void.**"),
        f"TOKENIZERS_PARALLELISM is the same on both sides: {THREADS[1]} with one process (threads of the tokenizer), "
        f"{THREADS[2]} with two. Danlu reads files as small as GSM8K by one process whatever it is told.",
        "Danlu encodes each different word of a chunk of about 1.5 MB once (`danlu.data.words`). So that copies are no "
        f"gift to it, {CHANGED:.0%} of the words of the larger file are made up, each another, every number is drawn "
        f"anew, and every document is numbered. Different words among the first 1.5 MB: {_variety(small)} of GSM8K's, "
        f"{_variety(large)} of the larger file's{_shakespeare()}.",
    ]
    columns = ["data", "MiB", "processes", "side", "seconds", "with reading", "Danlu × faster", "target", "met"]
    return [Table("Tokenise, pack, cache", columns, rows, notes, raw, sound)]


def _cells(side: str, found: dict[str, list[Facts]]) -> list[str]:
    seconds = [f["seconds"] for f in found[side]]
    spent = [Spread.of(seconds).show(), Spread.of([f["with_reading"] for f in found[side]]).show()]
    if side == OURS:
        return [*spent, "1", "–", "–"]
    faster = Spread.ratio(seconds, [f["seconds"] for f in found[OURS]])
    counts = side == PEER
    return [*spent, faster.show(), *((str(DATA_SPEED_UP), yes(DATA_SPEED_UP.met(faster.median))) if counts else "––")]


def vary(file: Path, to: Path, copies: int) -> Path:
    """A larger file of the same kind of text, in which no document is there twice."""
    generator = random.Random(settings.SEED)

    def word(match: re.Match[str]) -> str:
        if match[0][0].isdigit():
            return str(generator.randrange(10 ** len(match[0])))
        if generator.random() >= CHANGED:
            return match[0]
        return "".join(generator.choices(string.ascii_lowercase, k=generator.randint(4, 10)))

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    with to.open("w") as out:
        for copy in range(copies):
            for number, row in enumerate(rows):
                changed = {key: re.sub(r"\d+|[A-Za-z]+", word, text) for key, text in row.items()}
                changed["question"] = f"{copy * len(rows) + number}. {changed['question']}"
                out.write(json.dumps(changed) + "\n")
    return to


def _variety(file: Path) -> str:
    """The share of a chunk's words that are different, as the tokenizer cuts them."""
    from danlu.data.words import pieces

    with file.open() as lines:
        found = [word for line in lines.readlines(CHUNK) for word in pieces(_text(line))]
    return f"{len(set(found)) / len(found):.1%}"


def _text(line: str) -> str:
    return settings.GSM8K_TEXT.format(**json.loads(line)) if line.startswith("{") else line


def _shakespeare() -> str:
    file = settings.SHAKESPEARE
    return f", {_variety(file)} of Shakespeare's" if file.is_file() else ""


def danlu_side(file: str, model: str, processes: int) -> Facts:
    """In a child: a corpus and its packs, from nothing."""
    import numpy as np

    from danlu.data import Corpus, Tokenizer, pack

    tokenizer = Tokenizer.load(model)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        corpus = Corpus.open(
            file,
            tokenizer,
            context=settings.PACK_TOKENS,
            field=settings.GSM8K_TEXT,
            cache=cache,
            workers=processes,
        )
        packs = pack(corpus.lengths, settings.PACK_TOKENS)
        seconds = time.perf_counter() - start
        ids = np.concatenate([corpus[i].tokens for i in range(len(corpus))])
    return {"seconds": seconds, "with_reading": seconds, "packs": len(packs), "digest": _digest(ids)}


def datasets_side(file: str, model: str, processes: int, hub: bool) -> Facts:
    """In a child: what one writes with `datasets`."""
    import datasets
    import numpy as np
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    fast, backend = AutoTokenizer.from_pretrained(model), Tokenizer.from_file(f"{model}/tokenizer.json")
    first, last = [fast.bos_token_id], [fast.eos_token_id]

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [f"{q}\n{a}" for q, a in zip(rows["question"], rows["answer"], strict=True)]
        if hub:
            ids = fast(texts, add_special_tokens=False)["input_ids"]
        else:
            ids = [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
        return {"input_ids": [first + one + last for one in ids]}

    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
        read = time.perf_counter()
        tokens = rows.map(
            encode,
            batched=True,
            num_proc=processes if processes > 1 else None,
            remove_columns=rows.column_names,
        )
        end = time.perf_counter()
        ids = np.concatenate([chunk.values.to_numpy() for chunk in tokens.data.column("input_ids").chunks])
    return {"seconds": end - read, "with_reading": end - start, "digest": _digest(ids)}


def _digest(ids: Any) -> str:
    return hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=16).hexdigest()
