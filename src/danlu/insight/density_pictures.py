"""Pictures of densities: images as they became better, ways between them, and maps of the plane as they came about."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence

import numpy as np

from danlu.insight.page import Drawing
from danlu.insight.record import Event, Record, as_mapping, as_number
from danlu.insight.value_map import SCALE
from danlu.png import png_bytes

_MOST_MOMENTS, _MOST_STAGES = 24, 30
_MOST_PNG, _MOST_SIDE = 2**20, 400
_PNG = b"\x89PNG\r\n\x1a\n"
_PICTURES = {
    "data": ("Rows that were held out", ""),
    "between": (
        "Between two rows",
        "In each row, from the first image's code to the last one's, and what the codes on the way decode to.",
    ),
}


def outcome_drawings(record: Record) -> tuple[Drawing, ...]:
    """Pictures: samples as they became better, rows of the data, ways between rows, and the way from noise."""
    events = {int(event.number("step") or 0): event for event in record.events if event.kind == "density"}
    moments = [(step, _picture(events[step], "samples")) for step in sorted(events)]
    seen = _spread([(step, markup) for step, markup in moments if markup], _MOST_MOMENTS)
    drawn = [Drawing("Samples", "Of the same noise at every measurement.", tuple(seen))] if seen else []
    maps = [(step, _map(events[step])) for step in sorted(events)]
    known = _spread([(step, markup) for step, markup in maps if markup], _MOST_MOMENTS)
    if len(known) > 1:
        caption = "The same part of the plane at every measurement, each as bright as its own peak."
        drawn.append(Drawing("Density as it came about", caption, tuple(known)))
    last = record.last("density")
    if last is None:
        return tuple(drawn)
    for name, (title, caption) in _PICTURES.items():
        if markup := _picture(last, name):
            drawn.append(Drawing(title, caption, ((0, markup),), unit=""))
    pictures, way = as_mapping(last.fields.get("path")).get("pictures"), list[tuple[int, str]]()
    stages = numbers_of(as_mapping(last.fields.get("path")).get("stages"))
    for number, text in enumerate(pictures[:_MOST_STAGES] if isinstance(pictures, list) else []):
        if markup := _image(text, f"stage {number}"):
            way.append((int(stages[number]) if number < len(stages) else number, markup))
    if way:
        drawn.append(Drawing("From noise to images", where_is(last).strip(), tuple(way), unit="stage"))
    return tuple(drawn)


def _map(event: Event) -> str:
    """A map of the plane as a picture; nothing where there is none."""
    surface = as_mapping(event.fields.get("map"))
    values = map_of(surface)
    if values is None:
        return ""
    logarithms = values[::-1]
    share = np.exp(logarithms - logarithms.max()) * (len(SCALE) - 1)
    colors = [np.interp(share, range(len(SCALE)), [color[i] for color in SCALE]) for i in range(3)]
    text = base64.b64encode(png_bytes(np.stack(colors, -1).round().astype(np.uint8))).decode()
    return f'<img class="surface" alt="map of the density" src="data:image/png;base64,{text}">'


def map_of(surface: Mapping[str, object]) -> np.ndarray | None:
    """The log-densities of a map, from the lowest row upwards, ``[side, side]``; None where it is none."""
    told, values = numbers_of([surface.get("side")]), numbers_of(surface.get("values"))
    side = int(told[0]) if told else 0
    return np.array(values).reshape(side, side) if 1 < side <= _MOST_SIDE and len(values) == side * side else None


def where_is(event: Event) -> str:
    """Where the same lies as a file."""
    return f" The run's directory has it as {event.text('gif')}." if event.text("gif") else ""


def _picture(event: Event, name: str) -> str:
    return _image(as_mapping(event.fields.get("pictures")).get(name), name)


def _image(text: object, words: str) -> str:
    """A PNG as markup; nothing where it is none."""
    if not isinstance(text, str) or len(text) > _MOST_PNG:
        return ""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    if not content.startswith(_PNG):
        return ""
    return f'<img class="pixels" alt="{words}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _spread(moments: Sequence[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    if len(moments) <= most:
        return list(moments)
    return [moments[round(number * (len(moments) - 1) / (most - 1))] for number in range(most)]


def numbers_of(values: object) -> list[float]:
    """The numbers of a list, if there is nothing else in it."""
    numbers = [as_number(value) for value in values] if isinstance(values, list) else []
    good = [number for number in numbers if number is not None and math.isfinite(number)]
    return good if len(good) == len(numbers) else []
