"""Print what `make check` runs: the changed modules, for their doctests, and the test files that belong to them.

A test file belongs to a module if it stands in the mirrored folder and imports it, or bears its name. Changed means:
since the branch left main, uncommitted and new files too.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = ("solvers", "sde_diffusion", "benchmarks")


def git(*arguments: str) -> list[str]:
    """The lines that a git command prints; none where it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.splitlines()


def changed(root: Path) -> list[Path]:
    """The Python files that differ from main, or are new, and still exist."""
    base = (git("merge-base", "HEAD", "main") or ["HEAD"])[0]
    names = [*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")]
    return sorted({root / name for name in names if name.endswith(".py") and (root / name).is_file()})


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tests_of(module: Path, root: Path) -> list[Path]:
    """The test files of a module."""
    inner = module.relative_to(root).with_suffix("")
    if inner.parts[0] not in PACKAGES:
        return []
    folder = root / "tests" / inner.parent
    name = ".".join(part for part in inner.parts if part != "__init__")
    return [
        path
        for path in sorted(folder.glob("test_*.py"))
        if path.stem == f"test_{inner.name}" or name in set(imports(path))
    ]


def selected(files: Iterable[Path], root: Path) -> list[Path]:
    """What pytest collects for changed files."""
    found: dict[Path, None] = {}
    for path in files:
        top = path.relative_to(root).parts[0]
        if top == "tests" and path.name.startswith("test_"):
            found[path] = None
        elif top in PACKAGES:
            found |= dict.fromkeys(tests_of(path, root))
            if top != "benchmarks":
                found[path] = None
    return list(found)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent.parent
    print(*(path.relative_to(here) for path in selected(changed(here), here)))
