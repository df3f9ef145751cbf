"""The built site: every public name is in the API reference, and formulas render without a request to elsewhere."""

from __future__ import annotations

import html
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sde_diffusion
import solvers

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
WITHOUT_REFERENCE = {"sde_diffusion.cli", "sde_diffusion.cli.commands"}  # commands, which describe themselves
PACKAGES = [
    name
    for top in (solvers, sde_diffusion)
    for name in [top.__name__, *(m.name for m in pkgutil.walk_packages(top.__path__, f"{top.__name__}.") if m.ispkg)]
    if name not in WITHOUT_REFERENCE
]


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_a_reference_page(package: str) -> None:
    declared = {name for page in REFERENCE.glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)}
    assert package in declared


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = [page.read_text() for page in (site / "reference").rglob("*.html")]
    found = {name for page in pages for name in re.findall(r'id="([\w.]+)"', page)}
    public = [(name, item) for name in PACKAGES for item in getattr(importlib.import_module(name), "__all__", [])]
    # A name that is imported on first use stands under its own module.
    missing = [
        f"{name}.{item}"
        for name, item in public
        if f"{name}.{item}" not in found and not any(re.fullmatch(rf"{name}\.\w+\.{item}", one) for one in found)
    ]
    assert missing == []
    assert len(public) > 100


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* rel="?(?:stylesheet|icon|preload|preconnect)"?[^>]* href="([^"]+)"', text)
        assert [source for source in loaded if re.match(r"(https?:)?//", source)] == [], page


def dom(page: str, extra: str = "") -> str:
    """The page as Chromium has it after its scripts ran."""
    found = chromium()
    assert found is not None
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=5000", "--dump-dom", page]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="chromium is not installed")
def test_formulas_render(site: Path, tmp_path: Path) -> None:
    # All formulas of the site on one page, with the site's own scripts: each becomes a KaTeX element without an error.
    formulas = [
        formula
        for page in sorted(site.rglob("*.html"))
        for formula in re.findall(r'<(?:span|div) class="arithmatex">(.*?)</(?:span|div)>', page.read_text(), re.S)
    ]
    assert len(formulas) > 50
    vendor = site / "vendor" / "katex"
    body = "\n".join(f'<div class="arithmatex">{formula}</div>' for formula in formulas)
    scripts = "".join(f'<script src="file://{vendor}/{name}"></script>' for name in ("katex.min.js", "render.js"))
    all_of_them = tmp_path / "formulas.html"
    all_of_them.write_text(f"<!doctype html><meta charset=utf-8><body>{body}{scripts}")
    rendered = dom(f"file://{all_of_them}")
    errors = re.findall(r'class="katex-error"[^>]*title="([^"]*)"', rendered)
    assert [html.unescape(error) for error in errors] == []
    assert "#cc0000" not in rendered  # the colour of macros that KaTeX does not know
    assert len(re.findall(r'<span class="katex">', rendered)) == len(formulas)


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="chromium is not installed")
def test_a_page_of_the_site_renders_its_formulas(site: Path) -> None:
    page = site / "losses" / "index.html"
    formulas = len(re.findall(r'class="arithmatex"', page.read_text()))
    assert formulas > 0
    assert len(re.findall(r'<span class="katex">', dom(f"file://{page}"))) == formulas
