"""The arguments and files that benchmarks of a trained run share: RUN [--json FILE] [--picture FILE].

The JSON file has the run's name and the figures; a Markdown table of the same name lies beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def run_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments, to which a benchmark adds its own."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, help="file of the figures; a table in Markdown lies beside it")
    parser.add_argument("--picture", type=Path)
    return parser


def write_results(asked: argparse.Namespace, table: str, **content: Any) -> None:
    """Print a table, and write it and the figures where they are asked for."""
    print(table)
    if asked.json:
        asked.json.write_text(json.dumps({"run": asked.run.name, **content}, indent=1) + "\n")
        asked.json.with_suffix(".md").write_text(table + "\n")
