"""`transformers`, where it is installed; imported when first needed, and quiet while it works for us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from danlu.errors import UnsupportedError


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """The package; within, it logs errors only and draws no progress bars.

    Raises:
        UnsupportedError: when it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        do = "Install it with `pip install danlu[hub]`."
        raise UnsupportedError("this model needs `transformers`, which is not installed", do=do) from error
    logging = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What an exception of another library says, in a line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def refusing(kind: str) -> Iterator[None]:
    """Whatever fails within is why a model of this type cannot be packed.

    Raises:
        UnsupportedError: naming the type, and what failed.
    """
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(f"a model of type '{kind}' cannot be packed: {error.what}") from error
    except Exception as error:
        what = f"a model of type '{kind}' cannot be packed: it takes no attention from outside ({first_line(error)})"
        raise UnsupportedError(what) from error
