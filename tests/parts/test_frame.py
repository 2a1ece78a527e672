"""The frame: its log-det is autograd's, it inverts, whole numbers come back, and densities integrate in data's units."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from danlu.data.arrays import ArrayConfig, Arrays, load_arrays, toy
from danlu.density import Density, Rows, Space
from danlu.errors import DanluError
from danlu.parts.frame import Frame
from danlu.parts.framed import Framed
from danlu.random import token_keys

CHANCE = np.random.default_rng(0)


def keys(num: int, key: int = 0) -> Tensor:
    return token_keys(key, torch.arange(num), torch.zeros(num, dtype=torch.int64))


def bytes_of(shape: tuple[int, ...], levels: int = 256) -> Arrays:
    x = CHANCE.integers(0, levels, (200, *shape)).astype(np.uint8)
    return Arrays(x, kind="image", whole=(True,) * shape[0], levels=levels)


TABLES = {
    "toy": (toy("moons", 500, 0), {}),
    "table": (Arrays(CHANCE.normal([1e4, -2e-3], [5e3, 1e-4], (500, 2)), whole=(False, False)), {}),
    "mixed": (
        Arrays(np.stack([CHANCE.integers(-50, 5000, 500), CHANCE.normal(3, 2, 500)], 1), whole=(True, False)),
        {},
    ),
    "as it is": (toy("moons", 500, 0), {"standardize": False}),
    "digits": (bytes_of((1, 4, 4), 17), {}),
    "bytes": (bytes_of((3, 3, 2)), {}),
    "logit": (bytes_of((1, 4, 4), 17), {"logit": 0.05}),
    "logit of bytes": (bytes_of((3, 3, 2)), {"logit": 1e-6}),
    "logit alone": (bytes_of((3, 3, 2)), {"logit": 0.05, "standardize": False}),
    "levels": (Arrays(CHANCE.integers(0, 9, (500, 3)), whole=(True,) * 3, levels=9), {"logit": 0.01}),
}


def framed(name: str) -> tuple[Frame, Tensor]:
    table, options = TABLES[name]
    frame = Frame.fitted(table, **options)
    return frame, torch.from_numpy(table.take(np.arange(len(table)))[0])


@pytest.mark.parametrize("name", TABLES)
def test_the_log_det_is_autograds(name: str) -> None:
    frame, x = framed(name)
    frame, x = frame.double(), x[:3].double() + (0.0 if TABLES[name][0].kind == "toy" else 0.25)
    _, log_det = frame(x, keys(3))
    for i in range(3):

        def one(row: Tensor, i: int = i) -> Tensor:
            return frame(row[None], keys(3)[i : i + 1])[0][0]

        jacobian = torch.autograd.functional.jacobian(one, x[i]).view(x[i].numel(), -1)
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", TABLES)
def test_the_way_back_is_the_inverse(name: str) -> None:
    """Whole numbers, whatever noise was added to them, come back as they were, each of them, in float32."""
    frame, x = framed(name)
    whole = frame.noise.expand(x.shape[1:]) > 0
    for key in range(10):
        back = frame.inverse(frame(x, keys(len(x), key))[0])
        assert torch.equal(back[:, whole], x[:, whole])
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-6)


def test_every_level_comes_back() -> None:
    table = bytes_of((1, 16, 16))
    x = torch.arange(256.0).view(1, 1, 16, 16).repeat(200, 1, 1, 1)
    for logit in (None, 1e-6, 0.05):
        frame = Frame.fitted(table, logit=logit)
        for key in range(5):
            assert torch.equal(frame.inverse(frame(x, keys(200, key))[0]), x)


def test_numbers_beyond_the_levels_are_brought_back_to_them() -> None:
    frame = Frame.fitted(bytes_of((1, 2, 2), 17))
    assert frame.inverse(torch.full((1, 1, 2, 2), 100.0)).unique().tolist() == [16]
    assert frame.inverse(torch.full((1, 1, 2, 2), -100.0)).unique().tolist() == [0]


@pytest.mark.parametrize("name", TABLES)
def test_columns_and_channels_get_mean_0_and_deviation_1(name: str) -> None:
    frame, x = framed(name)
    y = frame(x, keys(len(x), 9))[0].transpose(0, 1).flatten(1).double()
    if TABLES[name][1].get("standardize", True):
        torch.testing.assert_close(y.mean(1), torch.zeros(len(y)).double(), rtol=0, atol=0.05)
        torch.testing.assert_close(y.std(1), torch.ones(len(y)).double(), rtol=0, atol=0.1)
    else:
        assert torch.equal(frame.scale, torch.ones_like(frame.scale))


def test_moments_are_those_of_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Arrays(CHANCE.normal([1e6, 0.0], [3.0, 1e-3], (1000, 2)), whole=(False, False))
    monkeypatch.setattr("danlu.parts.frame._BLOCK", 74)
    frame = Frame.fitted(table)
    assert frame.shift.numpy() == pytest.approx(table.x.astype(np.float32).astype(float).mean(0), rel=1e-6)
    assert frame.scale.numpy() == pytest.approx(table.x.astype(np.float32).astype(float).std(0), rel=1e-5)


def test_noise_is_even_within_its_level_and_follows_from_the_keys() -> None:
    frame = Frame.fitted(bytes_of((1, 8, 8)), standardize=False)
    x = torch.full((2000, 1, 8, 8), 7.0)
    y, again, other = (frame(x, keys(2000, key))[0] for key in (1, 1, 2))
    assert torch.equal(y, again)
    assert not torch.equal(y, other)
    u = (y - 7).flatten().double()
    assert 0 < u.min() < u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - len(u) / 20).square() / (len(u) / 20)).sum() < 50
    moved = frame(x, keys(2000)[torch.arange(2000).flip(0)])[0]
    assert torch.equal(moved.flip(0), frame(x, keys(2000))[0])


def test_a_frame_is_saved_and_found_again() -> None:
    frame, x = framed("logit")
    said = frame(x, keys(len(x)))
    for other in (Frame.of_state(frame.state_dict(), frame.shape), copy.deepcopy(frame)):
        for mine, theirs in zip(said, other(x, keys(len(x))), strict=True):
            assert torch.equal(mine, theirs)
    late = Frame(frame.shape)
    late(x, keys(len(x)))  # what it knows of itself now must be forgotten
    late.load_state_dict(frame.state_dict())
    assert torch.equal(late(x, keys(len(x)))[1], said[1])
    with torch.no_grad():
        for name, buffer in Frame(frame.shape).state_dict().items():
            late.get_buffer(name).copy_(buffer)
    assert torch.equal(late(x, keys(len(x)))[0], x)


def test_numbers_that_rows_are_conditioned_on_are_scaled() -> None:
    x, told = CHANCE.normal(size=(300, 2)), CHANCE.normal([5.0, -3.0], [2.0, 0.1], (300, 2)).astype(np.float32)
    frame = Frame.fitted(Arrays(x, told, features=("a", "b"), whole=(False, False)))
    seen = frame.condition(torch.from_numpy(told))
    assert seen is not None
    torch.testing.assert_close(seen.mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(2))
    classes = torch.tensor([1, 0])
    labelled = Frame.fitted(Arrays(x, np.zeros(300, np.int64), classes=("a", "b"), whole=(False, False)))
    assert labelled.condition(classes) is classes
    assert frame.condition(None) is None


class Gaussian(Density):
    """Normal rows, their middle where the context says."""

    def __init__(self, space: Space, scale: float = 0.7) -> None:
        super().__init__(space)
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def _middle(self, context: Tensor | None, like: Tensor) -> Tensor:
        place = like.new_zeros(len(like)) if context is None else context @ torch.arange(context.shape[1]).to(like)
        return place.view(-1, *(1,) * (like.dim() - 1))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return z * self.scale + self._middle(context, z)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return (x - self._middle(context, x)) / self.scale

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        squares = self.encode(x, context).square().flatten(1).sum(1)
        return -0.5 * squares - self.space.size * (self.scale.log() + 0.5 * math.log(2 * math.pi))

    def path(self, z: Tensor, context: Tensor | None = None) -> list[Tensor]:
        return [z, self.decode(z, context)]


def test_densities_integrate_to_one_in_the_datas_units() -> None:
    table = Arrays(CHANCE.normal([100.0, -2.0], [5.0, 0.1], (500, 2)), whole=(False, False))
    asked = Framed(Gaussian(Space((2,))), Frame.fitted(table))
    a, b = torch.linspace(60, 140, 400), torch.linspace(-3, -1, 400)
    grid = torch.cartesian_prod(a, b)
    mass = asked.log_prob(grid).double().exp().sum() * (a[1] - a[0]) * (b[1] - b[0])
    assert float(mass) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("logit", [None, 0.05])
def test_levels_have_probabilities_that_sum_to_one(logit: float | None) -> None:
    """The mean over noise of a dequantised density is a level's probability, so its bits are those of a code."""
    table = Arrays(np.arange(16).reshape(16, 1, 1, 1).astype(np.uint8), kind="image", whole=(True,), levels=16)
    asked = Framed(Gaussian(Space((1,)), 0.4), Frame.fitted(table, logit=logit))
    x = np.tile(np.arange(16), 3000).reshape(-1, 1, 1, 1).astype(np.uint8)
    each = asked.log_prob(x).view(3000, 16)
    assert float(each.exp().mean(0).sum()) == pytest.approx(1.0, abs=5e-3)
    assert torch.equal(asked.bits_per_dim(x), -each.flatten() / math.log(2))
    assert (each.mean(0) <= each.exp().mean(0).log()).all()


