"""Linear layers in int8: weights per output row, activations per token, sums in int32.

Each row of a weight is scaled so that its largest element is 127, once; each token's input is,
as it comes. The product of integers is exact, and the only error is the two roundings
(LLM.int8(), arXiv 2208.07339, section 2.1, without its outliers).

Whether this is faster is a matter of the processor: `torch._int_mm` needs VNNI (or AMX) to be. On
others oneDNN's product of int8 is a reference implementation, exact and far slower than fp32:
`speed` measures it.

Shapes: N tokens, I inputs, O outputs.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

LARGEST = 127
_OPERATIONS = 5e8  # of one measured product: at most 0.3 s where there is no VNNI
_REPEATS = 3


def quantized(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as int8 [N, I], and what one step of it is worth, fp32 [N]."""
    x_NI = x_NI.float()
    scale_N = (x_NI.abs().amax(-1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (x_NI / scale_N[:, None]).round().to(torch.int8), scale_N


class Int8Linear(nn.Module):
    """Takes the place of a linear layer whose weights do not change any more.

    Args:
        linear: what it stands for.
    """

    weight_OI: Tensor
    scale_O: Tensor
    bias_O: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI, scale_O = quantized(linear.weight.detach())
        self.register_buffer("weight_OI", weight_OI)
        self.register_buffer("scale_O", scale_O)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias_O", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O], in the dtype of `x`."""
        x_NI, scale_N = quantized(x.flatten(0, -2))
        sums_NO = torch._int_mm(x_NI, self.weight_OI.T)
        return self._scaled(sums_NO.float(), scale_N).to(x.dtype).unflatten(0, x.shape[:-1])

    def plain(self, x: Tensor) -> Tensor:
        """The same with a product of fp32 numbers that are those integers: to compare with."""
        x_NI, scale_N = quantized(x.flatten(0, -2))
        sums_NO = x_NI.float() @ self.weight_OI.float().T
        return self._scaled(sums_NO, scale_N).to(x.dtype).unflatten(0, x.shape[:-1])

    def _scaled(self, sums_NO: Tensor, scale_N: Tensor) -> Tensor:
        y_NO = sums_NO * scale_N[:, None] * self.scale_O
        return y_NO if self.bias_O is None else y_NO + self.bias_O


def quantize_linears(module: nn.Module, keep: Tensor | None = None) -> int:
    """Replaces every linear layer of a network, in place.

    Args:
        module: the network.
        keep: a weight whose layer stays as it is: the head.

    Returns:
        How many were replaced.
    """
    found = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight is not keep:
                setattr(parent, name, Int8Linear(child))
                found += 1
    return found


@torch.no_grad()
def speed(module: nn.Module, tokens: int) -> float:
    """How many times as fast as in fp32 the largest quantized layer is here, on `tokens` tokens.

    Takes about a second at most: fewer tokens where the layer is large.
    """
    layers = [m for m in module.modules() if isinstance(m, Int8Linear)]
    layer = max(layers, key=lambda m: m.weight_OI.numel())
    weight_OI = layer.weight_OI.float()
    tokens = max(16, min(tokens, int(_OPERATIONS / (2 * weight_OI.numel()))))
    x_NI = torch.randn(tokens, weight_OI.shape[1], device=weight_OI.device)
    return _seconds(lambda: x_NI @ weight_OI.T) / _seconds(lambda: layer(x_NI))


def _seconds(work: Callable[[], Tensor]) -> float:
    work()
    taken = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
