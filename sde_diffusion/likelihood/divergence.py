r"""The divergence of a vector field by automatic differentiation.

The trace of the Jacobian J of F: R^d -> R^d is exact from d vector-Jacobian products,

    tr J = sum_k (e_k' J)_k,

and without bias from one product with a random probe v of E[v v'] = I (Hutchinson 1990),

    tr J = E[v' J v].

Rademacher probes, of independent signs, have the smallest variance of all with independent entries: twice the sum of
the squares of the off-diagonal entries of the symmetric part of J. Gaussian ones add twice that of the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from solvers.errors import choose
from solvers.noise import as_seeds, standard_normal

# A separate stream: probes are independent of prior, path and dequantisation noise of the same seed.
_PROBE = 11

PROBES: dict[str, Callable[[Tensor], Tensor]] = {
    "rademacher": lambda z: torch.where(z < 0, -1.0, 1.0).to(z.dtype),
    "gaussian": lambda z: z,
}


def draw_probes(kind: str, seeds: Iterable[int] | Tensor, n: int, dim: int) -> Tensor:
    """Probes v of E[v v'] = I, (B, n, dim) float64; those of a sample depend on its seed alone.

    Args:
        kind: a name in ``PROBES``.
        seeds: one integer per sample, (B,).
        n: probes of one sample.
        dim: entries of one probe.

    Raises:
        ValueError: an unknown kind.

    >>> draw_probes("rademacher", [3], 2, 4).abs()
    tensor([[[1., 1., 1., 1.],
             [1., 1., 1., 1.]]], dtype=torch.float64)
    """
    entry = choose(kind, PROBES, "probe")
    seeds = seeds if isinstance(seeds, Tensor) else torch.tensor(list(seeds), dtype=torch.int64)
    return entry(standard_normal(as_seeds(seeds, len(seeds)), (n, dim), _PROBE)).double()


def value_and_traces(
    function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None = None, *, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """F(x), and the trace of its Jacobian or one estimate of it for each probe.

    Args:
        function: F, acting on each sample of a batch separately.
        x: (B, ...), d values in each sample.
        probes: (B, P, d), or None for the exact trace by d products.
        graph: whether the results can be differentiated further.

    Returns:
        F(x) like x, and (B, P) estimates, or (B, 1) exact traces.

    >>> x = torch.tensor([[1.0, 2.0]])
    >>> value_and_traces(lambda x: x**2, x)[1]  # 2 x_1 + 2 x_2
    tensor([[6.]])
    """
    with torch.enable_grad():
        x = x if graph and x.requires_grad else x.detach().requires_grad_()
        out = function(x)
        d = x[0].numel()
        directions = d if probes is None else probes.shape[1]
        if not out.requires_grad:  # F is constant
            return out, x.new_zeros(len(x), 1 if probes is None else directions)
        columns = []
        for k in range(directions):
            if probes is None:
                v = torch.zeros_like(out)
                v.flatten(1)[:, k] = 1
            else:
                v = probes[:, k].to(out).reshape(out.shape)
            (row,) = torch.autograd.grad(
                out,
                x,
                v,
                retain_graph=graph or k + 1 < directions,
                create_graph=graph,
                allow_unused=True,
                materialize_grads=True,
            )
            columns.append((row * v).flatten(1).sum(1) if probes is not None else row.flatten(1)[:, k])
        traces = torch.stack(columns, dim=1)
        traces = traces.sum(1, keepdim=True) if probes is None else traces
    return (out, traces) if graph else (out.detach(), traces.detach())
