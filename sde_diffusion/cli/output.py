"""The options ``--json`` and ``--quiet`` of every command.

A command returns what it made as a dictionary: the paths of the files as ``written``, and facts that JSON can hold. It
prints lines by ``echo`` and tables by ``terminal.stdout()``. With ``--json`` the dictionary is printed in their place;
with ``--quiet`` the paths are, and no progress is shown.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sde_diffusion.parallel.launcher import rank
from sde_diffusion.report import terminal

JSON, QUIET = "as_json", "quiet"
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, and print only the paths of the files written.")
]


def with_output(function: Callable[..., Any], *, quiet: bool = True) -> Callable[..., None]:
    """The command with ``--json``, unless it prints JSON itself, and ``--quiet``.

    Args:
        function: the command.
        quiet: whether it writes files or takes long, so that ``--quiet`` makes sense.

    >>> from pathlib import Path
    >>> @with_output
    ... def command(n: int = 1):
    ...     terminal.echo(f"{n} samples")
    ...     return {"written": [Path("samples.png")], "n": n}
    >>> command(n=2), command(n=2, quiet=True), command(n=2, as_json=True)
    2 samples
    samples.png
    {
      "written": [
        "samples.png"
      ],
      "n": 2
    }
    (None, None, None)
    """
    own = list(inspect.signature(function, eval_str=True).parameters.values())
    prints_json = any(parameter.name == JSON for parameter in own)

    @functools.wraps(function)
    def wrapper(**values: Any) -> None:
        silent = values.pop(QUIET, False)
        programs = values.get(JSON, False) if prints_json else values.pop(JSON, False)
        with terminal.muted(lines=silent or programs, progress=silent):
            found = function(**values) or {}
        if rank() > 0:  # of several processes, the first alone writes
            return
        if programs and not prints_json:
            typer.echo(json.dumps(plain(found), indent=2))
        elif silent and not programs:
            for line in found.get("written") or filter(None, [found.get("summary")]):
                typer.echo(line)

    added = [] if prints_json else [(JSON, JsonOption)]
    added += [(QUIET, QuietOption)] if quiet else []
    parameters = own + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind) for name, kind in added
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def plain(value: Any) -> Any:
    """A value that JSON can hold: paths are text, and values that are not finite are null.

    >>> from pathlib import Path
    >>> plain({"written": (Path("a.png"),), "loss": math.nan})
    {'written': ['a.png'], 'loss': None}
    """
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
