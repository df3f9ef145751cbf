"""Films of the reverse process: x_t beside E[x_0 | x_t], a frame for each step, as GIF, WebP or MP4, and film strips.

MP4 is written by the program ffmpeg, where it is installed; GIF and WebP need nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sde_diffusion.files.writing import temporary
from sde_diffusion.report.pictures import image_grid
from sde_diffusion.report.process_figures import strip_figure
from solvers.display.figures import FORMATS as STRIPS
from solvers.display.figures import save_figure
from solvers.errors import InputError, MissingPackageError

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
FILMS = (*FORMATS, ".mp4")
SECONDS = 4.0  # of a film without its end
HOLD = 15  # frames that the last picture stays
PANEL = 360  # pixels on a side of a panel of points, and in width of one of signals
LINES = 8  # signals in a panel
COLUMNS = 9  # times in a strip
BLUE = (31, 119, 180)


class Reverse(NamedTuple):
    """A reverse process as it is shown.

    Attributes:
        states: x_t at T times, (T, B, ...).
        denoised: E[x_0 | x_t] there, like states.
        times: the times, from 1 to 0.
    """

    states: Tensor
    denoised: Tensor
    times: Sequence[float]


def film_frames(states: Tensor, denoised: Tensor, times: Sequence[float]) -> list[Image.Image]:
    """A frame for each time: x_t left, E[x_0 | x_t] right, the time above.

    Args:
        states: (K, B, C, H, W) images with 1 or 3 channels, (K, B, C, L) signals, or (K, B, D) vectors, of which the
            first two entries are shown as points.
        denoised: like states.
        times: K times.

    Raises:
        ValueError: samples that are neither images nor signals nor vectors.

    >>> frames = film_frames(torch.zeros(2, 4, 1, 8, 8), torch.zeros(2, 4, 1, 8, 8), [1.0, 0.0])
    >>> len(frames), frames[0].size
    (2, (278, 154))
    """
    shape = states.shape[2:]
    known = (len(shape) == 3 and shape[0] in (1, 3)) or len(shape) == 2 or (len(shape) == 1 and shape[0] > 1)
    if not known:
        raise InputError(
            "a film shows images (B, 1 or 3, H, W), signals (B, C, L) or vectors (B, D) with D > 1; got "
            f"{tuple(states.shape[1:])}"
        )
    reach = 1.1 * float(denoised[-1].abs().max()) or 1.0
    frames = []
    for state, clean, time in zip(states, denoised, times, strict=True):
        panels = [picture_of(x, reach) for x in (state, clean)]
        width, height = panels[0].size
        frame = Image.new("RGB", (2 * width + 10, height + 20), "white")
        text = ImageDraw.Draw(frame)
        for k, (panel, title) in enumerate(zip(panels, (f"x_t, t = {time:.3f}", "E[x_0 | x_t]"), strict=True)):
            frame.paste(panel.convert("RGB"), (k * (width + 10), 20))
            text.text((k * (width + 10) + 4, 4), title, fill="black")
        frames.append(frame)
    return frames


def picture_of(x: Tensor, reach: float) -> Image.Image:
    """Samples as they are filmed: images in a grid, signals as lines, the first two entries of vectors as points.

    Args:
        x: (B, ...).
        reach: the largest magnitude of signals and vectors that is shown.
    """
    x = x.detach().cpu()
    if x.ndim == 4:
        return image_grid(x)
    return _cloud(x[:, :2], reach) if x.ndim == 2 else _lines(x[:LINES], reach)


def _cloud(x: Tensor, reach: float) -> Image.Image:
    """Points in [-reach, reach]^2 as an image; those outside are left out."""
    at = ((x.double() / reach + 1) / 2 * (PANEL - 1)).round().long()
    inside = ((at >= 0) & (at < PANEL)).all(1)
    column, row = at[inside, 0], PANEL - 1 - at[inside, 1]
    pixels = torch.full((PANEL, PANEL, 3), 255, dtype=torch.uint8)
    blue = torch.tensor(BLUE, dtype=torch.uint8)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pixels[(row + down).clamp_max(PANEL - 1), (column + right).clamp_max(PANEL - 1)] = blue
    return Image.fromarray(pixels.numpy())


def _lines(x: Tensor, reach: float) -> Image.Image:
    """Signals (B, C, L) within [-reach, reach], one below the other, the channels of one in one strip."""
    height = 48
    image = Image.new("RGB", (PANEL, height * len(x)), "white")
    draw = ImageDraw.Draw(image)
    across = torch.linspace(2, PANEL - 3, x.shape[-1]).tolist()
    for k, signal in enumerate((x.double() / reach).clamp(-1, 1)):
        for channel in signal:
            down = ((1 - channel) / 2 * (height - 5) + 2 + height * k).tolist()
            draw.line(list(zip(across, down, strict=True)), fill=BLUE)
    return image


def check_film(path: Path, strips: bool = True) -> None:
    """Refuse a file name that names no format of a film or strip, and an .mp4 without ffmpeg.

    Args:
        path: the file.
        strips: whether a film strip will do.

    Raises:
        ValueError: another suffix.
        ModuleNotFoundError: an .mp4 file, and ffmpeg is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in (FILMS + STRIPS if strips else FILMS):
        others = f" and a film strip as {', '.join(STRIPS)}" if strips else ""
        raise InputError(f"a film is written as {', '.join(FILMS)}{others}, by the name of the file; got '{path.name}'")
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise MissingPackageError(
            "an .mp4 film is written by ffmpeg, which is not installed; .gif and .webp need nothing"
        )


