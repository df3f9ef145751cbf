"""Options that several commands share: one name, one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from solvers.errors import InputError

RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="A run folder, one of its checkpoints, an exported .safetensors file, or the word bundled.",
        show_default="the latest in runs/, else the bundled model",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda, or auto: cuda where there is one.",
        show_default="auto",
    ),
]


def whole_numbers(text: str, option: str) -> list[int]:
    """Whole numbers separated by commas, each once.

    >>> whole_numbers("5,10,5", "--nfe")
    [5, 10]
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{option} takes whole numbers separated by commas, such as 5,10,20; got '{text}'") from None
