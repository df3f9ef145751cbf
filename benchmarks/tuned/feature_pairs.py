"""Pairs of solvers at one NFE: whether the one nearer to the flow has the smaller Frechet distance.

All solvers start from the same initial noise, so the difference of two distances has an interval of its own, shorter
than those of the distances (``sde_diffusion.evaluation.metrics.paired``). Every interval is for its pair alone.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.evaluation.metrics import Estimate, Moments
from sde_diffusion.evaluation.metrics.estimate import spread_of_halves
from sde_diffusion.evaluation.metrics.paired import frechet_of_halves

DRAWS, NEARER = 100, 1.05


def paired(rows: dict[str, Any], features: dict[str, Tensor], reference: Moments) -> list[dict[str, Any]]:
    """All pairs at one NFE, and every solver with the flow: the nearer one, and its distance less that of the other.

    Of solvers that make the same samples the first is taken: tuning returns ``pf-ode`` where it found nothing better.
    Pairs whose RMS distances differ by less than 5 % are left out.

    Args:
        rows: "NFE solver" -> its figures.
        features: features of the rows whose samples are there, all of the same initial noise.
        reference: moments of the test images.
    """
    different = [key for k, key in enumerate(features) if not any(_same(features, key, a) for a in list(features)[:k])]
    halves = {key: frechet_of_halves(features[key], reference, DRAWS, seed=0) for key in different}
    found = []
    for a, b in combinations(halves, 2):
        (nfe, one), (other_nfe, other) = a.split(" ", 1), b.split(" ", 1)
        if nfe != other_nfe and "flow" not in (one, other):
            continue
        near, far = sorted((a, b), key=lambda key: rows[key]["rms"])
        if rows[far]["rms"] < NEARER * rows[near]["rms"]:
            continue
        difference = rows[near]["frechet"][0] - rows[far]["frechet"][0]
        error = float(spread_of_halves(halves[near] - halves[far], len(features[near])))
        found.append(
            {
                "nfe": int(other_nfe if one == "flow" else nfe),
                "near": near.split(" ", 1)[1],
                "far": far.split(" ", 1)[1],
                "rms": [rows[near]["rms"], rows[far]["rms"]],
                "frechet": [difference, *Estimate(difference, error).interval],
            }
        )
    return sorted(found, key=lambda pair: pair["nfe"])


def _same(features: dict[str, Tensor], a: str, b: str) -> bool:
    return a.split(" ")[0] == b.split(" ")[0] and torch.equal(features[a], features[b])


def sentences(pairs: list[dict[str, Any]]) -> list[str]:
    """How many nearer solvers are better, and each that is worse."""
    worse = [pair for pair in pairs if pair["frechet"][1] > 0]
    better = sum(pair["frechet"][2] < 0 for pair in pairs)
    lines = [
        f"Of {len(pairs)} pairs of solvers whose RMS distances differ by 5 % or more, the one nearer to the flow has "
        f"the smaller Frechet distance in {better} and the larger in {len(worse)}, with intervals of the paired "
        "difference that exclude 0.",
    ]
    if worse:
        lines += ["", "Nearer to the flow is not better here:", ""]
    for pair in worse:
        difference, low, high = pair["frechet"]
        lines.append(
            f"- {pair['nfe']} NFE: `{pair['near']}` (RMS {pair['rms'][0]:.3g}) is above `{pair['far']}` "
            f"({pair['rms'][1]:.3g}) by {difference:.3f} ({low:.3f} to {high:.3f})."
        )
    return lines
