"""The app in Chromium: sliders, keys, samples, two choices compared; no request leaves the machine."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sde_diffusion
from sde_diffusion.app.studio import Choice, Studio
from sde_diffusion.data import load_data
from sde_diffusion.storage.checkpoint import checkpoint_at, export
from sde_diffusion.training.defaults import default_model
from tests import browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed"),
]
SECONDS = 300.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_data("digits")
    made = default_model(digits, network_settings={"channels": 8, "multipliers": (1,), "blocks": 1, "classes": 10})
    data = {"name": "digits", "fingerprint": digits.fingerprint}
    return export(made, tmp_path_factory.mktemp("model") / "model.safetensors", data=data, step=0)


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[str]:
    """The address of the app. It runs in a process of its own, as gradio's imports warn of much."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "sde_diffusion", "app", str(model), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(Path(sde_diffusion.__file__).parent.parent)}
    url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + SECONDS
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            while True:
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
                assert time.monotonic() < deadline, "the app does not answer"
                try:
                    with urllib.request.urlopen(url, timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
            yield url
        finally:
            process.kill()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.Browser(tmp_path_factory.mktemp("chromium"), seconds=SECONDS) as started:
        yield started


@pytest.fixture
def shown(chromium: Any, served: str) -> Any:
    chromium.logged.clear()
    chromium.requested.clear()
    chromium.open(served)
    wait_for(chromium, "draw", "path")
    yield chromium
    assert [url for url in chromium.requested if not url.startswith((served, "data:", "blob:"))] == []
    assert chromium.logged == []


def wait_for(shown: Any, *names: str) -> None:
    """Wait until the elements of these names are shown: the page builds itself piece by piece."""
    each = " && ".join(f"document.getElementById({name!r})?.offsetParent" for name in names)
    shown.wait(lambda: shown.run(f"!!({each})"))


def slider(label: str) -> str:
    """The slider with that label in the tab that is shown, as an expression."""
    return f"[...document.querySelectorAll('[aria-label=\"range slider for {label}\"]')].find((e) => e.offsetParent)"


def fill(shown: Any, label: str, value: object, number: int = 0) -> None:
    """Type into the n-th box with that label in the tab that is shown."""
    boxes = f"[...document.querySelectorAll('[aria-label={label}]')].filter((e) => e.offsetParent)"
    shown.run(f"{boxes}[{number}].focus(), {boxes}[{number}].select()")
    shown.call("Input.insertText", text=str(value))


def text(shown: Any, selector: str) -> str:
    return shown.run(f"document.querySelector({selector!r})?.textContent ?? ''")


def picture(shown: Any, selector: str) -> str:
    return shown.run(f"document.querySelector({selector + ' img'!r})?.src ?? ''")


def pixels(shown: Any, selector: str) -> bytes:
    """The picture in an element, as the page received it."""
    shown.wait(lambda: picture(shown, selector) != "")
    load_it = f"fetch({picture(shown, selector)!r}).then((r) => r.bytes()).then((b) => b.toBase64())"
    return Image.open(io.BytesIO(base64.b64decode(shown.run(load_it)))).convert("L").tobytes()


def test_sliders_and_keys_choose_the_evaluations_and_the_place_on_the_path(shown: Any, model: Path) -> None:
    shown.run(slider("NFE") + ".focus()")
    shown.press("ArrowLeft", times=14)
    assert shown.run(slider("NFE") + ".value") == "6"
    shown.click("#draw")
    shown.wait(lambda: "16 samples by pf-ode, 6 evaluations each" in text(shown, "#line"))
    studio = Studio(checkpoint_at(model))
    run = studio.run(Choice("pf-ode", 6))[0]
    assert pixels(shown, "#samples") == studio.picture(run).convert("L").tobytes()
    end = picture(shown, "#path")
    where = slider("From noise (0) to data (1)")
    assert shown.run(f"{where}.value") == "1"
    shown.run(f"{where}.focus()")
    shown.press("ArrowLeft", times=100)
    shown.wait(lambda: shown.run(f"{where}.value") == "0" and picture(shown, "#path") not in ("", end))
    start = studio.frames(run)[0].convert("L").tobytes()
    shown.wait(lambda: pixels(shown, "#path") == start)


def test_two_choices_are_compared(shown: Any, model: Path) -> None:
    shown.run("[...document.querySelectorAll('[role=tab]')].find((e) => e.textContent.trim() == 'Compare two').focus()")
    shown.press("Enter")
    wait_for(shown, "compare", "second")
    for number in (0, 1):
        fill(shown, "Samples", 5, number)
    shown.click("#compare")
    shown.wait(lambda: "distance of the samples" in text(shown, "#compared"))
    left, right, told = Studio(checkpoint_at(model)).compared(Choice(n=5), Choice("ddim", n=5))
    assert re.findall(r"RMS .* at most", text(shown, "#compared")) == re.findall(r"RMS .* at most", told)
    assert pixels(shown, "#first") == left.convert("L").tobytes() != right.convert("L").tobytes()
    assert pixels(shown, "#second") == right.convert("L").tobytes()


def test_a_value_out_of_range_is_a_message_of_the_page(shown: Any) -> None:
    fill(shown, "Samples", 5000)
    shown.click("#draw")
    shown.wait(lambda: "n must be at most 4,096" in text(shown, "body"))
    assert picture(shown, "#samples") == ""


def test_the_page_fits_a_phone(shown: Any, served: str) -> None:
    shown.open(served, width=390, height=844)
    wait_for(shown, "draw", "path")
    assert shown.run("document.documentElement.scrollWidth") <= 390
    assert shown.run("document.querySelector('#draw').getBoundingClientRect().right") <= 390
