"""`sdediff app`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sde_diffusion.cli.options import DeviceOption, ModelOption, RunArgument, model_at

EXAMPLES = """
\b
Examples:
sdediff app                                latest run, or bundled model
sdediff app runs/digits-vp --port 8000
sdediff app --model mine.py:model          a model of your own
"""


def app(
    run: RunArgument = None,
    model: ModelOption = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to serve on; only this machine reaches 127.0.0.1.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", help="Port.", show_default="the first free one from 7860 on")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    device: DeviceOption = None,
) -> dict[str, Any]:
    """Sample a model live in a browser: choose solver, NFE and grid, compare two, watch the path.

    The app runs on this machine and loads nothing from elsewhere; it needs gradio (pip install 'sdediff[app]').
    """
    from sde_diffusion.app.studio import Studio
    from sde_diffusion.app.widgets import import_gradio, launch
    from sde_diffusion.sampling.devices import device_for
    from solvers.errors import InputError

    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"--port lies between 1 and 65535; got {port}")
    import_gradio()
    launch(Studio(model_at(run, model), str(device_for(device or "auto"))), host, port, browser)
    return {}
