"""A report in Chromium: slider, samples, legend, sorting, copying and keys work; no request leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sde_diffusion.report.html import write_page
from tests import browser
from tests.sde_diffusion.report import test_html as pages

LAST_ERROR = "[...document.querySelectorAll('#samples .name small')].at(-1).textContent"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.Browser(tmp_path_factory.mktemp("chromium"), seconds=300) as started:
        yield started


@pytest.fixture
def shown(chromium: Any, tmp_path: Path) -> Any:
    """The report of images in a window, with what it copies kept."""
    write_page(tmp_path / "a.html", pages.page(names=("ddim", "heun")))
    chromium.logged.clear()
    chromium.requested.clear()
    chromium.open(tmp_path / "a.html")
    chromium.run(
        "void Object.defineProperty(navigator, 'clipboard', "
        "{value: {writeText: async (text) => { window.copied = text; }}, configurable: true})"
    )
    return chromium


def text(shown: Any, selector: str) -> Any:
    return shown.run(f"document.querySelector({selector!r}).textContent")


def row_names(shown: Any) -> list[str]:
    return shown.run("[...document.querySelectorAll('#samples .name')].map((e) => e.firstChild.textContent)")


def test_nothing_is_asked_of_a_network_and_no_error_is_logged(shown: Any) -> None:
    shown.click("#theme")
    shown.wait(lambda: shown.run("document.querySelectorAll('.js-plotly-plot').length") == 4)
    assert [url for url in shown.requested if not url.startswith(("file:", "data:", "blob:"))] == []
    assert shown.logged == []
    # The policy holds: a request is refused by the page itself.
    assert shown.run("fetch('https://example.invalid/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in shown.logged)


def test_the_slider_moves_with_the_keys_and_changes_the_samples(shown: Any) -> None:
    assert text(shown, "#nfe-shown") == "4 evaluations"
    before = shown.run("document.querySelector('[data-key=\"ddim/0\"] canvas').toDataURL()")
    error = shown.run(LAST_ERROR)
    shown.run("document.getElementById('nfe').focus()")
    shown.press("ArrowRight")
    assert text(shown, "#nfe-shown") == "8 evaluations"
    assert shown.run("document.querySelector('[data-key=\"ddim/0\"] canvas').toDataURL()") != before
    assert shown.run(LAST_ERROR) != error
    assert shown.run("document.getElementById('grid-nfe').value") == "4"  # there is no grid for 8


def test_a_sample_is_chosen_by_click_and_by_arrow_keys(shown: Any) -> None:
    shown.click('[data-key="heun/2"]')
    assert text(shown, "#detail-title") == "Sample 2 at each NFE"
    shown.press("ArrowRight")
    shown.press("ArrowRight")
    shown.press("ArrowRight")  # from the last to the first
    assert text(shown, "#detail-title") == "Sample 0 at each NFE"
    assert shown.run("document.activeElement.dataset.key") == "heun/0"
    shown.press("ArrowLeft")
    assert shown.run("document.querySelectorAll('[aria-pressed=true]').length") == 4  # noise, reference, two solvers
    data = pages.page(names=("ddim", "heun")).gallery
    errors = [float(s.error[4]) for s in data.shown]
    cells = shown.run("[...document.querySelectorAll('#detail-samples .cell small')].map((e) => e.textContent)")
    assert [float(cell.split()[1]) for cell in cells] == pytest.approx(errors, rel=5e-3)


def test_the_deviation_is_that_of_the_chosen_sample(shown: Any) -> None:
    shown.click('[data-key="ddim/3"]')
    data = pages.page(names=("ddim", "heun")).gallery
    drawn = shown.run("document.getElementById('deviation').data.map((d) => [...d.y])")
    assert drawn[0][-1] == pytest.approx(float(data.shown[0].deviation[-1, 3]), rel=1e-5)


def test_the_legend_switches_a_solver_off_everywhere(shown: Any) -> None:
    assert row_names(shown) == ["initial noise", "reference", "ddim", "heun"]
    shown.run("document.querySelector('#legend input').focus()")
    shown.press(" ")
    assert row_names(shown) == ["initial noise", "reference", "heun"]
    for plot in ("chart-0", "chart-1", "deviation", "grids"):
        assert shown.run(f"document.getElementById({plot!r}).data.map((d) => d.meta)") == ["heun"]
    shown.click("#legend label")
    assert row_names(shown) == ["initial noise", "reference", "ddim", "heun"]


def test_axes_are_logarithmic_until_switched(shown: Any) -> None:
    axis = "document.getElementById('chart-0').layout.{}axis.type"
    assert shown.run(axis.format("x")) == shown.run(axis.format("y")) == "log"
    shown.click("#log-y")
    assert (shown.run(axis.format("x")), shown.run(axis.format("y"))) == ("log", "linear")
    bars = shown.run(
        "(({array, arrayminus}) => [array, arrayminus])(document.getElementById('chart-0').data[0].error_y)"
    )
    assert bars == [pytest.approx([0.1, 0.05]), pytest.approx([0.05, 0.05])]


def test_a_curve_says_its_value_under_the_mouse(shown: Any) -> None:
    shown.run("document.getElementById('chart-0').scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = shown.run(
        "(() => { const b = document.querySelector('#chart-0 .points path').getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    for k in (3, 1, 0):
        shown.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + k, y=y + k)
    shown.wait(lambda: shown.run("document.querySelectorAll('#chart-0 .hovertext').length") > 0)
    assert "ddim" in text(shown, "#chart-0 .hovertext") and "0.05 to 0.2" in text(shown, "#chart-0 .hovertext")


def test_the_table_is_sorted_and_copied_in_its_order(shown: Any) -> None:
    table = pages.page(names=("ddim", "heun")).table
    column = "[...document.querySelectorAll('#results tbody tr')].map((r) => r.cells[2].textContent)"
    shown.run("document.querySelectorAll('#results th button')[2].focus()")
    shown.press("Enter")
    values = [float(v) for v in shown.run(column)]
    assert values == sorted(values) and shown.run("document.querySelectorAll('th')[2].ariaSort") == "ascending"
    shown.press("Enter")
    assert [float(v) for v in shown.run(column)] == values[::-1]
    shown.click("#copy-csv")
    order = sorted(range(4), key=lambda k: -table.records[k]["error"])
    lines = table.csv_lines()
    assert shown.run("window.copied") == lines[0] + "".join(lines[1 + k] for k in order)
    shown.click("#copy-latex")
    copied = shown.run("window.copied").splitlines()
    assert copied[4:8] == [table.latex_rows()[k] for k in order]
    assert sorted(copied) == sorted(table.to_latex().splitlines())
    assert text(shown, "#copied") == "LaTeX copied"
    shown.click("#copy-command")
    assert shown.run("window.copied").startswith("sdediff compare ")


def test_the_theme_follows_the_system_and_the_button(shown: Any, tmp_path: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert shown.run(background) == "rgb(255, 255, 255)"
    shown.click("#theme")
    assert shown.run(background) == "rgb(20, 23, 28)"
    assert shown.run("document.getElementById('chart-0').layout.font.color") == "#e7eaef"
    shown.open(tmp_path / "a.html", dark=True)
    assert shown.run(background) == "rgb(20, 23, 28)" and text(shown, "#theme") == "Light"
    shown.click("#theme")
    assert shown.run(background) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("shape", [(2,), (5,), (2, 30), (1,), (3, 4, 4)])
def test_every_kind_of_data_is_drawn(chromium: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_page(tmp_path / "a.html", pages.page(shape, names=("<b>a</b>", "heun")))
    chromium.logged.clear()
    chromium.open(tmp_path / "a.html", width=390, height=844)
    assert chromium.logged == []
    assert chromium.run("document.documentElement.scrollWidth") <= 390  # the page itself does not scroll sideways
    assert chromium.run("document.querySelectorAll('#samples b').length") == 0
    chromium.click("#samples canvas", 1)
    inked = (
        "(() => { const c = document.querySelectorAll('#samples canvas')[1];"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return new Set(Array.from({length: d.length / 4}, (_, k) => d.slice(4 * k, 4 * k + 4).join())).size; })()"
    )
    assert chromium.run(inked) > 1
    assert chromium.logged == []


def test_a_point_is_chosen_by_a_click_near_it(chromium: Any, tmp_path: Path) -> None:
    made = pages.page((2,), names=("ddim", "heun"))
    write_page(tmp_path / "a.html", made)
    chromium.open(tmp_path / "a.html")
    reference = made.gallery.reference
    low, high = chromium.run("cloudRange()")
    left, bottom, side = chromium.run(
        "(() => { const e = document.querySelector('#samples canvas');"
        "e.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const b = e.getBoundingClientRect(); return [b.left, b.bottom, b.width]; })()"
    )
    x, y = ((reference[3].double() - low) / (high - low) * side).tolist()
    for kind in ("mousePressed", "mouseReleased"):
        chromium.call("Input.dispatchMouseEvent", type=kind, x=left + x, y=bottom - y, button="left", clickCount=1)
    assert chromium.run("document.getElementById('detail-title').textContent") == "Sample 3 at each NFE"
