"""Definitions of all training options, from which the command line, TOML keys and docs/training.md are generated.

The fields of ``TrainConfig`` are the options of the training itself. Options of the process and of the network are
arguments of several classes and are listed here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from sde_diffusion.data import NAMES
from sde_diffusion.data.dataset import LAYOUTS
from sde_diffusion.data.tasks.degraded import TASKS
from sde_diffusion.models.score_model import PREDICTS
from sde_diffusion.networks import NETWORKS, SIZE_NAMES
from sde_diffusion.networks.autoencoder import BOTTLENECKS
from sde_diffusion.networks.embeddings import EMBEDDINGS
from sde_diffusion.networks.given import RESIZES
from sde_diffusion.sde import SDES
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.config_file import to_toml


@dataclass(frozen=True)
class TrainOption:
    """A training option.

    Attributes:
        name: the key in a TOML file.
        kind: int, float, str, bool, list[float] (the option repeated) or list[int] (with commas).
        text: the help text.
        usual: the default, in words.
        table: the table of the TOML file, "process" or "network"; None for the top level.
        spellings: the spellings on the command line.
        values: the names that it takes, which the shell completes.
        example: the default, or a value in its place where the default depends on other options.
    """

    name: str
    kind: Any
    text: str
    usual: str
    table: str | None = None
    spellings: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    example: Any = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The spellings on the command line.

        >>> TRAINING[0].flags, TrainOption("flip", bool, "", "").flags
        (('--steps',), ('--flip/--no-flip',))
        """
        dashed = self.name.replace("_", "-")
        return self.spellings or ((f"--{dashed}/--no-{dashed}",) if self.kind is bool else (f"--{dashed}",))


def _of_config() -> tuple[TrainOption, ...]:
    hints = get_type_hints(TrainConfig)
    plain = (int, float, str, bool)
    options = []
    for field in fields(TrainConfig):
        kind = hints[field.name] if hints[field.name] in plain else list[float]
        usual = field.metadata["usual"] or str(field.default)
        if kind is bool:
            usual = field.name if field.default else f"no-{field.name}"
        options.append(
            TrainOption(
                field.name,
                kind,
                field.metadata["help"],
                usual,
                spellings=field.metadata["options"],
                values=field.metadata["values"],
                example=field.default,
            )
        )
    return tuple(options)


