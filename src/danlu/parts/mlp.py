"""Fully connected networks side by side, their weights one vector.

    h_0 = x,   h_l = f(h_{l-1} W_l + b_l),   y_k = h_L V_k + c_k

K networks whose hidden layers are alike (an actor and its critic, say) are one product of ``[K, in, out]`` a layer; only
their last layers differ. All of it lies in one vector theta, so an optimiser moves one tensor, a target follows by one
interpolation, and a conjugate gradient needs no flattening.

There are three ways through, equal to rounding: `forward`, whose backward is written out below; `differentiable`, for
what wants a gradient's gradient; and `answer`, in numpy, for a few observations at a time, where the cost of a call is
all there is.

References:
    Saxe, McClelland and Ganguli, 2013, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks" (orthogonal weights), https://arxiv.org/abs/1312.6120
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.parts.network import MLP


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
    """

    place: int
    weights: Weights
    layers: list[list[tuple[np.ndarray, np.ndarray]]]
    own: np.ndarray


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
    """

    def __init__(
        self, inputs: int, outputs: Sequence[int], shape: MLP, *, seed: int, gains: Sequence[float] = (), own: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.outputs, self.inputs = shape, tuple(outputs), inputs
        widths = (inputs, *shape.hidden)
        num = len(outputs)
        self._hidden = [((num, a, b), (num, 1, b)) for a, b in zip(widths, widths[1:], strict=False)]
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
            self._held = _Held(place, whole, layers, whole.own.cpu().numpy())
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
            below = torch.baddbmm(bias, below, matrix)
            hidden.append(below.tanh_() if self.shape.activation == "tanh" else below.relu_())
        return hidden or [below]

    @staticmethod
    def _out(weights: Weights, hidden: Sequence[Tensor]) -> tuple[Tensor, ...]:
        top = hidden[-1].unbind()
        return *(torch.addmm(b, h, w) for h, (w, b) in zip(top, weights.last, strict=True)), weights.own.clone()

    def backward(
        self, x: Tensor, hidden: Sequence[Tensor], given: Sequence[Tensor], *, of_theta: bool, of_x: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of theta and of the input, where they are wanted.

        Args:
            x: the input.
            hidden: every hidden layer.
            given: the gradient of every output, and of the numbers beside the layers.
            of_theta: whether theta's is wanted.
            of_x: whether the input's is.
        """
        w = self._now().weights
        gradient = torch.empty_like(self.theta)
        into = self.weights(gradient) if of_theta else w
        above = torch.empty_like(hidden[-1])
        for k, d in enumerate(given[:-1]):
            torch.mm(d, w.last[k][0].T, out=above[k])
            if of_theta:
                torch.mm(hidden[-1][k].T, d, out=into.last[k][0])
                torch.sum(d, 0, out=into.last[k][1])
        if of_theta:
            into.own.copy_(given[-1])
        tanh = self.shape.activation == "tanh"
        for i in range(len(w.hidden) - 1, -1, -1):
            aten = torch.ops.aten
            d = aten.tanh_backward(above, hidden[i]) if tanh else aten.threshold_backward(above, hidden[i], 0)
            if of_theta:
                torch.bmm((hidden[i - 1] if i else self._broad(x)).mT, d, out=into.hidden[i][0])
                torch.sum(d, 1, keepdim=True, out=into.hidden[i][1])
            if i or of_x:
                above = torch.bmm(d, w.hidden[i][0].mT)
        return gradient if of_theta else None, above.sum(0) if of_x else None


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
        g_theta, g_x = ctx.networks.backward(x, hidden, given, of_theta=of_theta, of_x=of_x)
        return g_x, g_theta, None