def test_a_density_alike_for_all_bytes_has_eight_bits_a_dimension() -> None:
    class Even(Gaussian):
        def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return x.new_full((len(x),), -self.space.size * math.log(256))

    frame = Frame.fitted(bytes_of((3, 2, 2)), standardize=False)
    said = Framed(Even(Space((12,))), frame).bits_per_dim(np.zeros((2, 3, 2, 2)))
    torch.testing.assert_close(said, torch.full((2,), 8.0))


def test_a_method_is_given_rows_as_the_network_sees_them() -> None:
    table = bytes_of((1, 4, 4), 17)
    x = torch.from_numpy(table.take(np.arange(5))[0])
    rows = Rows.of(x, torch.tensor([0, 1, 1, 0, 2]), torch.arange(5)).keyed(7)
    for shape in ((16,), (1, 4, 4)):
        asked = Framed(Gaussian(Space(shape, classes=3)), Frame.fitted(table, logit=0.05))
        given: list[Any] = []
        asked(rows, lambda density, seen, given=given: given.append((density, seen)))
        density, seen = given[0]
        y, log_det = asked.frame(x, rows.keys)
        assert density is asked.density
        assert torch.equal(seen.x, y.view(5, *shape))
        assert torch.equal(seen.log_det, log_det)
        assert torch.equal(seen.keys, rows.keys)
        assert seen.condition is rows.condition


