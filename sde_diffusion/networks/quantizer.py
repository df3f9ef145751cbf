r"""Vector quantization with a codebook of moving averages (van den Oord et al. 2017; appendix A.1 for the averages).

Each vector z (its channels at one place) is replaced by the nearest of K codes e_k,

    z_q = e_k,      k = argmin_j ||z - e_j||^2,

and the gradient of z_q goes to z unchanged (straight-through). The codes take no gradient: each is the mean of the
vectors that chose it, of which sums and counts are averaged over the updates,

    N_k <- g N_k + (1 - g) n_k,      m_k <- g m_k + (1 - g) sum of those vectors,      e_k = m_k / N_k.

A code that is chosen less than a share ``dead`` of the time that equal use would give is dead. It restarts at a random
vector of the batch. The perplexity of the use of the codes, exp(-sum p_k log p_k), is K for equal use, and near 1 where
the codebook has collapsed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solvers.errors import InputError

RESTARTS = 10  # updates between restarts of dead codes


class Quantizer(nn.Module):
    """A codebook, and the nearest code of each vector.

    Args:
        codes: their number K.
        width: length of a code, the channels of the latents.
        decay: g, decay of the averages.
        dead: share of equal use below which a code restarts.

    Raises:
        ValueError: fewer than 2 codes, a width below 1, or shares outside [0, 1).

    >>> quantizer = Quantizer(2, 1).eval()
    >>> _ = quantizer.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
    >>> z_q, index = quantizer(torch.tensor([[[0.2, -3.0]]]))
    >>> z_q.tolist(), index.tolist()
    ([[[1.0, -1.0]]], [[1, 0]])
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.99, dead: float = 0.1) -> None:
        """Build the buffers; the first batch of training sets the codes."""
        super().__init__()
        if codes < 2 or width < 1 or not (0 <= decay < 1 and 0 <= dead < 1):
            raise InputError(
                f"a codebook has at least 2 codes of width 1 and shares in [0, 1); got codes {codes}, width {width}, "
                f"decay {decay}, dead {dead}"
            )
        self.decay, self.dead = decay, dead
        self.register_buffer("codebook", torch.randn(codes, width))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes (B, width, ...) of latents z (B, width, ...), and their numbers (B, ...).

        In training mode the codebook follows the vectors, by random restarts from torch's global generator.
        """
        vectors = z.movedim(1, -1)
        flat = vectors.reshape(-1, vectors.shape[-1]).detach().float()
        if self.training:
            self._restart(flat)
        index = self._nearest(flat)
        if self.training:
            self._follow(flat, index)
        index = index.reshape(vectors.shape[:-1])
        z_q = F.embedding(index, self.codebook).movedim(-1, 1).to(z.dtype)
        return z + (z_q - z).detach(), index

    def _nearest(self, flat: Tensor) -> Tensor:
        # |z - e|^2 without |z|^2, which is the same for all codes.
        return (self.codebook.square().sum(1) - 2 * flat @ self.codebook.T).argmin(1)

    @torch.no_grad()
    def _restart(self, flat: Tensor) -> None:
        """Dead codes take random vectors of the batch; at the first update all are dead."""
        first = int(self.updates) == 0
        if not first and int(self.updates) % RESTARTS:
            return
        equal = float(self.counts.sum()) / len(self.counts)
        lost = self.counts <= self.dead * equal
        if first:
            equal = len(flat) / len(self.counts)
        count = int(lost.sum())
        if count == 0:
            return
        order = torch.randperm(len(flat), device="cpu").repeat(-(-count // len(flat)))[:count]
        chosen = flat[order.to(flat.device)]
        if _together():  # all processes have one codebook
            torch.distributed.broadcast(chosen, 0)
        self.codebook[lost] = chosen
        self.counts[lost] = equal
        self.sums[lost] = equal * chosen

    @torch.no_grad()
    def _follow(self, flat: Tensor, index: Tensor) -> None:
        ones = F.one_hot(index, len(self.codebook)).to(flat.dtype)
        found, sums = ones.sum(0), ones.T @ flat
        if _together():
            for value in (found, sums):
                torch.distributed.all_reduce(value)
        self.counts.mul_(self.decay).add_(found, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        used = self.counts[:, None] > 1e-8  # a code without vectors stays where it is
        self.codebook.copy_(torch.where(used, self.sums / self.counts.clamp_min(1e-8)[:, None], self.codebook))
        self.updates.add_(1)

    def perplexity(self, index: Tensor | None = None) -> float:
        """Return exp of the entropy of the use of the codes: of the numbers given, or of the averages of training.

        >>> Quantizer(4, 1).perplexity(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]))
        4.0
        """
        counts = self.counts if index is None else torch.bincount(index.flatten(), minlength=len(self.codebook))
        p = counts.double() / counts.sum().clamp_min(1e-30)
        return round(float(torch.exp(-(p * p.clamp_min(1e-300).log()).sum())), 6)


def _together() -> bool:
    """Whether several processes train."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
