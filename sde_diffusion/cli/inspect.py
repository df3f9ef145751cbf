"""`sdediff inspect`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sde_diffusion.checkpoint import rebuild
from sde_diffusion.cli.options import RunArgument
from sde_diffusion.places import find_model

EXAMPLES = """
\b
Examples:
sdediff inspect                 the model that sdediff sample would use
sdediff inspect runs/moons-vp
sdediff inspect --json digits.safetensors
"""


def inspect(
    run: RunArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")] = False,
) -> None:
    """Say what a run or checkpoint is: process, network, data, training.

    Every file is checked against its hash.
    """
    stored = find_model(run)
    network = stored.model["network"]
    facts: dict[str, Any] = {
        "path": str(stored.path),
        "sha256": stored.sha256,
        "steps": stored.step,
        "sde": stored.model["sde"],
        "predicts": stored.model["predicts"],
        "shape": stored.model["shape"],
        "network": network,
        "data": stored.data,
    }
    if network["name"] is not None:
        facts["parameters"] = sum(p.numel() for p in rebuild(stored.model).parameters())
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        typer.echo(f"{key:11} {words(value)}")


def words(value: Any) -> str:
    """A value for people.

    >>> words({"name": "vp", "settings": {"beta_min": 0.1, "beta_max": 20.0}})
    'vp (beta_min 0.1, beta_max 20.0)'
    """
    if value is None or value == {}:
        return "unknown"
    if isinstance(value, dict) and "name" in value:
        rest = value.get("settings") or {k: v for k, v in value.items() if k != "name"}
        inner = ", ".join(f"{k} {v}" for k, v in rest.items())
        return f"{value['name'] or 'your own'}{f' ({inner})' if inner else ''}"
    return f"{value:,}" if isinstance(value, int) else str(value)
