"""What both sides of a comparison start from: the same weights, tokenizer and documents, in the same order."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import settings
from benchmarks.common import Facts, MissingError, child, environment
from benchmarks.settings import Lengths, Options


def gsm8k() -> Path:
    """The file.

    Raises:
        MissingError: when it is not there.
    """
    if not settings.GSM8K.is_file():
        raise MissingError(f"there is no {settings.GSM8K}")
    return settings.GSM8K


def make(kind: str, options: Options, scratch: Path, steps: int) -> Facts:
    """Weights, tokenizer and documents of one kind ("gsm8k", "log-normal"), made once a run.

    Returns:
        `model` (a hub directory with its tokenizer), `train`, `field`, and `samples`: a JSON file with the token ids of
        the first `steps` steps' samples.
    """
    folder = scratch / f"{kind}-{steps}"
    if not (folder / "facts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train = str(gsm8k()) if kind == "gsm8k" else None
        facts = child(
            build,
            env=environment(options, scratch),
            folder=str(folder),
            shape=options.shape,
            train=train,
            steps=steps,
        )
        (folder / "facts.json").write_text(json.dumps(facts))
    found: Facts = json.loads((folder / "facts.json").read_text())
    return found


def build(folder: str, shape: Mapping[str, Any], train: str | None, steps: int) -> Facts:
    """In a child: see `make`; without `train`, documents of random tokens."""
    from danlu.architecture.hub import save_hub
    from danlu.data import Corpus, Tokenizer
    from danlu.data.prepare import train_tokenizer
    from danlu.registry import lookup

    home, count = Path(folder), steps * settings.STEP_SAMPLES
    if train is None:
        train, field = str(home / "train.jsonl"), "text"
        tokenizer: Tokenizer = _random_words(home, shape["vocab_size"], max(count, settings.STEP_SAMPLES))
    else:
        field = settings.GSM8K_TEXT
        tokenizer = train_tokenizer(train, field, shape["vocab_size"])
    config = lookup("architecture", "qwen3")(**shape)
    model = config.build()
    config.initialize(model, settings.SEED)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    save_hub(model, home / "model", settings=ids)
    tokenizer.save(home / "model")
    corpus = Corpus.open(train, tokenizer, context=settings.CONTEXT, field=field)
    samples = [corpus[i].tokens.tolist() for i in range(count)]
    (home / "samples.json").write_text(json.dumps(samples))
    return {
        "model": str(home / "model"),
        "train": train,
        "field": field,
        "samples": str(home / "samples.json"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": tokenizer.vocab_size,
    }


def _random_words(home: Path, vocabulary: int, documents: int, lengths: Lengths = settings.LENGTHS) -> Any:
    """Documents of random words, and the tokenizer that has one token for each word."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    from danlu.data import Tokenizer

    generator = random.Random(settings.SEED)
    with (home / "train.jsonl").open("w") as file:
        for _ in range(documents):
            drawn = generator.lognormvariate(math.log(lengths.median), lengths.sigma)
            length = min(max(round(drawn), lengths.shortest), lengths.longest)
            text = " ".join(f"w{generator.randrange(vocabulary)}" for _ in range(length))
            file.write(json.dumps({"text": text}) + "\n")
    words = Backend(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    (home / "words").mkdir(exist_ok=True)
    words.save(str(home / "words" / "tokenizer.json"))
    return Tokenizer.load(home / "words")


def recipe(
    inputs: Facts, *, precision: str, compiled: bool, steps: int, device: str, threads: int | None
) -> dict[str, Any]:
    """What a user of Danlu would write."""
    return {
        "model": {"path": inputs["model"]},
        "method": {"name": "next_token"},
        "data": {
            "train": inputs["train"],
            "field": inputs["field"],
            "context": settings.CONTEXT,
            "step_samples": settings.STEP_SAMPLES,
            "shuffle": False,
        },
        "optimizer": {
            "name": "adamw",
            "lr": settings.LEARNING_RATE,
            "betas": settings.BETAS,
            "eps": settings.EPSILON,
            "weight_decay": settings.WEIGHT_DECAY,
            "clip_norm": settings.CLIP_NORM,
            "schedule": {"name": "constant", "warmup": 0.0},
        },
        "run": {
            "steps": steps,
            "seed": settings.SEED,
            "device": device,
            "threads": threads,
            "precision": precision,
            "compile": compiled,
            "pack_tokens": settings.PACK_TOKENS,
            "checkpoint_every": 1_000_000,
        },
    }
