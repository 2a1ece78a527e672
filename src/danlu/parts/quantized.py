"""A frozen linear layer that keeps its matrix in 4 or 8 bits a weight.

The matrix is made anew for every product, forward and backward, and given back at once: what backward keeps is the
codes, which are there anyway. How weights become codes is `bitsandbytes`':

| kind | codes | scales |
|---|---|---|
| int8 | 127 steps either side of 0 | one a row, the largest absolute value |
| nf4, fp4 | 16 values, at the quantiles of a normal distribution or floating | one for 64 weights |

References:
    Dettmers et al., 2022, "LLM.int8()", https://arxiv.org/abs/2208.07339
    Dettmers et al., 2023, "QLoRA" (nf4), https://arxiv.org/abs/2305.14314
"""

from __future__ import annotations

import logging
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.errors import UnsupportedError

Quantization: TypeAlias = Literal["int8", "nf4", "fp4"]
"""How a matrix is kept."""


class Quantized(nn.Module):
    """y = x W^T + b, in the dtype of x, of a W that stays as it is.

    Args:
        weight: W.
        bias: b, if there is one; it stays the parameter that it is.
        kind: how W is kept.
        transposed: whether the layer that it stands for held W inputs first.

    Attributes:
        kind: see above.
        transposed: see above.
        shape: of W.

    Raises:
        UnsupportedError: when `bitsandbytes` is not installed.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Float[Tensor, "O I"], bias: Tensor | None, kind: Quantization, *, transposed: bool
    ) -> None:
        super().__init__()
        self.kind, self.transposed, self.shape = kind, transposed, (weight.shape[0], weight.shape[1])
        codes, scales = _quantize(weight.detach().float().contiguous(), kind)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """W as products see it, made anew (float32)."""
        return dequantized(self.codes, self.scales, *self.shape, self.kind, torch.float32, False)

    @property
    def num_weights(self) -> int:
        """How many numbers W has."""
        return self.shape[0] * self.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes that W takes as it is kept."""
        return sum(kept.numel() * kept.element_size() for kept in (self.codes, self.scales))

    def forward(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        """Apply the layer to every row."""
        if torch.is_autocast_enabled(x.device.type):  # as other libraries' models are run in less precision
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _Product.apply(x, self.codes, self.scales, self.shape, self.kind)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T, of which backward keeps the codes of W and makes W again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int], kind: Quantization
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.shape, ctx.kind = shape, kind
        return F.linear(x, dequantized(codes, scales, *shape, kind, x.dtype, False))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        return upstream @ dequantized(codes, scales, *ctx.shape, ctx.kind, upstream.dtype, True), None, None, None, None


@torch.library.custom_op("danlu::dequantized", mutates_args=())
def dequantized(
    codes: Tensor, scales: Tensor, outputs: int, inputs: int, kind: str, dtype: torch.dtype, again: bool
) -> Tensor:
    """The matrix that codes and scales stand for, ``[outputs, inputs]``.

    `again` says whether it is for backward: a compiler that saw two like calls would make one of them, and keep what it
    gives from forward to backward.
    """
    functional = bitsandbytes().functional
    scales = scales.float()
    if kind == "int8":
        made: Tensor = functional.int8_vectorwise_dequant(codes, scales).to(dtype)
        return made
    narrow = dtype if dtype in _NARROW else torch.float32
    state = functional.QuantState(
        scales, shape=torch.Size([outputs, inputs]), blocksize=_BLOCK, quant_type=kind, dtype=narrow
    )
    made = functional.dequantize_4bit(codes, state)
    return made.to(dtype)


@dequantized.register_fake
def _(codes: Tensor, scales: Tensor, outputs: int, inputs: int, kind: str, dtype: torch.dtype, again: bool) -> Tensor:
    return torch.empty(outputs, inputs, dtype=dtype, device=codes.device)


_BLOCK = 64
"""Weights that have a scale together, in 4 bits."""
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


def _quantize(weight: Float[Tensor, "O I"], kind: Quantization) -> tuple[Tensor, Tensor]:
    functional = bitsandbytes().functional
    if kind == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight)
        return codes, scales
    codes, state = functional.quantize_4bit(weight, blocksize=_BLOCK, quant_type=kind)
    return codes, state.absmax


def bitsandbytes() -> Any:
    """The package, imported when first needed.

    Raises:
        UnsupportedError: when it is not installed.
    """
    log = logging.getLogger("bitsandbytes")
    before = log.level
    log.setLevel(logging.ERROR)  # it tells of faster ways to do what is not asked of it
    try:
        import bitsandbytes as package
    except ImportError:
        what, do = "a quantised base needs the `bitsandbytes` package", "Install it: pip install 'danlu[quantized]'."
        raise UnsupportedError(what, where="model.quantize", do=do) from None
    finally:
        log.setLevel(before)
    return package


def require(kind: Quantization, device: torch.device) -> None:
    """See that matrices can be kept so on a device.

    Raises:
        UnsupportedError: when they cannot.
    """
    package = bitsandbytes()
    try:
        codes, scales = _quantize(torch.ones(_BLOCK, _BLOCK), kind)
        dequantized(codes.to(device), scales.to(device), _BLOCK, _BLOCK, kind, torch.float32, False)
    except Exception as fault:  # of a library's operator, which says no in as many ways as there are devices
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        what = f"bitsandbytes {package.__version__} cannot do {kind} on {device.type} ({reason})"
        raise UnsupportedError(what, where="model.quantize", do="Leave model.quantize out.") from fault


def is_quantized(module: nn.Module) -> bool:
    """Whether it, or something within it, is kept in fewer bits."""
    return any(isinstance(part, Quantized) for part in module.modules())


def num_weights(module: nn.Module) -> int:
    """How many numbers a module is made of, quantised or not."""
    kept = sum(layer.num_weights for layer in module.modules() if isinstance(layer, Quantized))
    return kept + sum(parameter.numel() for parameter in module.parameters())


def num_matrix_weights(module: nn.Module) -> int:
    """How many of them are in matrices: the multiply-adds that a row costs."""
    kept = sum(layer.num_weights for layer in module.modules() if isinstance(layer, Quantized))
    return kept + sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)


def num_bytes(module: nn.Module) -> int:
    """Bytes that they take."""
    kept = sum(layer.num_bytes for layer in module.modules() if isinstance(layer, Quantized))
    return kept + sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
