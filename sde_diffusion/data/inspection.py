"""Summary of a data set, and proposed noise levels."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from sde_diffusion.data.dataset import Data
from sde_diffusion.data.labels import described
from sde_diffusion.data.normalization import measure_normalization

_SOME = 2**24  # values that moments are taken of
_FAR = 1000  # samples that distances are taken between
_CHUNK = 2**22


def inspect_data(data: Data) -> dict[str, Any]:
    """Counts, shape, range, spread, duplicates, and the noise levels that follow, as JSON can hold them.

    ``normalization`` is what training does to the values by default (``measure_normalization``). In the units that the
    network then sees, ``sigma_data`` is the root mean square of the values (Karras et al. 2022, table 1) and
    ``sigma_max`` the largest distance between two samples, above which noise hides which one it was (Song & Ermon
    2020, technique 1). Moments and distances are of evenly spaced samples of a large set, counts and duplicates of all.

    >>> from sde_diffusion.data import as_data
    >>> facts = inspect_data(as_data([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], [1, 0, 1]))
    >>> facts["duplicates"], facts["proposed"]["sigma_max"], facts["labels"]
    (1, 3.0, {'0': 1, '1': 2})
    """
    some = data.batch(_spaced(len(data), max(2, _SOME // data.x[0].numel()))).double()
    units = measure_normalization(data)
    seen = units.to_model(some)
    few = units.to_model(data.batch(_spaced(len(data), _FAR)).double()).flatten(1)
    std = float(some.std(correction=0))
    return {
        "name": data.name,
        "kind": data.kind,
        "samples": len(data),
        "shape": list(data.shape),
        "labels": _counts(data),
        "smallest": float(some.min()),
        "largest": float(some.max()),
        "mean": float(some.mean()),
        "std": std,
        "duplicates": _duplicates(data),
        "fingerprint": data.fingerprint,
        "normalization": "range: bytes / 127.5 - 1" if data.x.dtype == torch.uint8 else units.describe(),
        "proposed": {
            "sigma_data": round(float(seen.square().mean().sqrt()), 4),
            "sigma_max": round(float(torch.cdist(few, few).max()), 2),
        },
    }


def _spaced(n: int, most: int) -> torch.Tensor:
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).long()


def _counts(data: Data) -> dict[str, int] | None:
    if data.labels is None:
        return None
    counts = {str(k): count for k, count in enumerate(data.labels.bincount().tolist()) if count}
    return described(counts, data.class_names)


def _duplicates(data: Data) -> int:
    """Number of samples that equal an earlier one, byte by byte."""
    seen: set[bytes] = set()
    count = max(1, _CHUNK // data.x[0].numel())
    for start in range(0, len(data), count):
        for row in data.rows(slice(start, start + count)).numpy():
            seen.add(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
    return len(data) - len(seen)
