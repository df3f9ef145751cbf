"""`sdediff config`."""

from __future__ import annotations

from typing import Any

from sde_diffusion.cli.errors import echo

EXAMPLES = """
\b
Examples:
sdediff config > cats.toml                 every option, with its default
sdediff train --config cats.toml           after editing
"""


def config() -> dict[str, Any]:
    """Print a TOML file of all training options, for train --config.

    Each option has its help text and its default. Unchanged, the file is the same as no file.
    """
    from sde_diffusion.training.options import NETWORK, PROCESS, RUN, TRAINING, template

    echo(template().rstrip("\n"))
    return {
        f"{option.table}.{option.name}" if option.table else option.name: {
            "default": option.usual,
            "text": option.text,
            "values": option.values,
        }
        for option in (*RUN, *TRAINING, *PROCESS, *NETWORK)
    }