def write_reverse(path: Path, shown: Reverse) -> None:
    """Write a film, or a film strip of some times, by the name of the file; whole or not at all.

    Raises:
        ValueError: another suffix, or samples that have no film.
        ModuleNotFoundError: an .mp4 file, and ffmpeg is not installed.
        OSError: the file cannot be written.
    """
    check_film(path)
    partial = temporary(path).with_suffix(path.suffix)
    try:
        if path.suffix.lower() in STRIPS:
            save_figure(partial, strip_of(shown))
        else:
            save_film(film_frames(*shown), partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def strip_of(shown: Reverse) -> Any:
    """A film strip: x_t and E[x_0 | x_t] of the first image, or of all points, at some times of the run."""
    kept = torch.linspace(0, len(shown.times) - 1, min(len(shown.times), COLUMNS), device="cpu").round().long()
    rows = {r"$x_t$": shown.states[kept], r"$E[x_0\,|\,x_t]$": shown.denoised[kept]}
    return strip_figure(rows, [shown.times[k] for k in kept.tolist()])


def save_film(frames: Sequence[Image.Image], path: Path, seconds: float = SECONDS) -> None:
    """Write frames in the format that the file name says; they play in a loop, and the last stays.

    Args:
        frames: at least one.
        path: .gif, .webp or .mp4.
        seconds: of the frames without the stay at the end.

    Raises:
        ValueError: another suffix, or no frames.
        ModuleNotFoundError: an .mp4 file, and ffmpeg is not installed.
        OSError: the file cannot be written.
    """
    check_film(path)
    if not frames:
        raise InputError("a film needs at least one frame")
    if path.suffix.lower() == ".mp4":
        _save_mp4([*frames, *[frames[-1]] * HOLD], path, len(frames) / seconds)
        return
    pause = max(round(1000 * seconds / len(frames)), 20)
    frames[0].save(
        path,
        format=FORMATS[path.suffix.lower()],
        save_all=True,
        append_images=list(frames[1:]),
        duration=[pause] * (len(frames) - 1) + [pause * HOLD],
        loop=0,
    )


def _save_mp4(frames: Sequence[Image.Image], path: Path, rate: float) -> None:
    """H.264 in the pixel format that browsers play, whose sides are even."""
    width, height = (side + side % 2 for side in frames[0].size)
    command = [
        "ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
        "-r", f"{rate:.3f}", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16",
        "-movflags", "+faststart", "-f", "mp4", str(path),
    ]  # fmt: skip
    pixels = b""
    for frame in frames:
        whole = Image.new("RGB", (width, height), "white")
        whole.paste(frame, (0, 0))
        pixels += whole.tobytes()
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"ffmpeg could not write {path.name}: {done.stderr.decode(errors='replace').strip()[-300:]}")
