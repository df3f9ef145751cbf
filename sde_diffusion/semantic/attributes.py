r"""Directions of codes that change an attribute, by a linear classifier (Preechakul et al. 2022, section 4.2).

Codes are standardized, and logistic regression gives weights w_k and offsets b_k of the classes,

    log p(k | z) = w_k . z + b_k + const.

The smallest step from z that makes class k more probable than class j by a margin m of the logits is along w_k - w_j,

    dz = (m - (w_k - w_j) . z - b_k + b_j) (w_k - w_j) / |w_k - w_j|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.errors import InputError


@dataclass(frozen=True, eq=False)
class Attributes:
    """A linear classifier of codes.

    Attributes:
        mean: of the codes, (K,).
        std: likewise.
        weight: of standardized codes, (classes, K).
        offset: (classes,).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    offset: Tensor

    def logits(self, z: Tensor) -> Tensor:
        """Return w_k . z + b_k, (B, classes), of codes (B, K)."""
        return (z - self.mean) / self.std @ self.weight.T + self.offset

    def step(self, z: Tensor, target: int, margin: float = 3.0) -> Tensor:
        """Return what moves codes to a class, (B, K): the smallest step to a margin above the class that they have.

        Args:
            z: codes (B, K).
            target: the class k.
            margin: m, in logits.

        Raises:
            ValueError: no such class.

        >>> found = Attributes(torch.zeros(2), torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2))
        >>> found.step(torch.tensor([[-1.0, 5.0]]), target=0, margin=2.0)
        tensor([[2., 0.]])
        """
        if not 0 <= target < len(self.weight):
            raise InputError(f"the classes of this classifier run from 0 to {len(self.weight) - 1}; got {target}")
        u = (z - self.mean) / self.std
        moved = u
        # Each step overtakes the strongest of the other classes; a few overtake all.
        for _ in range(2 * len(self.weight)):
            logits = moved @ self.weight.T + self.offset
            others = logits.clone()
            others[:, target] = -torch.inf
            rival = others.argmax(1)
            direction = self.weight[target] - self.weight[rival]
            gap = margin - (logits[:, target] - logits.gather(1, rival[:, None])[:, 0])
            length = direction.square().sum(1).clamp_min(1e-12)
            moved = moved + (gap.clamp_min(0) / length)[:, None] * direction
        return (moved - u) * self.std


def fit_attributes(z: Tensor, labels: Tensor, penalty: float = 1.0) -> Attributes:
    """Return the linear classifier of codes by logistic regression.

    Args:
        z: codes (N, K).
        labels: (N,) int64, classes 0, 1, ...
        penalty: weight of the squared norm of the weights.

    Raises:
        ValueError: labels that are not one for each code, or fewer than two classes.

    >>> z = torch.tensor([[0.0, 1.0], [0.1, 2.0], [3.0, 1.0], [3.1, 2.0]])
    >>> fit_attributes(z, torch.tensor([0, 0, 1, 1])).logits(z).argmax(1)
    tensor([0, 0, 1, 1])
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, and only needed here

    if z.ndim != 2 or labels.shape != z.shape[:1] or not bool(z.isfinite().all()):
        raise InputError(
            f"expected finite codes (N, K) and a label for each; got {tuple(z.shape)} and {tuple(labels.shape)}"
        )
    classes = sorted(set(labels.tolist()))
    if classes != list(range(len(classes))) or len(classes) < 2:
        raise InputError(f"labels are 0, 1, ... without gaps, two classes or more; got {classes[:20]}")
    z = z.cpu()
    std, mean = torch.std_mean(z, 0)
    std = torch.where(std > 0, std, 1.0)
    fitted = LogisticRegression(C=1 / penalty, max_iter=1000).fit(((z - mean) / std).numpy(), labels.cpu().numpy())
    weight, offset = (torch.tensor(v, dtype=z.dtype) for v in (fitted.coef_, fitted.intercept_))
    if len(weight) == 1:  # two classes: scikit-learn has the difference alone
        weight, offset = torch.cat([-weight, weight]) / 2, torch.cat([-offset, offset]) / 2
    return Attributes(mean, std, weight, offset)
