"""One measurement in a process of its own: `python -m benchmarks.child MODULE:FUNCTION ANSWER`, arguments on stdin."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    """Read arguments, call, write the answer."""
    place, answer = sys.argv[1:]
    module, _, function = place.partition(":")
    arguments = json.load(sys.stdin)
    facts = getattr(importlib.import_module(module), function)(**arguments)
    Path(answer).write_text(json.dumps(facts))


if __name__ == "__main__":  # worker processes import this file again
    main()
