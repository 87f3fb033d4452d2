"""The iteration that makes Muon's updates orthogonal, batched (Jordan et al., 2024).

Shapes: M matrices of R rows and C columns.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
NS_STEPS = 5


def orthogonalize(grads_MRC: Tensor) -> Tensor:
    """Pushes the singular values of M matrices [R, C], R <= C, towards 1 (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    x = grads_MRC / grads_MRC.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
