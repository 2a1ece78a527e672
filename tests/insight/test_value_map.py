from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from danlu.insight.value_map import Grid, Measured, draw

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
SVG = ElementTree.Element


def drawn(grid: Grid, values: list[float], actions: list[int]) -> SVG:
    return ElementTree.fromstring(draw(grid, Measured(0, tuple(values), tuple(actions)), min(values), max(values)))


def cells(svg: SVG) -> list[SVG]:
    return [rect for rect in svg.iter("rect") if rect.find("title") is not None]


@pytest.mark.parametrize(("action", "way"), list(enumerate(MOVES)))
def test_an_arrow_goes_where_the_action_goes(action: int, way: tuple[int, int]) -> None:
    svg = drawn(Grid(1, 1, MOVES), [0.0], [action])
    (path,) = [p.attrib["d"] for p in svg.iter("path")]
    if way == (0, 0):
        assert "a4 4" in path
        return
    x0, y0, x1, y1 = map(float, re.match(r"M(\S+) (\S+)L(\S+) (\S+?)M", path).groups())  # type: ignore[union-attr]
    assert (np.sign(round(y1 - y0, 6)), np.sign(round(x1 - x0, 6))) == way
    head = [tuple(map(float, pair)) for pair in re.findall(r"(?<=[ML])(\S+?) ([-\d.e]+)", path)]
    back = [(x, y) for x, y in head[2:] if (x, y) != (x1, y1)]
    assert len(back) == 2  # the barbs lie behind the tip, on either side of the shaft
    assert all((x1 - x) * way[1] + (y1 - y) * way[0] > 0 for x, y in back)
    sides = [(x1 - x) * way[0] - (y1 - y) * way[1] for x, y in back]
    assert sides[0] * sides[1] < 0


def test_every_state_has_its_cell_in_rows_and_is_lighter_the_larger_its_value() -> None:
    values = [float(value) for value in np.random.default_rng(0).permutation(12)]
    shown = cells(drawn(Grid(12, 4, MOVES), values, [0] * 12))
    assert len(shown) == 12
    for state, rect in enumerate(shown):
        assert (float(rect.attrib["x"]) / 44, float(rect.attrib["y"]) / 44) == (state % 4, state // 4)
        assert rect.find("title").text == f"state {state}: {values[state]:.4g}, action 0"  # type: ignore[union-attr]

    def light(rect: SVG) -> float:
        red, green, blue = (int(rect.attrib["fill"][i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert list(np.argsort([light(rect) for rect in shown])) == list(np.argsort(values))


def test_a_target_and_what_is_forbidden_are_framed() -> None:
    svg = drawn(Grid(4, 2, MOVES, frozenset({1, 2}), 3), [0.0, 1.0, 2.0, 3.0], [1, 1, 1, 4])
    framed = [rect for rect in svg.iter("rect") if rect.attrib.get("fill") == "none"]
    dashed = [rect for rect in framed if "stroke-dasharray" in rect.attrib]
    at = [(float(rect.attrib["x"]) // 44, float(rect.attrib["y"]) // 44) for rect in (*dashed, framed[-1])]
    assert at == [(1, 0), (0, 1), (1, 1)]


def test_a_world_that_is_no_grid_has_its_actions_by_number() -> None:
    svg = drawn(Grid(3, 3), [0.0, 1.0, 2.0], [2, 0, 1])
    assert [word.text for word in svg.iter("text")][:6:2] == ["a2", "a0", "a1"]
    assert not list(svg.iter("path"))
    assert not [word for word in drawn(Grid(3, 3), [0.0, 1.0, 2.0], []).iter("text") if (word.text or "")[0] == "a"]


def test_equal_values_and_large_worlds_are_drawn() -> None:
    assert len(cells(drawn(Grid(2, 2), [1.0, 1.0], [0, 0]))) == 2
    large = drawn(Grid(900, 30, MOVES), [float(i) for i in range(900)], [1] * 900)
    assert len(cells(large)) == 900
    assert len(list(large.iter("text"))) == 1
