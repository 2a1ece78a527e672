from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from danlu.data.arrays import Arrays, Facts
from danlu.density import Density, Rows, Space
from danlu.density_pixels import brightness
from danlu.density_shown import shown
from danlu.errors import ConvergenceError
from danlu.parts.frame import Frame
from danlu.parts.framed import Framed


class Stretched(Density):
    """Noise, stretched and moved; of a class, by its number further."""

    def __init__(self, space: Space, shift: float = 1.0, scale: float = 2.0) -> None:
        super().__init__(space)
        self.shift, self.scale = shift, scale

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return z * self.scale + self._middle(z, context)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return (x - self._middle(x, context)) / self.scale

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        z = self.encode(x, context).flatten(1)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        return normal - self.space.size * float(np.log(self.scale))

    def path(self, z: Tensor, context: Tensor | None = None) -> list[Tensor]:
        return [z, z * self.scale, self.decode(z, context)]

    def _middle(self, x: Tensor, context: Tensor | None) -> Tensor:
        of_class = 0 if context is None else context.argmax(1).view(-1, *(1,) * (x.dim() - 1))
        return torch.as_tensor(self.shift + of_class)


class Unsolved(Stretched):
    """Cannot be followed."""

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        raise ConvergenceError("the equation was not followed")


def rows_of(arrays: Arrays) -> Rows:
    x, condition = arrays.take(np.arange(len(arrays)))
    told = None if condition is None else torch.from_numpy(condition)
    return Rows.of(torch.from_numpy(x), told, torch.arange(len(x)))


def made(x: np.ndarray, condition: np.ndarray | None = None, **about: Any) -> tuple[Arrays, Frame]:
    whole = about.pop("whole", (False,) * x.shape[1])
    arrays = Arrays(x.astype(np.float32), condition, whole=whole, **about)
    return arrays, Frame.fitted(arrays)


def plane(condition: np.ndarray | None = None, classes: tuple[str, ...] = ()) -> tuple[Arrays, Frame]:
    chance = np.random.default_rng(0)
    return made(5 + 3 * chance.standard_normal((500, 2)), condition, columns=("a", "b"), classes=classes)


def json_of(fields: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(fields, allow_nan=False))


def test_a_plane_is_shown_in_the_units_of_the_data(tmp_path: Path) -> None:
    arrays, frame = plane()
    framed = Framed(Stretched(Space((2,)), 0.5, 1.0), frame)
    fields = json_of(shown(framed, rows_of(arrays), Facts.of(arrays), seed=0, final=True, folder=tmp_path))
    assert "faults" not in fields
    assert (fields["shape"], fields["columns"], fields["likelihood"]) == ([2], ["a", "b"], "exact")
    assert fields["inversion_error"] < 1e-5
    assert fields["evaluations"] == {"encode": 1, "decode": 1}
    samples, data = (np.array(fields["cloud"][of]).T for of in ("samples", "data"))
    np.testing.assert_allclose(data, arrays.x[: len(data)], rtol=1e-3)
    shift, scale = frame.shift.numpy(), frame.scale.numpy()
    np.testing.assert_allclose(samples.mean(0), shift + 0.5 * scale, atol=0.4)
    np.testing.assert_allclose(samples.std(0), scale, rtol=0.1)
    want = framed.log_prob(arrays.x).double().mean()
    assert fields["log_likelihood"] == pytest.approx(float(want), rel=1e-4)
    assert np.array(fields["path"]["clouds"][-1]).mean(1) == pytest.approx(shift + 0.5 * scale, abs=0.7)
    assert fields["path"]["stages"] == [0, 1, 2]
    assert (tmp_path / fields["gif"]).read_bytes().startswith(b"GIF8")


def test_a_map_is_the_density_and_adds_up_to_one() -> None:
    arrays, frame = plane()
    framed = Framed(Stretched(Space((2,)), 0.0, 0.6), frame)
    told = shown(framed, rows_of(arrays), Facts.of(arrays), seed=0)["map"]
    side, values = told["side"], np.array(told["values"])
    x, y = (np.linspace(*told[of], side) for of in ("x", "y"))
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    want = framed.log_prob(grid).numpy()
    np.testing.assert_allclose(values, np.maximum(want, want.max() - 30), atol=0.02)
    area = (x[1] - x[0]) * (y[1] - y[0])
    assert np.exp(values).sum() * area == pytest.approx(1.0, abs=0.01)


