"""The page of a training run: loss curves and samples in one HTML file that loads nothing and reloads itself."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SHOWN = 24  # pictures on the page: the newest, and evenly spaced ones of those before
POINTS, MARKED = 600, 40  # points of a curve, and up to which each has a mark
WIDTH, HEIGHT, LEFT, BOTTOM = 760, 260, 58, 30
RELOAD = 5  # seconds

EXPECTED = {
    "image": "Early samples are noise or flat blobs. The bundled 8 x 8 digits are legible after about 250 updates; "
    "larger images take several thousand. The loss falls fast at first and then hardly at "
    "all while the samples still improve: judge by the samples.",
    "vector": "Points gather near the data within some hundred updates, and the shape sharpens for some thousand more. "
    "The loss has a floor far above 0: the noise cannot be predicted exactly.",
    "signal": "Early samples are noise. Smooth structure comes first, detail after several thousand updates. The loss "
    "falls fast at first and then hardly at all while the samples still improve.",
    "latent": "The error falls fast within some hundred updates and slowly from then on, while edges get sharper. The "
    "end of the training measures reconstructions of held-out data and draws some: reconstructions.png.",
    "class": "The loss begins at log K, that of K equal classes, and has a floor far above 0: strong noise hides the "
    "class. The end of the training measures the accuracy at each noise level.",
}
"""What to expect of a run, by the kind of its samples; of one without samples, by what its network predicts."""
SAMPLED = ("image", "vector", "signal")

STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --quiet: #6a7280; --line: #d5d9e0; --back: #ffffff; --a: #1f6fd0;
  --b: #c0392b; --c: #2e8b57 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ec; --quiet: #9aa3b2; --line: #3a404b; --back: #16181d;
  --a: #6cb0ff; --b: #ff8a7a; --c: #6fd19a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 2rem 0 .5rem }
p { color: var(--quiet); margin: .3rem 0 } svg { width: 100%; height: auto }
svg text { fill: var(--quiet); font-size: 12px } .axis { stroke: var(--line) }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100%; image-rendering: pixelated; border-radius: 4px }
figcaption { color: var(--quiet); font-size: 13px } progress { width: 100%; accent-color: var(--a) }
code { background: color-mix(in srgb, var(--quiet) 18%, transparent); padding: .1em .3em; border-radius: 3px }
"""


class Preview(NamedTuple):
    """Samples drawn after an update.

    Attributes:
        step: the number of the update.
        picture: a PNG file, or None.
        held_out_loss: the loss on data that training does not see, or None.
        train_loss: the same on training data.
    """

    step: int
    picture: Path | None
    held_out_loss: float | None = None
    train_loss: float | None = None


def training_page(
    name: str,
    about: str,
    steps: int,
    losses: Sequence[tuple[int, float]],
    previews: Sequence[Preview],
    state: str,
    kind: str,
    resume: str = "",
) -> str:
    """The page as HTML.

    Args:
        name: the title.
        about: data and process.
        steps: number of the last update.
        losses: (update, mean loss since the one before).
        previews: samples drawn on the way, oldest first.
        state: "running" (the page reloads itself), "stopped" or "done".
        kind: a key of ``EXPECTED``.
        resume: the command that goes on with a stopped run.

    >>> page = training_page("run", "digits", 100, [(50, 0.5), (100, 0.25)], [], "running", "image")
    >>> 'http-equiv="refresh"' in page, "http://" in page or "https://" in page
    (True, False)
    """
    done = losses[-1][0] if losses else 0
    reload = f'<meta http-equiv="refresh" content="{RELOAD}">' if state == "running" else ""
    held = [(p.step, p.held_out_loss) for p in previews if p.held_out_loss is not None]
    seen = [(p.step, p.train_loss) for p in previews if p.train_loss is not None]
    figures = "".join(_figure(p) for p in reversed(_thinned(previews)) if p.picture is not None)
    loss = f", loss {losses[-1][1]:.4g}" if losses else ""
    left = "" if state != "stopped" else f"<p>Go on with <code>{_text(resume)}</code></p>"
    parts = [
        f"<h1>{_text(name)}</h1><p>{_text(about)}</p>",
        f'<progress max="{steps}" value="{done}"></progress><p>update {done:,} of {steps:,}{loss}; {state}</p>{left}',
    ]
    if kind in SAMPLED:
        parts += ["<h2>Samples</h2>", f'<div class="grid">{figures}</div>' if figures else "<p>none yet</p>"]
    parts += ["<h2>Loss</h2>", _curves({"loss of the updates": (losses, "a")})]
    if held:
        parts += [
            "<h2>Held-out loss</h2>",
            _curves({"held-out data": (held, "b"), "training data": (seen, "c")}),
            "<p>Averaged weights, the same times and noise. A growing gap means that the network memorises.</p>",
        ]
    parts += ["<h2>What to expect</h2>", f"<p>{_text(EXPECTED[kind])}</p>"]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8">{reload}<title>{_text(name)}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"{head}{view}<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"


def _text(value: str) -> str:
    return html.escape(value)


def _thinned(previews: Sequence[Preview]) -> list[Preview]:
    if len(previews) <= SHOWN:
        return list(previews)
    half = SHOWN // 2
    early = previews[:-half]
    return [early[round(k * (len(early) - 1) / (half - 1))] for k in range(half)] + list(previews[-half:])


def _figure(preview: Preview) -> str:
    assert preview.picture is not None
    try:
        content = base64.b64encode(preview.picture.read_bytes()).decode()
    except OSError:
        return ""
    held = "" if preview.held_out_loss is None else f", held-out loss {preview.held_out_loss:.4g}"
    text = f"update {preview.step:,}{held}"
    image = f'<img alt="samples, {text}" src="data:image/png;base64,{content}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _curves(series: dict[str, tuple[Sequence[tuple[int, float | None]], str]]) -> str:
    """Curves over the number of the update, with a logarithmic axis of the loss, as SVG."""
    points = {
        name: ([(k, v) for k, v in given if v is not None and math.isfinite(v) and v > 0], colour)
        for name, (given, colour) in series.items()
    }
    everything = [point for found, _ in points.values() for point in found]
    if len(everything) < 2:
        return "<p>none yet</p>"
    last = max(k for k, _ in everything)
    low, high = (f(math.log10(v) for _, v in everything) for f in (min, max))
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

    def at(k: int, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 10) * k / last
        return across, (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 10) * (math.log10(value) - low) / (high - low)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value, k = 10 ** (low + share * (high - low)), round(share * last)
        (x, _), (_, y) = at(k, 10**low), at(0, value)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        anchor = "end" if share == 1 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{k:,}</text>')
    for number, (name, (found, colour)) in enumerate(points.items()):
        apart = max(1, len(found) / POINTS)
        some = [at(*found[int(k * apart)]) for k in range(int(len(found) / apart))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in some)
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="1.8"/>')
        if len(some) <= MARKED:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="var(--{colour})"/>' for x, y in some]
        place = f'x="{WIDTH - 14}" y="{22 + 16 * number}" text-anchor="end" style="fill:var(--{colour})"'
        parts.append(f"<text {place}>{_text(name)}</text>")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over updates">{"".join(parts)}</svg>'
