"""The images of `sdediff restore`: their observations and operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion.data.images import decode
from sde_diffusion.guidance import Blur, Downsample, Grey, Mask, Operator
from sde_diffusion.report.restored import as_image
from solvers.errors import InputError, require_whole


@dataclass(frozen=True)
class Degraded:
    """One observation.

    Attributes:
        operator: A.
        y: (1, *observed).
        shown: y as an image of the size of a sample.
        baseline: a simple restoration: enlarged, filled with the mean, or grey in all channels.
        original: the clean image where it is known.
    """

    operator: Operator
    y: Tensor
    shown: Tensor
    baseline: Tensor
    original: Tensor | None


def read_image(path: Path, channels: int) -> Tensor:
    """An image file as (1, channels, H, W) in [-1, 1]."""
    pixels = decode(path, str(path), mode="L" if channels == 1 else "RGB")
    return torch.tensor(pixels, device="cpu").movedim(-1, 0)[None].float() / 127.5 - 1


def degraded(
    path: Path,
    task: str,
    shape: tuple[int, ...] | None,
    mask: Path | None,
    factor: int,
    blur: float,
    simulated: float | None,
    seed: int,
) -> Degraded:
    """The observation in a file, or a simulated one of the clean image in it.

    Args:
        path: the image.
        task: inpaint, superres, deblur or colorize.
        shape: (C, H, W) of the model's samples.
        mask: black where hidden.
        factor: of superres.
        blur: standard deviation in pixels.
        simulated: the noise that is added to the degraded clean image; None where the file is the observation.
        seed: of that noise.

    Raises:
        ValueError: a model of another kind of data, an image of another size, or a mask that is missing.
    """
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"restore needs a model of images (1 or 3, H, W); this one samples {shape}")
    require_whole("seed", seed, 0, 2**31 - 1)
    channels, height, width = shape
    if task == "colorize" and channels != 3:
        raise InputError("colorize needs a model of RGB images; this one has 1 channel")
    if (mask is None) == (task == "inpaint"):
        raise InputError(
            "inpaint needs the hidden part: --mask FILE, black where hidden"
            if mask is None
            else f"{task} takes no --mask; only inpaint does"
        )
    visible = None if mask is None else _visible(mask, height, width)
    operators: dict[str, Callable[[], Operator]] = {
        "inpaint": lambda: Mask(torch.ones((), device="cpu") if visible is None else visible),
        "superres": lambda: Downsample(factor),
        "deblur": lambda: Blur.gaussian(blur),
        "colorize": lambda: Grey(channels),
    }
    operator = operators[task]()
    observed = operator(torch.zeros(1, *shape, device="cpu")).shape[1:]
    image = read_image(path, channels if simulated is not None else observed[0])
    wanted = shape if simulated is not None else tuple(observed)
    if tuple(image.shape[1:]) != tuple(wanted):
        raise InputError(
            f"{path} is {image.shape[2]} x {image.shape[3]} pixels; {task} with this model takes {wanted[1]} x "
            f"{wanted[2]}" + ("" if simulated is not None else ", or a clean image with --simulate")
        )
    if simulated is None:
        y, original = image, None
    else:
        y, original = operator(image), image[0]
        y = y + simulated * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    if visible is not None:
        y = operator(y)
    shown = as_image(y[0], visible)
    if task == "superres":
        shown = y[0].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return Degraded(operator, y, shown, _baseline(task, y, shape, visible), original)


def _visible(mask: Path, height: int, width: int) -> Tensor:
    visible = read_image(mask, 1)[0, 0] > 0
    if visible.shape != (height, width):
        raise InputError(
            f"{mask} is {visible.shape[0]} x {visible.shape[1]} pixels; the mask has the size of the model's images, "
            f"{height} x {width}"
        )
    if bool(visible.all()) or not bool(visible.any()):
        raise InputError(f"{mask} hides {'nothing' if bool(visible.all()) else 'everything'}: black pixels are hidden")
    return visible


def _baseline(task: str, y: Tensor, shape: tuple[int, ...], visible: Tensor | None) -> Tensor:
    if task == "superres":
        return F.interpolate(y, shape[1:], mode="bilinear", align_corners=False)[0]
    if visible is not None:
        mean = (y * visible).sum() / (visible.sum() * shape[0])
        return torch.where(visible, y, mean)[0]
    return y.expand(1, *shape)[0]


def psnr(x: Tensor, truth: Tensor) -> float:
    """The mean peak signal-to-noise ratio in dB of images in [-1, 1], clamped to it.

    >>> round(psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.2)), 2)  # 10 log10(2^2 / 0.2^2)
    20.0
    """
    error = (x.clamp(-1, 1) - truth).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error.clamp_min(1e-12))).mean())
