"""Linear layers in int8: one scale per row of the weight and per token, sums in int32.

Each row of a weight is scaled once so that its largest element is 127; each token's activations are
scaled in the same way as they come. The product of integers is exact, so the only error is that of
the two roundings (LLM.int8(), arXiv 2208.07339, section 2.1, without its outliers).

Whether this is faster depends on the processor: `torch._int_mm` needs VNNI or AMX. Without them
oneDNN falls back to a reference implementation, which is exact but far slower than fp32. `speed`
measures the gain.

Shapes: N tokens, I inputs, O outputs.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

LARGEST = 127
_OPERATIONS = 5e8  # operations of one measured product: at most 0.3 s without VNNI
_REPEATS = 3


def quantized(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes each row: int8 [N, I], and the scale of each row, fp32 [N]."""
    x_NI = x_NI.float()
    scale_N = (x_NI.abs().amax(-1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (x_NI / scale_N[:, None]).round().to(torch.int8), scale_N


class Int8Linear(nn.Module):
    """Replaces a linear layer whose weights no longer change.

    Args:
        linear: the layer to replace.
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
        """`forward` with an fp32 product of the same integers, for comparisons."""
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
        keep: the weight of a layer that stays as it is, such as the output head.

    Returns:
        The number of layers replaced.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight is not keep:
                setattr(parent, name, Int8Linear(child))
                replaced += 1
    return replaced


@torch.no_grad()
def speed(module: nn.Module, tokens: int) -> float:
    """Measures the speed of the largest quantized layer relative to fp32, on `tokens` tokens.

    Takes about a second at most: a large layer is measured on fewer tokens.
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
