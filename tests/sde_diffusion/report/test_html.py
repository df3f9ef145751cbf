"""A report is one file that loads nothing from the internet, and no text of a user becomes markup in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from sde_diffusion.report.html import Chart, Curve, Gallery, Page, Shown, TimeGrid, rendered, write_page
from sde_diffusion.report.html.encoding import MOST_BYTES, Pixels, differences, gallery_data
from solvers.display import ResultTable

EVIL = "</script><script>alert(1)</script>"


def page(shape: tuple[int, ...] = (1, 8, 8), count: int = 5, names: tuple[str, ...] = ("ddim", EVIL)) -> Page:
    """A report of two solvers at 4 and 8 NFE with samples that are drawn by chance."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    reference = draw(count, *shape).clamp(-1, 1)
    times, shown, records = torch.linspace(1, 0, 5, dtype=torch.float64), [], []
    for k, name in enumerate(names):
        for nfe in (4, 8):
            x = (reference + 0.1 / nfe * (k + 1) * draw(count, *shape)).clamp(-1, 1)
            error = (x - reference).flatten(1).square().mean(1).sqrt()
            path = draw(5, count, 2) if shape == (2,) else None
            shown.append(Shown(name, nfe, x, error, times, error * torch.linspace(0, 1, 5)[:, None], path))
            records.append({"solver": name, "nfe": nfe, "error": float(error.mean())})
    rows = tuple((r["solver"], str(r["nfe"]), f"{r['error']:.3g}") for r in records)
    curves = [Curve(n, [4, 8], [0.1 / (k + 1), 0.05], [0.05, 0.0], [0.2, 0.1]) for k, n in enumerate(names)]
    return Page(
        title=f"Solvers {EVIL}",
        facts={"Model": EVIL},
        command=f"sdediff compare {EVIL}",
        table=ResultTable(("solver", "NFE", "error"), rows, tuple(records)),
        charts=[Chart("Error", "NFE", "error", curves, ("own error", 0.01)), Chart("Frechet", "NFE", "FD", curves)],
        gallery=Gallery(draw(count, *shape), reference, shown, {(names[0], 2): EVIL}, draw(6, count, 2)),
        grids=[TimeGrid(name, 4, times.tolist(), [-3.0, -1.0, 1.0, 3.0, None]) for name in names],
        notes=[EVIL],
        provenance={"versions": {"torch": EVIL}},
    )


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def test_texts_of_users_stay_texts() -> None:
    read = Elements(rendered(page()))
    data, *scripts = read.scripts
    assert len(scripts) == 2 and not any("alert(1)" in script for script in scripts)
    assert json.loads(data)["solvers"] == ["ddim", EVIL]
    for text in (f"Solvers {EVIL}", f"sdediff compare {EVIL}", EVIL):
        assert text in read.texts


def test_the_policy_admits_the_scripts_of_the_file_and_no_request() -> None:
    read = Elements(rendered(page()))
    (policy,) = (a["content"] for tag, a in read.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ") and "http" not in policy
    for script in read.scripts[1:]:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    sources = [a[name] for _, a in read.found for name in ("src", "href", "action") if a.get(name)]
    assert sources == ["data:,"]


def test_the_table_is_there_without_scripts() -> None:
    text = rendered(page(names=("ddim", "heun")))
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", body)
    assert cells[:2] == ["ddim", "4"] and len(cells) == 12


def test_large_images_are_averaged_until_they_fit() -> None:
    small = gallery_data(page((3, 16, 16)).gallery)
    assert small["shape"] == [3, 16, 16] and len(base64.b64decode(small["reference"]["u8"])) == 5 * 3 * 16 * 16
    big = page((3, 512, 512), count=2)
    assert big.gallery is not None
    found = gallery_data(big.gallery)
    side = found["shape"][1]
    assert side < 512 and found["original"] == [3, 512, 512]
    assert (2 + 2 * 4) * 2 * 3 * side**2 <= MOST_BYTES * 1.02
    assert len(rendered(big)) < 8_000_000


def test_images_in_other_units_are_stretched() -> None:
    gallery = page().gallery
    assert gallery is not None
    units = Gallery(gallery.noise, 100 + 50 * gallery.reference, gallery.shown)  # type: ignore[operator]
    pixels = Pixels.of(units)
    assert 50 <= pixels.low < 60 < 140 < pixels.high <= 150 and Pixels.of(gallery) == Pixels()


def test_differences_keep_two_digits_and_their_scale() -> None:
    x = torch.tensor([[0.5, -0.25, 0.0], [1e-6, 0.0, -5e-7]])
    found = differences(x)
    steps = torch.frombuffer(bytearray(base64.b64decode(found["i8"])), dtype=torch.int8).reshape(2, 3)
    back = steps * torch.tensor(found["scale"])[:, None] / 127
    assert (back - x).abs().amax(1).tolist() <= (x.abs().amax(1) / 250).tolist()


def test_figures_that_are_not_finite_do_not_spoil_the_file(tmp_path: Path) -> None:
    made = page(names=("ddim", "heun"))
    curve = Curve("ddim", [4], [float("nan")], [float("-inf")], [float("inf")])
    path = tmp_path / "a.html"
    write_page(path, Page("t", {}, "c", made.table, charts=[Chart("a", "x", "y", [curve])]))
    data = json.loads(Elements(path.read_text()).scripts[0])
    assert data["charts"][0]["curves"][0]["y"] == [None] and data["gallery"] is None


@pytest.mark.parametrize(
    ("shape", "kind"), [((2,), "points"), ((5,), "vector"), ((2, 30), "signal"), ((1, 4, 4), "image")]
)
def test_every_kind_of_data_is_distinguished(shape: tuple[int, ...], kind: str) -> None:
    assert json.loads(Elements(rendered(page(shape))).scripts[0])["gallery"]["kind"] == kind