def test_a_map_adds_up_over_classes_as_often_as_they_are() -> None:
    condition = np.array([0] * 400 + [1] * 100)
    arrays, frame = plane(condition, ("left", "right"))
    framed = Framed(Stretched(Space((2,), classes=2), 0.0, 0.5), frame)
    fields = shown(framed, rows_of(arrays), Facts.of(arrays), seed=0)
    told = fields["map"]
    grid = np.stack(np.meshgrid(*(np.linspace(*told[of], told["side"]) for of in ("x", "y"))), -1).reshape(-1, 2)
    want = (0.8 * framed.log_prob(grid, 0).exp() + 0.2 * framed.log_prob(grid, 1).exp()).log().numpy()
    np.testing.assert_allclose(told["values"], np.maximum(want, want.max() - 30), atol=0.02)
    assert fields["classes"] == 2


def test_what_is_shown_twice_is_the_same_and_leaves_the_mode() -> None:
    arrays, frame = plane()
    framed = Framed(Stretched(Space((2,))), frame).train()
    one, two, other = (shown(framed, rows_of(arrays), Facts.of(arrays), seed=seed) for seed in (0, 0, 1))
    assert json_of(one) == json_of(two) != json_of(other)
    assert framed.density.training


def test_columns_have_histograms_and_a_projection() -> None:
    chance = np.random.default_rng(0)
    wide = chance.standard_normal((300, 1)) @ np.array([[3.0, -2.0, 0.5]]) + 0.1 * chance.standard_normal((300, 3))
    arrays, frame = made(wide, columns=("u", "v", "w"))
    fields = json_of(shown(Framed(Stretched(Space((3,)), 0, 1), frame), rows_of(arrays), Facts.of(arrays), seed=0))
    assert [each["name"] for each in fields["histograms"]] == ["u", "v", "w"]
    assert all(sum(each["data"]) == pytest.approx(1, abs=1e-3) for each in fields["histograms"])
    assert fields["cloud"]["shares"][0] > 0.9
    spread = np.array(fields["cloud"]["data"]).std(1)
    assert spread[0] == pytest.approx(3**0.5, rel=0.1)
    assert "map" not in fields


def test_one_column_is_a_histogram() -> None:
    arrays, frame = made(np.random.default_rng(0).standard_normal((50, 1)), columns=("u",))
    fields = shown(Framed(Stretched(Space((1,))), frame), rows_of(arrays), Facts.of(arrays), seed=0, final=True)
    assert len(fields["histograms"]) == 1
    assert "faults" not in fields
    assert "cloud" not in fields


@pytest.mark.parametrize("flat", [False, True])
def test_images_are_pictures(flat: bool, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 17, (30, 1, 4, 4))
    labels = np.arange(30) % 3
    about: dict[str, Any] = {"kind": "image", "levels": 17, "whole": (True,), "classes": ("a", "b", "c")}
    arrays, frame = made(levels, labels, **about)
    framed = Framed(Stretched(Space((16,) if flat else (1, 4, 4), classes=3), 0, 1), frame)
    fields = json_of(shown(framed, rows_of(arrays), Facts.of(arrays), seed=0, final=True, folder=tmp_path))
    assert "faults" not in fields
    assert set(fields["pictures"]) == {"samples", "data", "between"}
    assert len(fields["path"]["pictures"]) == 3
    assert fields["bits_per_dim"] == pytest.approx(-fields["log_likelihood"] / 16 / np.log(2))
    assert float(brightness(frame, torch.full((1, 1, 4, 4), 16.0)).max()) == 1.0


def test_between_two_rows_are_these_at_its_ends() -> None:
    from danlu.density_shown import _between

    levels = np.random.default_rng(0).integers(0, 17, (30, 1, 4, 4))
    arrays, frame = made(levels, np.arange(30) % 3, kind="image", levels=17, whole=(True,), classes=("a", "b", "c"))
    framed = Framed(Stretched(Space((1, 4, 4), classes=3), 0, 1), frame)
    strips = _between(framed, rows_of(arrays)).view(4, 9, 1, 4, 4).numpy()
    assert np.array_equal(strips[:, 0], levels[:4])
    others = [(i + 4 + next(k for k in range(30) if (4 + k) % 3 == 0)) % 30 for i in range(4)]
    assert np.array_equal(strips[:, -1], levels[others])


def test_a_part_that_fails_is_told_and_the_others_are_there() -> None:
    arrays, frame = plane()
    fields = json_of(shown(Framed(Unsolved(Space((2,))), frame), rows_of(arrays), Facts.of(arrays), seed=0))
    assert fields["faults"] == ["the equation was not followed."] * 2
    assert "cloud" in fields
    assert "map" not in fields
