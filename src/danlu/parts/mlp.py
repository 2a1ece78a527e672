"""Fully connected networks side by side, their weights one vector.

    h_0 = x,   h_l = f(h_{l-1} W_l + b_l),   y_k = h_L V_k + c_k

K networks whose hidden layers are alike (an actor and its critic, say) are one product of ``[K, in, out]`` a layer;
only their last layers differ. All of it lies in one vector theta, so an optimiser moves one tensor, a target follows
by one interpolation, and a conjugate gradient needs no flattening.

There are several ways through, equal to rounding: `forward`, one operation whose backward is written out below;
`passed` and `pull`, the same without a graph, for losses whose slopes are written out too; `differentiable`, for what
wants a gradient's gradient; and `answer`, in numpy, for a few observations at a time, where calls are all it costs.

References:
    Saxe, McClelland and Ganguli, 2013, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks" (orthogonal weights), https://arxiv.org/abs/1312.6120
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.errors import UnsupportedError
from danlu.parts.network import MLP
from danlu.parts.products import affine, product


@dataclass(frozen=True, eq=False)
class Weights:
    """Theta in its pieces.

    Attributes:
        hidden: of each hidden layer the matrices ``[K, in, out]`` and biases ``[K, 1, out]``.
        last: of each network the last matrix ``[in, out]`` and bias ``[out]``.
        own: numbers that no layer uses, ``[own]``.
    """

    hidden: list[tuple[Tensor, Tensor]]
    last: list[tuple[Tensor, Tensor]]
    own: Tensor


@dataclass(frozen=True, eq=False)
class _Held:
    """Theta as it lies at one place in memory.

    Attributes:
        place: where.
        weights: its pieces.
        layers: of each network all layers, as arrays; none on an accelerator.
        own: numbers that no layer uses, as an array; on an accelerator a copy.
        gradient: a vector for theta's gradient, and its pieces.
    """

    place: int
    weights: Weights
    layers: list[list[tuple[np.ndarray, np.ndarray]]]
    own: np.ndarray
    gradient: tuple[Tensor, Weights]


@dataclass(frozen=True, eq=False)
class Passed:
    """What came of an input, for `Networks.pull`.

    Attributes:
        x: the input.
        hidden: every hidden layer, ``[K, B, width]``; where there is none, the input.
        said: what each network makes of it, and behind these the numbers beside the layers.
    """

    x: Tensor
    hidden: Sequence[Tensor]
    said: tuple[Tensor, ...]


class Networks(nn.Module):
    """K networks of the same hidden layers and the same input.

    Args:
        inputs: numbers in.
        outputs: numbers out, of each network.
        shape: what the hidden layers are.
        seed: weights follow from it.
        gains: of each network, what its last layer is scaled by at the start where that is orthogonal; 1 by default.
        own: numbers kept beside the layers, zero at the start.

    Attributes:
        theta: all weights.

    Raises:
        UnsupportedError: for an activation whose slope is not written out here.
    """

    def __init__(
        self, inputs: int, outputs: Sequence[int], shape: MLP, *, seed: int, gains: Sequence[float] = (), own: int = 0
    ) -> None:
        super().__init__()
        if shape.activation not in ("tanh", "relu"):
            what = f"networks that act are made for tanh and relu, not for {shape.activation}"
            raise UnsupportedError(what, where="model.activation", do="Use one of these.")
        self.shape, self.outputs, self.inputs = shape, tuple(outputs), inputs
        widths = (inputs, *shape.hidden)
        num = len(outputs)
        self._hidden = [((num, a, b), (num, 1, b)) for a, b in pairwise(widths)]
        self._last = [((widths[-1], out), (out,)) for out in outputs]
        self._shapes = [shape for pair in (*self._hidden, *self._last) for shape in pair] + [(own,)]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self.theta = nn.Parameter(torch.zeros(sum(self._sizes)))
        self._held: _Held | None = None
        self._initialize(torch.Generator().manual_seed(seed % 2**63), tuple(gains) or (1.0,) * num)

    def weights(self, theta: Tensor) -> Weights:
        """A vector such as theta in its pieces, which share its memory."""
        split = theta.split(self._sizes)
        pieces = [piece.view(shape) for piece, shape in zip(split, self._shapes, strict=True)]
        pairs = list(zip(pieces[:-1:2], pieces[1:-1:2], strict=True))
        depth = len(self._hidden)
        return Weights(pairs[:depth], pairs[depth:], pieces[-1])

    @torch.no_grad()
    def _initialize(self, chance: torch.Generator, gains: Sequence[float]) -> None:
        weights = self.weights(self.theta)
        matrices = [(w[k], b[k], math.sqrt(2.0)) for w, b in weights.hidden for k in range(len(self.outputs))]
        matrices += [(w, b, gain) for (w, b), gain in zip(weights.last, gains, strict=True)]
        for matrix, bias, gain in matrices:
            if self.shape.initial == "orthogonal":
                nn.init.orthogonal_(matrix, gain, generator=chance)
            else:
                bound = 1 / math.sqrt(len(matrix))
                matrix.uniform_(-bound, bound, generator=chance)
                bias.uniform_(-bound, bound, generator=chance)

    def forward(self, x: Float[Tensor, "B F"], *, frozen: bool = False) -> tuple[Tensor, ...]:
        """What each network makes of it, ``[B, outputs_k]``, and behind these the numbers beside the layers.

        Args:
            x: the input of all.
            frozen: take no gradient of the weights.
        """
        theta = self.theta.detach() if frozen else self.theta
        if torch.is_grad_enabled() and (theta.requires_grad or x.requires_grad):
            return _Through.apply(x, theta, self)  # type: ignore[no-any-return]
        weights = self._now().weights
        return self._out(weights, self._through(weights, x))

    @torch.no_grad()
    def passed(self, x: Float[Tensor, "B F"]) -> Passed:
        """The same, with all that `pull` needs, for a loss whose gradient by its outputs is written out."""
        weights = self._now().weights
        hidden = self._through(weights, x)
        return Passed(x, hidden, self._out(weights, hidden))

    @torch.no_grad()
    def pull(self, passed: Passed, given: Sequence[Tensor]) -> None:
        """Leave theta's gradient in `theta.grad`; the next pull is into the same memory.

        Args:
            passed: what came of the input, the weights being those of now.
            given: the gradient of every output, and of the numbers beside the layers.
        """
        gradient, pieces = self._now().gradient
        self._backward(passed.x, passed.hidden, given, pieces, of_x=False)
        self.theta.grad = gradient

    def differentiable(self, x: Float[Tensor, "B F"], theta: Tensor | None = None) -> tuple[Tensor, ...]:
        """The same by operations that can be differentiated as often as one likes.

        Args:
            x: the input of all.
            theta: the weights, where they are to be others than its own.
        """
        weights = self.weights(self.theta if theta is None else theta)
        below, act = self._broad(x), torch.tanh if self.shape.activation == "tanh" else torch.relu
        for matrix, bias in weights.hidden:
            below = act(torch.baddbmm(bias, below, matrix))
        return self._out(weights, [below])

    def answer(self, k: int, x: np.ndarray) -> np.ndarray:
        """What the k-th network makes of ``[B, F]``, in numpy."""
        if self.theta.device.type != "cpu":
            with torch.no_grad():
                return self(torch.from_numpy(x).to(self.theta))[k].cpu().numpy()
        *hidden, (matrix, bias) = self._now().layers[k]
        tanh = self.shape.activation == "tanh"
        for w, b in hidden:
            x = x @ w
            x += b
            if tanh:
                np.tanh(x, out=x)
            else:
                np.maximum(x, 0, out=x)
        return x @ matrix + bias

    @property
    def own(self) -> np.ndarray:
        """The numbers beside the layers, in numpy."""
        return self._now().own

    def _now(self) -> _Held:
        """The weights in pieces, as tensors and as arrays in the same memory, which whoever moves theta moves too."""
        place = self.theta.data_ptr()
        if self._held is None or self._held.place != place:
            whole = self.weights(self.theta.detach())
            layers = []
            for k, last in enumerate(whole.last) if self.theta.device.type == "cpu" else ():
                hidden = [(w[k].numpy(), b[k, 0].numpy()) for w, b in whole.hidden]
                layers.append([*hidden, (last[0].numpy(), last[1].numpy())])
            gradient = torch.empty_like(self.theta, requires_grad=False)
            self._held = _Held(place, whole, layers, whole.own.cpu().numpy(), (gradient, self.weights(gradient)))
        return self._held

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, and so pieces of its own."""
        return {**self.__dict__, "_held": None}

    def _broad(self, x: Tensor) -> Tensor:
        return x.expand(len(self.outputs), *x.shape)

    def _through(self, weights: Weights, x: Tensor) -> list[Tensor]:
        """Every hidden layer, ``[K, B, width]``; where there is none, the input."""
        below, hidden = self._broad(x), []
        for matrix, bias in weights.hidden:
            below = affine(bias, below, matrix)
            hidden.append(_tanh(below) if self.shape.activation == "tanh" else below.relu_())
        return hidden or [below]

    @staticmethod
    def _out(weights: Weights, hidden: Sequence[Tensor]) -> tuple[Tensor, ...]:
        top = hidden[-1].unbind()
        return *(torch.addmm(b, h, w) for h, (w, b) in zip(top, weights.last, strict=True)), weights.own.clone()

    def _backward(
        self, x: Tensor, hidden: Sequence[Tensor], given: Sequence[Tensor], into: Weights | None, *, of_x: bool
    ) -> Tensor | None:
        """Put theta's gradient into its pieces, where it is wanted, and return the input's, where that is.

        Args:
            x: the input.
            hidden: every hidden layer.
            given: the gradient of every output, and of the numbers beside the layers.
            into: the pieces.
            of_x: whether the input's gradient is wanted.
        """
        weights, aten = self._now().weights, torch.ops.aten
        above = torch.empty_like(hidden[-1])
        for k, d in enumerate(given[:-1]):
            torch.mm(d, weights.last[k][0].T, out=above[k])
            if into is not None:
                torch.mm(hidden[-1][k].T, d, out=into.last[k][0])
                torch.sum(d, 0, out=into.last[k][1])
        if into is not None and len(into.own):
            into.own.copy_(given[-1])
        slope = aten.tanh_backward if self.shape.activation == "tanh" else _relu_backward
        for i in range(len(weights.hidden) - 1, -1, -1):
            d = slope(above, hidden[i])
            if into is not None:
                product((hidden[i - 1] if i else self._broad(x)).mT, d, into.hidden[i][0])
                torch.sum(d, 1, keepdim=True, out=into.hidden[i][1])
            if i or of_x:
                above = product(d, weights.hidden[i][0].mT)
        return above.sum(0) if of_x else None


def _relu_backward(above: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(above, y, 0)


def _tanh(x: Tensor) -> Tensor:
    """In place; numpy's takes a tenth of the time of torch's on a processor."""
    if x.device.type != "cpu":
        return x.tanh_()
    np.tanh(x.numpy(), out=x.numpy())
    return x


class _Through(torch.autograd.Function):
    """`Networks` as one operation: a graph of a dozen nodes costs more than the products of small networks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, networks: Networks) -> tuple[Tensor, ...]:
        weights = networks._now().weights
        hidden = networks._through(weights, x)
        ctx.networks = networks
        ctx.save_for_backward(x, theta, *hidden)
        return networks._out(weights, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, _, *hidden = ctx.saved_tensors  # theta is saved so that whoever moves it before this is told
        of_x, of_theta, _ = ctx.needs_input_grad
        networks: Networks = ctx.networks
        gradient = torch.empty_like(networks.theta, requires_grad=False) if of_theta else None
        pieces = None if gradient is None else networks.weights(gradient)
        return networks._backward(x, hidden, given, pieces, of_x=of_x), gradient, None
