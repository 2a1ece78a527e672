"""How long until the first update on a large file, and how memory grows with the file."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import inputs, settings
from benchmarks.common import Facts, Spread, child, environment, interleave, mebibytes, say, yes
from benchmarks.results import Table
from benchmarks.settings import FIRST_STEP_SECONDS, Options
from benchmarks.throughput import Clock

REPEATS = 3
SIZES = {"256 MB": 1 << 28, "1 GB": 1 << 30}
QUICK_SIZES = {"4 MB": 1 << 22}


def run(options: Options, scratch: Path) -> list[Table]:
    """Files of several sizes, each with empty caches at every repeat."""
    model = inputs.make("gsm8k", options, scratch, 1)["model"]
    sizes = QUICK_SIZES if options.quick else SIZES
    rows, raw = [], {}
    for name, size in sizes.items():
        say(f" writing {name}")
        file = write_chats(scratch / f"chats-{size}.jsonl", size)

        def measure(file: Path = file) -> Facts:
            with tempfile.TemporaryDirectory(dir=scratch) as cache:
                env = environment(options, scratch, DANLU_CACHE=cache)
                return child(
                    danlu_side, env=env, model=model, file=str(file), device=options.device, threads=options.threads
                )

        found = interleave({name: partial(measure)}, options.rounds(REPEATS))[name]
        raw[name] = found
        seconds = Spread.of([f["seconds"] for f in found])
        counts = name == "1 GB"
        cells = (str(FIRST_STEP_SECONDS), yes(FIRST_STEP_SECONDS.met(seconds.median))) if counts else ("–", "–")
        memory = Spread.of([float(f["memory"]) for f in found]).median
        rows.append([name, f"{found[0]['rows']:,}", seconds.show(1), *cells, mebibytes(memory)])
        file.unlink()
    notes = [
        "Seconds from the start of the process to the end of the first update of `danlu train sft`, uncompiled: "
        "imports, the index of the file, the doctor's look at a sample, tokens of the first pool, the update itself.",
        "Every cache is empty. Memory is the process's peak resident set until then, without its helpers'.",
    ]
    columns = ["file", "rows", "seconds to the first update", "target", "met", "peak MiB"]
    return [Table("The way in", columns, rows, notes, raw)]


def write_chats(file: Path, size: int) -> Path:
    """Conversations about GSM8K's questions, no two alike."""
    generator = random.Random(settings.SEED)
    known = [json.loads(line) for line in inputs.gsm8k().read_text().splitlines()]
    written = 0
    with file.open("w") as out:
        while written < size:
            row = generator.choice(known)
            question = f"{generator.randrange(10**9)}. {row['question']}"
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row["answer"]}]
            written += out.write(json.dumps({"messages": turns}) + "\n")
    return file


def danlu_side(model: str, file: str, device: str, threads: int) -> Facts:
    """In a child: `danlu.train` of one update."""
    import psutil

    from danlu import train

    class Listener(Clock):
        rows = 0

        def metrics(self, row: Mapping[str, Any]) -> None:
            if "loss" in row:
                self.tick()
                self.seconds = time.time() - psutil.Process().create_time()

        def event(self, event: Mapping[str, Any]) -> None:
            self.rows = event.get("documents", self.rows)

        def close(self) -> None:
            pass

    clock = Listener(device)
    with tempfile.TemporaryDirectory() as folder:
        overrides = (
            *(f"model={model}", f"data.train={file}", "data.chat_template=chatml", "data.context=1024"),
            *("run.steps=1", f"run.device={device}", f"run.threads={threads}", f"run.out={folder}/run"),
        )
        train("sft", *overrides, listeners=[clock])
    return {"seconds": clock.seconds, "memory": clock.memory, "rows": clock.rows}
