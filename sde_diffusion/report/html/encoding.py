"""Tensors as short text for a page: images as bytes, differences as signed bytes with a scale, points as float32.

A page stays within a few MB: images are averaged over squares of pixels until all of them fit.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sde_diffusion.data.pixels import to_uint8
from sde_diffusion.report.html.page import Gallery, Shown

MOST_BYTES = 2**22  # of all images and differences of a page, before base64 adds a third


def encoded(x: Tensor) -> str:
    """A tensor of bytes or float32 as base64, row by row, little-endian.

    >>> encoded(torch.tensor([1, 2, 3], dtype=torch.uint8))
    'AQID'
    """
    values = x.detach().contiguous().cpu().numpy()
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def floats(x: Tensor | None) -> dict[str, Any] | None:
    """Values as float32 with their shape; None stays None."""
    return None if x is None else {"shape": list(x.shape), "f32": encoded(x.detach().float().cpu())}


def differences(x: Tensor) -> dict[str, Any]:
    """Differences (K, ...) as signed bytes, 127 of which are the largest magnitude in each sample.

    >>> found = differences(torch.tensor([[0.5, -0.25]]))
    >>> found["scale"], list(base64.b64decode(found["i8"]))
    ([0.5], [127, 192])
    """
    x = x.detach().float().cpu()
    scale = x.flatten(1).abs().amax(1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    steps = (x / scale.reshape(-1, *(1,) * (x.ndim - 1)) * 127).round().to(torch.int8)
    return {"scale": [float(f"{s:.4g}") for s in scale.tolist()], "i8": encoded(steps)}


def gallery_data(gallery: Gallery) -> dict[str, Any]:
    """A gallery as JSON can hold it."""
    kind = gallery.kind
    pixels = Pixels.of(gallery) if kind == "image" else None
    prepare: Callable[[Tensor | None], dict[str, Any] | None] = floats if pixels is None else pixels.encoded
    shape = list(gallery.noise.shape[1:])
    return {
        "kind": kind,
        "count": len(gallery.noise),
        "shape": shape if pixels is None else [*pixels.pooled(gallery.noise[:1]).shape[1:]],
        "original": shape,
        "noise": floats(gallery.noise) if pixels is None else Pixels(pixels.square).encoded(gallery.noise / 2),
        "reference": prepare(gallery.reference),
        "referencePath": floats(gallery.reference_path),
        "shown": [_shown(shown, gallery.reference, prepare, pixels) for shown in gallery.shown],
        "missing": [{"solver": s, "nfe": n, "reason": why} for (s, n), why in gallery.missing.items()],
    }


def _shown(shown: Shown, reference: Tensor | None, prepare: Any, pixels: Pixels | None) -> dict[str, Any]:
    found = {
        "solver": shown.solver,
        "nfe": shown.nfe,
        "x": prepare(shown.x),
        "error": None if shown.error is None else [float(f"{e:.5g}") for e in shown.error.tolist()],
        "times": None if shown.times is None else [float(f"{t:.6g}") for t in shown.times.tolist()],
        "deviation": floats(shown.deviation),
        "path": floats(shown.path),
    }
    if pixels is not None and reference is not None and shown.error is not None:
        found["difference"] = differences(pixels.pooled(shown.x - reference))
    return found


@dataclass(frozen=True)
class Pixels:
    """The encoding of images as bytes: averages over squares of pixels, and the values of black and white.

    >>> Pixels(2, 0.0, 200.0).encoded(torch.full((1, 1, 2, 2), 100.0))
    {'shape': [1, 1, 1, 1], 'u8': 'gA=='}
    """

    square: int = 1
    low: float = -1.0
    high: float = 1.0

    @classmethod
    def of(cls, gallery: Gallery) -> Pixels:
        """Squares so large that all images fit into ``MOST_BYTES``, and the range of the images of a gallery."""
        values = (2 + 2 * len(gallery.shown)) * gallery.noise.numel()
        first = gallery.shown[0].x if gallery.reference is None else gallery.reference
        ordered = first.detach().double().flatten().sort().values
        low, high = float(ordered[len(ordered) // 100]), float(ordered[-1 - len(ordered) // 100])
        square = max(1, math.ceil(math.sqrt(values / MOST_BYTES)))
        return cls(square) if (low > -1.3 and high < 1.3) or not low < high else cls(square, low, high)

    def pooled(self, x: Tensor) -> Tensor:
        """Means over the squares."""
        x = x.detach().float().cpu()
        return x if self.square == 1 else avg_pool2d(x, self.square, ceil_mode=True, count_include_pad=False)

    def encoded(self, x: Tensor | None) -> dict[str, Any] | None:
        """Images (K, C, H, W) as bytes (K, H, W, C)."""
        if x is None:
            return None
        pixels = to_uint8(2 * (self.pooled(x) - self.low) / (self.high - self.low) - 1).movedim(1, -1)
        return {"shape": list(pixels.shape), "u8": encoded(pixels)}
