"""Griffe extension: doctests in docstrings become code blocks on the reference pages."""

import re
from typing import Any

import griffe

# A doctest is a paragraph that begins with a prompt; its expected output is a part of it.
DOCTEST = re.compile(r"^( *)(>>> .*(?:\n\1\S.*|\n\1 +\S.*)*)", re.M)


class FenceDoctests(griffe.Extension):
    """Put a fence around each doctest."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"\1```pycon\n\1\2\n\1```", obj.docstring.value)
