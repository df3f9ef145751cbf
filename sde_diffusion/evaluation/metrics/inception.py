r"""The inception score: confident per sample, diverse over classes (Salimans et al. 2016, sec. 4).

    IS = exp E_x KL(p(y|x) || p(y)),        p(y) = E_x p(y|x),

from 1 (every sample looks alike to the classifier) to the number of classes. It does not use the data.
"""

from __future__ import annotations

from torch import Tensor

from solvers.errors import InputError


def inception_score(probabilities: Tensor) -> float:
    """The inception score of a classifier's probabilities; "inception" for every classifier.

    Args:
        probabilities: p(y|x) of the generated samples, (n, classes); rows sum to 1.

    Raises:
        ValueError: not a matrix, or rows that are no probabilities.

    >>> import torch
    >>> round(inception_score(torch.eye(4)), 6), inception_score(torch.full((3, 4), 0.25))
    (4.0, 1.0)
    """
    p = probabilities.detach().double().cpu()
    if p.ndim != 2 or len(p) == 0:
        raise InputError(f"expected probabilities (n, classes); got shape {tuple(p.shape)}")
    if not bool((p >= 0).all()) or not bool(((p.sum(1) - 1).abs() < 1e-4).all()):
        raise InputError("every row of the probabilities must be >= 0 and sum to 1; give softmax outputs, not logits")
    mean = p.mean(0)
    # 0 log 0 = 0, also where a class has no mass at all.
    entropy_gap = (p.xlogy(p) - p.xlogy(mean)).sum(1).mean()
    return float(entropy_gap.exp())
