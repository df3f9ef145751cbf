"""What is drawn is what the process and the model say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sde_diffusion import EDM, VPSDE, GaussianMixture
from sde_diffusion.report.process_figures import (
    schedule_figure,
    score_figure,
    strip_figure,
    trajectory_figure,
)
from solvers.display import save_figure


def test_the_curves_of_a_schedule_are_those_of_the_process() -> None:
    signal, rate, snr = schedule_figure({"vp": VPSDE(), "edm": EDM()}).axes
    t, y = signal.lines[0].get_data()
    assert math.isclose(y[200], float(VPSDE().marginal(t[200])[0]) ** 2)
    t, y = rate.lines[0].get_data()
    assert math.isclose(y[200], 0.1 + t[200] * 19.9)  # beta(t)
    t, y = snr.lines[1].get_data()
    assert math.isclose(y[100], -2 * math.log10(80 * t[100]))


def test_arrows_are_sigma_times_the_score() -> None:
    model = GaussianMixture(torch.zeros(1, 2), std=1.0, sde=VPSDE())
    (axes,) = score_figure(model.score, model.sde, model.draw(500), [0.5]).axes
    (quiver,) = [c for c in axes.collections if hasattr(c, "U")]
    # The score of N(0, I) is -x at every t.
    assert abs(quiver.U + float(model.sde.marginal(0.5)[1]) * quiver.X).max() < 1e-5


def test_a_strip_has_a_row_for_each_entry_and_the_time_above() -> None:
    figure = strip_figure({"a": torch.zeros(3, 2, 1, 4, 4), "b": torch.ones(3, 2, 1, 4, 4)}, [1.0, 0.25, 0.0])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["t = 1", "t = 0.25", "t = 0"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["a", "b"]
    assert figure.axes[0].images[0].get_array().max() == 0.5 and figure.axes[3].images[0].get_array().min() == 1
    points = strip_figure({"x": torch.rand(2, 10, 2)}, [1.0, 0.0])
    assert len(points.axes[0].collections[0].get_offsets()) == 10
    with pytest.raises(ValueError, match=r"images .* or points"):
        strip_figure({"x": torch.zeros(2, 3, 5)}, [1.0, 0.0])


def test_trajectories_end_where_the_samples_are() -> None:
    path = torch.rand(5, 3, 2)
    (axes,) = trajectory_figure(path, torch.linspace(1, 0, 5), "ddim").axes
    assert len(axes.lines) == 3 and axes.get_title() == "ddim"
    assert abs(axes.lines[1].get_xydata()[-1] - path[-1, 1].numpy()).max() < 1e-6


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_name_of_the_file_says_the_format(tmp_path: Path, suffix: str) -> None:
    save_figure(tmp_path / f"a{suffix}", schedule_figure({"vp": VPSDE()}))
    start = (tmp_path / f"a{suffix}").read_bytes()[:5]
    assert start == {".png": b"\x89PNG\r", ".svg": b"<?xml", ".pdf": b"%PDF-"}[suffix]
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf"):
        save_figure(tmp_path / "a.bmp", schedule_figure({"vp": VPSDE()}))
