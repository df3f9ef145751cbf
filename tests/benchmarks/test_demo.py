"""``make demo`` trains, samples at 20 NFE, shows solvers side by side, and ends with the picture of the samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.first_use import demo

ROOT = Path(__file__).resolve().parent.parent.parent
FEW = "--steps 4 --batch-size 8 --channels 8 --sample-every 2 --warmup 1"


@pytest.mark.slow
def test_the_demo_ends_with_the_picture_of_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    demo.demo(f"sdediff train --sde vp {FEW}")
    lines = capfd.readouterr().out.splitlines()
    assert re.search(r"about \d+ minutes on two cores", lines[0])
    run = Path("runs/digits-vp")
    assert lines[-1] == f"picture {run}/samples/pf-ode-nfe20/samples.png" and (run / "samples/pf-ode-nfe20").is_dir()
    made = [run / name for name in ("index.html", "solvers.png", "film.gif", "samples/pf-ode-nfe20/samples.png")]
    pictures = [*(run / "samples").rglob("*.png"), run / "solvers.png"]
    assert all(path.is_file() for path in made)
    assert (run / "report.html").is_file() == demo.has_report()
    assert len({path.read_bytes() for path in pictures}) == len(pictures)  # none is the copy of another
    assert len([line for line in lines if line.startswith("  sdediff ")]) == 3


def test_make_runs_the_demo_and_it_samples_at_20_evaluations() -> None:
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert rule is not None and rule[1].strip() == "@$(BIN)/python -m benchmarks.first_use.demo"
    first, *_, last = demo.commands(Path("runs/a"), report=True)
    assert first == "sdediff sample runs/a --solver pf-ode --nfe 20 --seed 1"
    assert last.endswith("--html runs/a/report.html") and last not in demo.commands(Path("runs/a"), report=False)


def test_a_failed_command_ends_the_demo(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.run_command("sdediff smaple")
    assert capfd.readouterr().out.strip() == "$ sdediff smaple"
