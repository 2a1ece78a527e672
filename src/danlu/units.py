"""Numbers as people read them."""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def count(value: float) -> str:
    """Three significant digits and a decimal prefix; whole numbers below ten thousand as they are.

    Example:
        >>> count(1185), count(12_345), count(7_240_000_000)
        ('1,185', '12.3 k', '7.24 B')
    """
    if abs(value) < 10_000 and value == int(value):
        return f"{value:,.0f}"
    for size, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{_three(value / size)} {prefix}"
    return _three(value)


def memory(num_bytes: float) -> str:
    """Bytes with a binary prefix.

    Example:
        >>> memory(512), memory(3 * 2**30)
        ('512 B', '3 GiB')
    """
    for size, prefix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(num_bytes) >= size:
            return f"{_three(num_bytes / size)} {prefix}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    """The two largest units.

    Example:
        >>> duration(4.25), duration(754), duration(90_000)
        ('4.25 s', '12 min 34 s', '1 d 1 h')
    """
    if seconds < _MINUTE:
        return f"{_three(seconds)} s"
    for size, unit, smaller, part in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // smaller)} {part}"
    raise AssertionError("every number of seconds is below a minute or above it")


def percent(share: float) -> str:
    """A share of one.

    Example:
        >>> percent(0.4213)
        '42.1 %'
    """
    return f"{_three(100 * share)} %"


def _three(value: float) -> str:
    """Three significant digits, without an exponent where there need be none and without idle zeros."""
    if value == 0 or not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    text = f"{value:#.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