TRAINING = _of_config()
RUN = (
    TrainOption(
        "data",
        str,
        f"Training data: {', '.join(NAMES)}; or the path of an .npy or .npz file or a folder of images.",
        "digits",
        values=NAMES,
        example="digits",
    ),
    TrainOption(
        "size",
        str,
        "Size of images, 64 or HEIGHTxWIDTH: a folder of images is cropped and resized once, into DATA-HEIGHTxWIDTH.",
        "unchanged; all must be equal",
        example="64",
    ),
    TrainOption("data_dir", str, "Folder with the files of mnist and cifar10.", "none", example="data"),
    TrainOption(
        "layout",
        str,
        f"Layout of an array of images: {', '.join(LAYOUTS)}.",
        "by its shape",
        values=LAYOUTS,
        example=LAYOUTS[0],
    ),
    TrainOption(
        "condition",
        str,
        "A condition for each sample: a folder of images with the names of those in --data, .npy, .npz:ARRAY, "
        ".csv:COLUMN,COLUMN, or a .txt with a caption on each line.",
        "no condition",
        example="low",
    ),
    TrainOption(
        "task",
        str,
        f"Train a network for a task, whose condition is made of each sample: {', '.join(TASKS)}.",
        "no task",
        values=TASKS,
        example="superres",
    ),
    TrainOption(
        "factor", int, "By what factor the images of superres are larger.", "4 with --task superres", example=4
    ),
    TrainOption(
        "resize_condition",
        str,
        f"Resizing of condition images to the size of the samples: {', '.join(RESIZES)}.",
        "none: the sizes must be equal",
        values=RESIZES,
        example=RESIZES[0],
    ),
    TrainOption(
        "latent",
        str,
        "Run of an autoencoder, or its exported file: the model is trained on its latents, and samples are decoded.",
        "the data as they are",
        example="runs/digits-autoencoder",
    ),
    TrainOption(
        "out", str, "Folder of the run; with --resume, the run to resume.", "runs/DATA-SDE", example="runs/mine"
    ),
    TrainOption("sde", str, f"The forward process: {', '.join(SDES)}.", "vp", values=tuple(SDES), example="vp"),
    TrainOption(
        "predicts",
        str,
        f"Parametrization, the target of the network: {', '.join(PREDICTS)}.",
        "velocity; edm for ve and edm",
        values=tuple(PREDICTS),
        example="velocity",
    ),
    TrainOption(
        "autoencoder",
        str,
        f"Train an autoencoder instead of a score model, for a model of its latents: {', '.join(BOTTLENECKS)}.",
        "a score model",
        values=BOTTLENECKS,
        example="kl",
    ),
    TrainOption(
        "features",
        str,
        "Run of a classifier of noisy samples, or its exported file: an autoencoder also has the perceptual distance "
        "in its features.",
        "no perceptual distance",
        example="runs/digits-classifier",
    ),
)
PROCESS = (
    TrainOption("beta_min", float, "beta at t = 0 (vp, subvp).", "0.1", "process", example=0.1),
    TrainOption("beta_max", float, "beta at t = 1 (vp, subvp).", "20.0", "process", example=20.0),
    TrainOption("sigma_min", float, "Smallest sigma (ve).", "0.01", "process", example=0.01),
    TrainOption("sigma_max", float, "Largest sigma (ve, edm).", "50, edm 80", "process", example=50.0),
)
NETWORK = (
    TrainOption(
        "name",
        str,
        f"Network: {', '.join(NETWORKS)}.",
        "by the data",
        "network",
        ("--network",),
        tuple(NETWORKS),
        "unet",
    ),
    TrainOption(
        "size",
        str,
        f"Size of the network: {', '.join(SIZE_NAMES)}.",
        "by data and device",
        "network",
        ("--network-size",),
        SIZE_NAMES,
        "medium",
    ),
    TrainOption("width", int, "Hidden width of an MLP.", "by the data", "network", example=128),
    TrainOption("depth", int, "Number of residual blocks of an MLP.", "4", "network", example=4),
    TrainOption("channels", int, "Base channels of a U-Net.", "by the data", "network", example=32),
    TrainOption(
        "multipliers",
        list[int],
        "Channels of each level of a U-Net, in base channels, such as 1,2,2; every further level halves the sample.",
        "by the data",
        "network",
        example=[1, 2, 2],
    ),
    TrainOption(
        "attention",
        list[int],
        "Heights of the levels of a U-Net with attention, such as 8,4.",
        "by the data",
        "network",
        example=[8, 4],
    ),
    TrainOption("blocks", int, "Number of blocks per level of a U-Net.", "by the data", "network", example=2),
    TrainOption("latent_channels", int, "Channels of the latents of an autoencoder.", "4", "network", example=4),
    TrainOption("codes", int, "Number of codes of a vq autoencoder.", "512", "network", example=512),
    TrainOption("dropout", float, "Dropout probability.", "by the data", "network", example=0.0),
    TrainOption(
        "variance",
        bool,
        "Learn the variance of the steps as well (--sde ddpm), with twice the channels of the output.",
        "no-learned-variance",
        "network",
        ("--learned-variance/--no-learned-variance",),
        example=False,
    ),
    TrainOption(
        "code",
        int,
        "Length of the code that an encoder makes of the condition image, in its place; without --condition of each "
        "image itself: a diffusion autoencoder.",
        "no code",
        "network",
        example=16,
    ),
    TrainOption(
        "embedding",
        str,
        f"Time embedding: {', '.join(EMBEDDINGS)}.",
        "log; with edm sinusoidal",
        "network",
        values=tuple(EMBEDDINGS),
        example="log",
    ),
)


def table_of_options(options: Iterable[TrainOption] = (*TRAINING, *PROCESS, *NETWORK)) -> str:
    """The options as the table of docs/training.md.

    >>> print(table_of_options(TRAINING[:1]))
    | option | TOML key | default | meaning |
    | --- | --- | --- | --- |
    | `--steps` | `steps` | 3000 | Number of updates of the weights. |
    """
    lines = ["| option | TOML key | default | meaning |", "| --- | --- | --- | --- |"]
    for option in options:
        flags = ", ".join(f"`{flag}`" for spelling in option.flags for flag in spelling.split("/"))
        key = option.name if option.table is None else f"[{option.table}] {option.name}"
        lines.append(f"| {flags} | `{key}` | {option.usual} | {option.text} |")
    return "\n".join(lines)


def template() -> str:
    r"""A TOML file of all options with their defaults, which ``train --config`` accepts and which changes nothing.

    A default that depends on the data or on other options stands behind a ``#``.

    >>> print("\n".join(template().splitlines()[:7]))
    # Options of sdediff train --config FILE. Remove the # before a key to set
    # it: the default of these keys depends on other options.
    <BLANKLINE>
    # Training data: digits, digit-pairs, shapes, moons, rings, checkerboard,
    # swiss-roll, mnist, cifar10, mnist-pairs; or the path of an .npy or .npz file
    # or a folder of images.
    data = "digits"
    """
    lines = [
        "# Options of sdediff train --config FILE. Remove the # before a key to set",
        "# it: the default of these keys depends on other options.",
    ]
    for heading, options in ((None, RUN), (None, TRAINING), ("process", PROCESS), ("network", NETWORK)):
        lines += ["", f"[{heading}]"] if heading else []
        for option in options:
            fixed = heading is None and (option.usual in (str(option.example), "none") or option.kind is bool)
            fixed = fixed and option.name != "data_dir"
            usual = "" if fixed else f" Default: {option.usual}."
            lines += ["", *textwrap.wrap(option.text + usual, 79, initial_indent="# ", subsequent_indent="# ")]
            lines.append(f"{'' if fixed else '# '}{option.name} = {to_toml(option.example)}")
    return "\n".join(lines) + "\n"
