r"""The classifier two-sample test (Lopez-Paz & Oquab 2017): accuracy of a classifier of generated against real samples.

A classifier is trained on one half of both sets and tested on the other half. If the laws are equal,
its accuracy is near 1/2 with a variance of at most 1 / (4 n_test) (their theorem 1) for every classifier; an
accuracy above is proof of a difference, and 1/2 is no proof of none.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics.estimate import Estimate
from sde_diffusion.evaluation.metrics.mmd import pair


def two_sample_accuracy(a: Tensor, b: Tensor, *, classifier: Any = None, seed: int = 0) -> Estimate:
    """The accuracy of a classifier on held-out samples of two sets.

    Args:
        a: features (n, ...).
        b: features (m, ...); the larger set is cut to the size of the smaller.
        classifier: any scikit-learn classifier, not fitted; a perceptron with 32 hidden units on
            standardised features by default.
        seed: seed of the halves and of the perceptron.

    Returns:
        The accuracy and its binomial standard error. See ``p_value``.

    Raises:
        ValueError: other dimensions, fewer than 4 samples, or values that are not finite.

    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> two_sample_accuracy(x[:100], x[100:] + 10).value
    1.0
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and only needed here
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = pair(a, b, least=4)
    n = min(len(x), len(y))
    generator = torch.Generator().manual_seed(seed)
    x, y = (v[torch.randperm(len(v), generator=generator)[:n]] for v in (x, y))
    half = n // 2
    learn, ask = torch.cat([x[:half], y[:half]]).numpy(), torch.cat([x[half:], y[half:]]).numpy()
    if classifier is None:
        classifier = make_pipeline(StandardScaler(), MLPClassifier((32,), alpha=0.1, max_iter=100, random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(learn, np.repeat([0, 1], half))
    right = float((classifier.predict(ask) == np.repeat([0, 1], n - half)).mean())
    return Estimate(right, math.sqrt(right * (1 - right) / len(ask)))


def p_value(accuracy: float, asked: int) -> float:
    """The probability of at least this accuracy on ``asked`` held-out samples for equal laws (normal approximation).

    >>> round(p_value(0.55, 400), 4)  # two standard deviations
    0.0228
    """
    return 0.5 * math.erfc((accuracy - 0.5) * math.sqrt(2 * asked))
