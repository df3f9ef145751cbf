"""Prose: lines of Markdown are short, every page is in the navigation, and phrases that were replaced do not return."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 100
FENCE = re.compile(r"^( *)```.*?^\1``` *$", re.M | re.S)

# Phrases, and the field's word for each; whole words, in any case, across line breaks.
RULED_OUT = {
    r"of nobody|belongs? to nobody": "held-out",
    r"(when|where) nobody says|nobody says|tell nobody|until somebody reads": "by default",
    r"(is|are|was|were|been|be) told( of| apart)?": "receives, is passed, is separated",
    r"(?<!-)noises(?!:|=)": "initial noise, or noise samples",
    r"(slow|fast) waves?|waves of (the|its|their|a) (time|logarithm)": "low-frequency time embedding",
    r"what is not": "a clause with a subject",
    r"a sentence of its own|the one sentence": "an error message",
    r"converged flows?": "reference solution",
    r"tables? with( \w+)? gates": "mixture of tables",
    r"to the last bit as if nothing had happened": "bit-identical",
    r"do(es)? not know of each other": "independent",
    r"picked anew for every cell": "chosen per cell in hindsight",
    r"with the truth in hand": "in hindsight",
    r"(were|was) in view": "influenced",
    r"what chance decides": "random draws",
    r"under one roof": "a common interface",
    r"evaluation on paper": "JSON and tables of an evaluation",
    r"is a thing you can choose": "you can choose",
    r"the converged samples": "reference solutions",
    r"(sure of every sample|sure classes)": "confident",
    r"learn what the labels say": "train class-conditionally",
    r"where figures go too": "also log metrics to",
    r"black and white of images": "value range",
    r"no figures to use": "unreliable",
    r"are no figures|is no figure": "a plain statement",
    r"are warned of": "give a warning",
    r"still takes for noise": "predicts as noise",
    r"seen through more noise": "decided at higher noise levels",
    r"the best fixed-budget deterministic solver of this library, whatever": "the default solver",
    r"which solvers can follow": "that solvers resolve",
    r"(points|data|in) (of|in|from)? ?the plane": "in 2-D",
    r"yardsticks?": "reference solution",
    r"(least|smallest) budget": "minimum NFE",
    r"with the budget of|takes a budget": "NFE",
    r"what (the|a) network (takes|receives)": "inputs, or conditions, of the network",
}
PATTERN = {re.compile(rf"\b(?:{phrase})\b", re.I): better for phrase, better in RULED_OUT.items()}


def tracked(*suffixes: str) -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    paths = [ROOT / name for name in names if name and not name.startswith("docs/vendor/")]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


PAGES = tracked(".md")
GENERATED = ROOT / "benchmarks" / "results"
WRITTEN = [p for p in PAGES if not p.is_relative_to(GENERATED)]


def without_code(text: str) -> str:
    """Markdown with fenced blocks and inline code blanked; lines keep their numbers."""
    blanked = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    return re.sub(r"`[^`\n]*`", "``", blanked)


def prose_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Comments, strings and the names of tests, without doctests and code in backticks, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.type == tokenize.STRING or token.type in FSTRING:
            text = re.sub(r"^ *(>>>|\.\.\.) .*$", "", token.string, flags=re.M)
            text = re.sub(r"^.noises.$", "", text)  # the name of an argument
            text = re.sub(r"\{[^{}\n]*\}", "{}", text) if token.string.lower().startswith(("f", "rf")) else text
            yield token.start[0], re.sub(r"`+[^`]*`+", "``", text)
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")


FSTRING = {getattr(tokenize, "FSTRING_MIDDLE", -1)}


def found_in(path: Path, text: str) -> list[str]:
    """The ruled-out phrases of a file, one sentence each."""
    parts = list(prose_of_python(text)) if path.suffix == ".py" else [(1, without_code(text))]
    found = []
    for start, part in parts:
        joined = re.sub(r"\s*\n\s*(# )?", "\n", part)
        for pattern, better in PATTERN.items():
            for match in pattern.finditer(joined.replace("\n", " ")):
                line = start + joined[: match.start()].count("\n")
                found.append(f"{path.name}:{line}: '{match[0]}'; better: {better}")
    return found


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_prose_lines_are_short(path: Path) -> None:
    lines = FENCE.sub(lambda m: "\n" * m[0].count("\n"), path.read_text()).splitlines()
    lines = ["" if line.startswith("    ") and not line.lstrip().startswith("-") else line for line in lines]
    long = [n for n, line in enumerate(lines, 1) if len(line) > LONGEST and not line.lstrip().startswith(("|", "!["))]
    # A line may hold one thing that cannot be broken, such as a link.
    long = [n for n in long if len(lines[n - 1].split()) > 2]
    assert long == [], f"{name_of(path)}: lines of more than {LONGEST} characters"


def test_no_ruled_out_phrase() -> None:
    found = [
        line
        for path in tracked(".md", ".py", ".toml", ".yml")
        if path != Path(__file__).resolve()
        for line in found_in(path, path.read_text())
    ]
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("a.md", "The network is\ntold the time.", 1),
        ("a.md", "the option `--noises` of tune", 0),
        ("a.md", "```bash\nsdediff tune --noises 4\n```\n", 0),
        ("a.md", "on 24 noises", 1),
        ("a.py", '"""On problems of\nnobody."""', 1),
        ("a.py", "# from the same noises", 1),
        ("a.py", "def f(noises: int) -> None: ...", 0),
        ("a.py", "def test_a_network_is_told_the_time() -> None: ...", 1),
        ("a.py", "raise ValueError(f'an interval needs {n} noises')", 1),
    ],
)
def test_phrases_are_seen(name: str, text: str, count: int) -> None:
    assert len(found_in(Path(name), text)) == count


def entries(nav: Any) -> Iterator[str]:
    """The files of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for value in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(value)


def test_every_page_is_in_the_navigation() -> None:
    nav = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert set(nav) == pages, "add new pages to nav in mkdocs.yml"
    assert len(nav) == len(set(nav))