def test_people_ask_in_the_datas_units() -> None:
    table, _ = load_arrays(ArrayConfig(train="digits", label="label"), 0)
    asked = Framed(Gaussian(Space((64,), classes=10)), Frame.fitted(table))
    x, condition = table.take(np.arange(6))
    assert asked.log_prob(x, condition).shape == (6,)
    assert torch.equal(asked.log_prob(x, 3), asked.log_prob(torch.from_numpy(x), np.full(6, 3)))
    z = asked.encode(x, condition)
    assert z.shape == (6, 64)
    assert torch.equal(asked.decode(z, condition), torch.from_numpy(x))
    made = asked.sample(20, seed=1)
    assert made.shape == (20, 1, 8, 8)
    assert set(made.unique().tolist()) <= set(range(17))
    assert torch.equal(made[:5], asked.sample(5, seed=1))
    assert not torch.equal(made, asked.sample(20, seed=2))
    assert torch.equal(made, asked.sample(20, asked.classes(20, seed=1), seed=1))
    assert set(asked.classes(500).tolist()) == set(range(10))
    assert asked.sample(0, 1).shape == (0, 1, 8, 8)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = bytes_of((1, 4, 4), 17)
    asked = Framed(Gaussian(Space((16,), classes=2)), Frame.fitted(table))
    x, condition = table.x, np.arange(200) % 2
    whole = asked.log_prob(x, condition), asked.encode(x, condition), asked.sample(200, condition)
    monkeypatch.setattr("danlu.parts.framed._BLOCK", 16 * 7)
    parts = asked.log_prob(x, condition), asked.encode(x, condition), asked.sample(200, condition)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_what_cannot_be_asked() -> None:
    asked = Framed(Gaussian(Space((2,), classes=3)), Frame((2,)))
    free = Framed(Gaussian(Space((2,))), Frame((2,)))
    told = Framed(Gaussian(Space((2,), features=2)), Frame((2,), 2))
    levels = Framed(Gaussian(Space((4,))), Frame.fitted(bytes_of((1, 2, 2))))
    x = np.zeros((4, 2))
    for ask, said in (
        (lambda: asked.log_prob(np.zeros((4, 3)), 0), r"rows of shape \(4, 3\) are given, and it takes \[N, 2\]"),
        (lambda: free.log_prob(np.zeros(2)), r"rows of shape \(2,\) are given"),
        (lambda: free.decode(np.zeros((4, 3))), r"noise of shape \(4, 3\) are given"),
        (lambda: free.decode(np.zeros(2)), r"noise of shape \(2,\) are given"),
        (lambda: free.log_prob([["a", "b"]]), "an array of numbers is asked for"),
        (lambda: free.log_prob([[0, 1], [np.nan, 1]]), "row 1 has what is no finite number"),
        (lambda: free.sample(-1), "-1 rows are asked for"),
        (lambda: free.sample(2.5), "2.5 rows are asked for"),
        (lambda: asked.sample(2, "cat"), "there is no such class among 3"),
        (lambda: asked.sample(2, 1.5), "a class is no whole number"),
        (lambda: told.sample(4, np.zeros(4)), r"conditions of shape \(4,\) are given, and it takes \[N, 2\]"),
        (
            lambda: levels.log_prob(np.full((1, 1, 2, 2), 300)),
            "numbers from 300 to 300 are asked about, and there are 256",
        ),
        (lambda: levels.log_prob(np.full((1, 1, 2, 2), 0.5)), "it is of whole numbers, and there are others"),
        (lambda: asked.log_prob(x), "this density is conditioned on a class of 3. Name a condition."),
        (lambda: free.log_prob(x, 1), "this density is conditioned on nothing"),
        (lambda: asked.log_prob(x, 3), "there is no such class among 3. They are numbered from 0."),
        (lambda: asked.log_prob(x, np.array([0, 1])), "2 conditions are told of 4 rows"),
    ):
        with pytest.raises(DanluError, match=said):
            ask()


def test_single_numbers_may_be_told_one_a_row() -> None:
    told = Framed(Gaussian(Space((2,), features=1)), Frame((2,), 1))
    x, numbers = np.ones((3, 2)), np.array([0.5, 1.0, 2.0])
    assert torch.equal(told.log_prob(x, numbers), told.log_prob(x, numbers[:, None]))
    assert told.sample(4, 0.5).shape == told.sample(4, [0.5]).shape == (4, 2)


def test_lists_and_names_are_taken_as_arrays_and_numbers() -> None:
    asked = Framed(Gaussian(Space((2,), classes=3)), Frame((2,)))
    asked.class_names = ("ant", "bee", "cow")
    x = [[0.0, 1.0], [2.0, 3.0]]
    assert torch.equal(asked.log_prob(x, ["bee", "cow"]), asked.log_prob(np.array(x), np.array([1, 2])))
    assert torch.equal(asked.sample(3, "bee"), asked.sample(3, 1))
    assert asked.sample(0, 1).shape == (0, 2)
