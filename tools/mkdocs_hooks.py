"""Builds the blocks that are marked for the tests: superfences takes ```python notest for text."""

import re
from typing import Any

_MARKED = re.compile(r"^([ \t]*(?:`{3,}|~{3,})[ \t]*python)[ \t]+notest\b", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _MARKED.sub(r"\1", markdown)
