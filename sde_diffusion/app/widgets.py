"""The widgets of the app, by Gradio. It talks to nobody: no analytics, no fonts from elsewhere, no link to share."""

from __future__ import annotations

import os
from typing import Any

from sde_diffusion.app.studio import NO_LABEL, Choice, Studio, choice_of, step_of
from solvers.errors import MissingPackageError, SdediffError

FONTS = ["system-ui", "sans-serif"]
HOUR = 3600  # after which pictures that gradio keeps in a folder of its own are deleted
BUTTONS = ["download", "fullscreen"]  # of a picture; sharing would send it elsewhere


def import_gradio() -> Any:
    """Gradio, told to send nothing.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError:
        raise MissingPackageError("sdediff app needs gradio: pip install 'sdediff[app]'") from None
    return gradio


def page_of(studio: Studio) -> Any:
    """The page as gradio Blocks."""
    gr = import_gradio()
    with gr.Blocks(title="sdediff", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.Markdown(f"# sdediff\n\n`{studio.model!r}`")
        run = gr.State(None)
        with gr.Tab("Sample"):
            with gr.Row():
                with gr.Column(scale=1):
                    values = _controls(gr, studio, studio.first)
                    draw = gr.Button("Sample", variant="primary", elem_id="draw")
                with gr.Column(scale=2):
                    end = gr.Image(label="Samples", type="pil", format="png", buttons=BUTTONS, elem_id="samples")
                    line = gr.Markdown(elem_id="line")
            gr.Markdown("### The path: x_t, and E[x_0 | x_t]")
            share = gr.Slider(0, 1, value=1, step=0.01, label="From noise (0) to data (1)", elem_id="share")
            path = gr.Image(label="x_t and E[x_0 | x_t]", type="pil", format="png", buttons=BUTTONS, elem_id="path")

            def sampled(*given: Any) -> tuple[Any, ...]:
                shown, _, text = _told(gr, lambda: studio.run(choice_of(*given)))
                frames = studio.frames(shown)
                return frames, studio.picture(shown), text, 1.0, frames[-1]

            def at(frames: Any, where: float) -> Any:
                return None if frames is None else frames[step_of(len(frames), where)]

            draw.click(sampled, values, [run, end, line, share, path], api_name=False)
            # Of the places that the mouse or the arrow keys pass meanwhile, the last is shown.
            share.input(at, [run, share], path, api_name=False, trigger_mode="always_last", show_progress="hidden")
        with gr.Tab("Compare two"):
            with gr.Row():
                with gr.Column():
                    first = _controls(gr, studio, studio.first)
                    left = gr.Image(label="First", type="pil", format="png", buttons=BUTTONS, elem_id="first")
                with gr.Column():
                    second = _controls(gr, studio, Choice("ddim"))
                    right = gr.Image(label="Second", type="pil", format="png", buttons=BUTTONS, elem_id="second")
            both = gr.Button("Compare", variant="primary", elem_id="compare")
            text = gr.Markdown(elem_id="compared")

            def compared(*given: Any) -> tuple[Any, ...]:
                half = len(given) // 2
                return _told(gr, lambda: studio.compared(choice_of(*given[:half]), choice_of(*given[half:])))

            both.click(compared, [*first, *second], [left, right, text], api_name=False)
    return page


def launch(studio: Studio, host: str, port: int | None, browser: bool) -> None:
    """Serve the page until it is interrupted."""
    gr = import_gradio()
    theme = gr.themes.Default(font=FONTS, font_mono=["monospace"])
    page_of(studio).queue(api_open=False).launch(
        server_name=host, server_port=port, share=False, inbrowser=browser, theme=theme, show_error=True,
        footer_links=[],
    )  # fmt: skip


def _controls(gr: Any, studio: Studio, choice: Choice) -> list[Any]:
    """The widgets of a choice, in the order of its fields."""
    labelled = len(studio.labels) > 1
    return [
        gr.Dropdown(studio.solvers, value=choice.solver, label="Solver"),
        gr.Slider(1, 100, value=choice.nfe, step=1, label="NFE"),
        gr.Dropdown(studio.grids, value=choice.grid, label="Time grid"),
        gr.Dropdown(studio.labels, value=NO_LABEL, label="Label", visible=labelled),
        gr.Slider(0, 10, value=choice.guidance, step=0.1, label="Guidance", visible=labelled),
        gr.Number(choice.seed, precision=0, minimum=0, label="Seed"),
        gr.Number(choice.n, precision=0, minimum=1, label="Samples"),
    ]


def _told(gr: Any, call: Any) -> Any:
    """The result, or the error shown as a message of the page."""
    try:
        return call()
    except SdediffError as error:
        raise gr.Error(str(error), duration=None) from None
