"""Definitions of all training options, from which the command line, TOML keys and docs/training.md are generated.

The fields of ``TrainConfig`` are the options of the training itself. Options of the process and of the network are
arguments of several classes and are listed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from sde_diffusion.networks import NETWORKS
from sde_diffusion.networks.embeddings import EMBEDDINGS
from sde_diffusion.training.config import TrainConfig


@dataclass(frozen=True)
class TrainOption:
    """A training option.

    Attributes:
        name: the key in a TOML file.
        kind: int, float, str, bool or list[float].
        text: the help text.
        usual: the default, in words.
        table: the table of the TOML file, "process" or "network"; None for the top level.
        spellings: the spellings on the command line.
    """

    name: str
    kind: Any
    text: str
    usual: str
    table: str | None = None
    spellings: tuple[str, ...] = ()

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
            TrainOption(field.name, kind, field.metadata["help"], usual, spellings=field.metadata["options"])
        )
    return tuple(options)


TRAINING = _of_config()
PROCESS = (
    TrainOption("beta_min", float, "beta at t = 0 (vp, subvp).", "0.1", "process"),
    TrainOption("beta_max", float, "beta at t = 1 (vp, subvp).", "20.0", "process"),
    TrainOption("sigma_min", float, "Smallest sigma (ve).", "0.01", "process"),
    TrainOption("sigma_max", float, "Largest sigma (ve, edm).", "50, edm 80", "process"),
)
NETWORK = (
    TrainOption("name", str, f"Network: {', '.join(NETWORKS)}.", "by the data", "network", ("--network",)),
    TrainOption("width", int, "Hidden width of an MLP.", "by the data", "network"),
    TrainOption("depth", int, "Number of residual blocks of an MLP.", "4", "network"),
    TrainOption("channels", int, "Base channels of a U-Net.", "by the data", "network"),
    TrainOption("blocks", int, "Number of blocks per level of a U-Net.", "by the data", "network"),
    TrainOption("dropout", float, "Dropout probability.", "by the data", "network"),
    TrainOption("embedding", str, f"Time embedding: {', '.join(EMBEDDINGS)}.", "log; with edm sinusoidal", "network"),
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
