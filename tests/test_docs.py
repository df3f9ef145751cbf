"""The code of README.md and docs/ runs, and the commands it shows are commands that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import typer.main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if p.is_file())
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=indent)``` *$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its info string, its code without the fence's indentation, its first line."""

    info: str
    code: str
    line: int


def blocks(text: str, *languages: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.M)
        found.append(Block(match["info"].strip(), code, text.count("\n", 0, match.start("code")) + 1))
    return [b for b in found if b.info.split(" ")[0] in languages and "no-run" not in b.info]


def script(text: str) -> str:
    """The python blocks of a page as one program, every line at the number it has on the page."""
    lines = [""] * (text.count("\n") + 1)
    for block in blocks(text, "python"):
        code = block.code.splitlines()
        lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines)


def run(text: str, name: str = "page") -> subprocess.CompletedProcess[str]:
    path = Path(f"{name}.py").absolute()
    path.write_text(script(text))
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=120)


def commands(text: str) -> list[list[str]]:
    """The arguments of each ``sdediff ...`` line of the shell blocks."""
    found = []
    for block in blocks(text, "bash", "console", "sh", "shell"):
        for line in block.code.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            if words[:1] == ["sdediff"]:
                end = next((i for i, w in enumerate(words) if set(w) <= set("|&;<>()")), None)
                found.append(words[1:end])
    return found


def parse_only(command: Any) -> Any:
    """The command line with the work of every command taken out: it only reads its options."""
    for sub in getattr(command, "commands", {}).values():
        parse_only(sub)
    if not hasattr(command, "commands"):
        command.callback = lambda **_: None
    return command


def parse(app: Any, args: list[str]) -> None:
    try:
        parse_only(typer.main.get_command(app)).main(args=args, prog_name="sdediff", standalone_mode=False)
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else error
        raise ValueError(f"sdediff {shlex.join(args)}: {message}") from error


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_every_fence_is_read(path: Path) -> None:
    text = path.read_text()
    openings = re.findall(r"^ *```[^`\n]+$", text, re.M)
    assert len(openings) == sum(bool(m["info"].strip()) for m in FENCE.finditer(text))


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p.read_text(), "python")], ids=page_name)
def test_python_blocks_run(path: Path) -> None:
    done = run(path.read_text(), path.stem)
    assert done.returncode == 0, f"{page_name(path)}: {done.stderr}"


@pytest.mark.parametrize(
    ("path", "args"),
    [(p, args) for p in PAGES for args in commands(p.read_text())],
    ids=lambda value: page_name(value) if isinstance(value, Path) else " ".join(value),
)
def test_commands_parse(path: Path, args: list[str]) -> None:
    from sde_diffusion.cli import app

    parse(app, args)


PAGE = """
```python
x = 2
```

- in a list

    ```python
    def f(y):
        return x + y
    print(f(1))
    ```

```text
not python
```

```bash
make demo
sdediff sample --solver dpm++2m \\
    --nfe 20  # the digits
$ sdediff solvers | head && ls
```
"""


def test_blocks_of_a_page_share_names_and_keep_their_lines() -> None:
    assert run(PAGE).stdout == "3\n"
    broken = run(PAGE.replace("x + y", "z + y"))
    assert broken.returncode == 1
    assert "line 10, in f" in broken.stderr
    assert "NameError: name 'z' is not defined" in broken.stderr


def test_commands_of_a_page() -> None:
    assert commands(PAGE) == [["sample", "--solver", "dpm++2m", "--nfe", "20"], ["solvers"]]


def test_a_command_that_does_not_exist_is_seen() -> None:
    app, ran = typer.Typer(), []

    @app.command()
    def sample(nfe: int = 20) -> None:
        ran.append(nfe)

    @app.command()
    def solvers() -> None: ...

    parse(app, ["sample", "--nfe", "8"])
    assert ran == []
    for wrong in (["sampel"], ["sample", "--nef", "8"], ["sample", "--nfe", "many"]):
        with pytest.raises(ValueError, match=f"^sdediff {' '.join(wrong)}: "):
            parse(app, wrong)
