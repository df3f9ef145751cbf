"""Films of the reverse process: x_t beside E[x_0 | x_t], a frame for each step, as GIF or WebP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sde_diffusion.report.pictures import image_grid
from solvers.errors import InputError

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
HOLD = 15  # frames that the last picture stays
POINTS = 360  # pixels on a side of a panel of points


def film_frames(states: Tensor, denoised: Tensor, times: Sequence[float]) -> list[Image.Image]:
    """A frame for each time: x_t left, E[x_0 | x_t] right, the time above.

    Args:
        states: (K, B, C, H, W) images with 1 or 3 channels, or (K, B, 2) points.
        denoised: like states.
        times: K times.

    Raises:
        ValueError: samples that are neither images nor points in 2-D.

    >>> frames = film_frames(torch.zeros(2, 4, 1, 8, 8), torch.zeros(2, 4, 1, 8, 8), [1.0, 0.0])
    >>> len(frames), frames[0].size
    (2, (278, 154))
    """
    points = states.ndim == 3 and states.shape[-1] == 2
    if not points and not (states.ndim == 5 and states.shape[2] in (1, 3)):
        raise InputError(f"a film shows images (B, 1 or 3, H, W) or points (B, 2); got {tuple(states.shape[1:])}")
    reach = 1.1 * float(denoised[-1].abs().max()) if points else 1.0
    frames = []
    for state, clean, time in zip(states, denoised, times, strict=True):
        panels = [_cloud(x, reach) if points else image_grid(x.cpu()) for x in (state, clean)]
        width, height = panels[0].size
        frame = Image.new("RGB", (2 * width + 10, height + 20), "white")
        text = ImageDraw.Draw(frame)
        for k, (panel, title) in enumerate(zip(panels, (f"x_t, t = {time:.3f}", "E[x_0 | x_t]"), strict=True)):
            frame.paste(panel.convert("RGB"), (k * (width + 10), 20))
            text.text((k * (width + 10) + 4, 4), title, fill="black")
        frames.append(frame)
    return frames


def _cloud(x: Tensor, reach: float) -> Image.Image:
    """Points in [-reach, reach]^2 as an image; those outside are left out."""
    at = ((x.double().cpu() / reach + 1) / 2 * (POINTS - 1)).round().long()
    inside = ((at >= 0) & (at < POINTS)).all(1)
    column, row = at[inside, 0], POINTS - 1 - at[inside, 1]
    pixels = torch.full((POINTS, POINTS, 3), 255, dtype=torch.uint8)
    blue = torch.tensor([31, 119, 180], dtype=torch.uint8)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pixels[(row + down).clamp_max(POINTS - 1), (column + right).clamp_max(POINTS - 1)] = blue
    return Image.fromarray(pixels.numpy())


def check_film(path: Path) -> None:
    """Refuse a file name that names no format of a film.

    Raises:
        ValueError: another suffix than .gif or .webp.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a film is written as {' or '.join(FORMATS)}, by the name of the file; got '{path.name}'")


def save_film(frames: Sequence[Image.Image], path: Path, seconds: float = 4.0) -> None:
    """Write frames in the format that the file name says; they play in a loop, and the last stays.

    Args:
        frames: at least one.
        path: .gif or .webp.
        seconds: of the frames without the stay at the end.

    Raises:
        ValueError: another suffix, or no frames.
        OSError: the file cannot be written.
    """
    check_film(path)
    if not frames:
        raise InputError("a film needs at least one frame")
    pause = max(round(1000 * seconds / len(frames)), 20)
    frames[0].save(
        path,
        format=FORMATS[path.suffix.lower()],
        save_all=True,
        append_images=list(frames[1:]),
        duration=[pause] * (len(frames) - 1) + [pause * HOLD],
        loop=0,
    )
