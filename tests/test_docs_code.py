"""Every program in the documentation runs: README.md, the pages of docs/, and examples/.

A page's ```python blocks run in order and share their names, as a reader types them. Time is
virtual, both for ``asyncio.run(...)`` and for ``await`` outside any function, so that a page may
wait for an hour. A fragment that can't run is marked ```python notest, or stands under the
comment <!-- notest -->.
"""

from __future__ import annotations

import ast
import asyncio
import re
import runpy
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import pytest

from async_task_manager.testing import VirtualTimeLoop

ROOT = Path(__file__).parents[1]


class Block(NamedTuple):
    code: str
    line: int  # of the page, where the code begins


def blocks(page: Path) -> Iterator[Block]:
    """The programs on a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    above = fence = ""
    info: list[str] = []
    start = 0
    for number, line in enumerate(map(str.strip, lines), 1):
        if not fence:
            if opening := re.match(r"(`{3,}|~{3,})([^`]*)$", line):
                fence, start = opening[1], number
                info = [above, *opening[2].split()]
            above = line or above
        elif line.startswith(fence) and not line.strip(fence[0]):
            fence = above = ""
            if info[1:2] == ["python"] and info[0] != "<!-- notest -->" and "notest" not in info:
                code = textwrap.dedent("\n".join(lines[start : number - 1]))
                yield Block(code, start + 1)
    assert not fence, f"{page}:{start}: a block without an end"


def compiled(page: Path, block: Block) -> CodeType:
    """The block as code that knows its lines on the page; if it awaits, as a coroutine's."""
    tree = ast.parse("\n" * (block.line - 1) + block.code, str(page))
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: CodeType = compile(tree, str(page), "exec", flags, dont_inherit=True)
    return code


def line_of(error: BaseException, page: Path, block: Block) -> int:
    if isinstance(error, SyntaxError) and error.filename == str(page):
        return error.lineno or block.line
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(page)]
    return (lines[-1] if lines else None) or block.line


def run_in_virtual_time(main: Coroutine[Any, Any, Any], *, debug: bool | None = None) -> Any:
    with asyncio.Runner(debug=debug, loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)  # where get_type_hints() looks names up
    monkeypatch.setattr(asyncio, "run", run_in_virtual_time)
    # One loop for all that a page awaits outside functions: what a block starts, a later one stops.
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        for block in blocks(page):
            try:
                started = eval(compiled(page, block), module.__dict__)
                if started is not None:
                    runner.run(started)
            except (Exception, SystemExit) as error:
                where = f"{page}:{line_of(error, page, block)}"
                raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error


PAGES = [
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if any(blocks(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_on_a_page_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(ROOT / page, monkeypatch)


EXAMPLES = [
    path.name
    for path in sorted((ROOT / "examples").glob("*.py"))
    if path.name
    not in {
        "demo.py",  # HTTP in real time: below
        "retry_and_cooldown.py",  # the same
        "fake_provider.py",  # serves until it is told to stop: test_fake_provider.py
    }
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(ROOT / "examples" / example)
    monkeypatch.setattr(asyncio, "run", run_in_virtual_time)
    monkeypatch.setattr(sys, "argv", [script])
    runpy.run_path(script, run_name="__main__")


def output_of(example: str) -> str:
    """What it prints, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, f"examples/{example}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_the_demo_breaks_no_limit() -> None:
    assert "429s: 0" in output_of("demo.py")


def test_who_listens_to_the_server_is_refused_less() -> None:
    rows = [line.split()[-4:] for line in output_of("retry_and_cooldown.py").splitlines()[1:]]
    alone, cooled, heard = (int(refused) for _, refused, _, _ in rows)
    assert [done for _, _, done, _ in rows] == ["40"] * 3
    assert alone > cooled > heard == 0


PAGE = """\
# A page

```python
import asyncio

seen = []


async def hour() -> float:
    await asyncio.sleep(3600)
    return asyncio.get_running_loop().time()


seen.append(asyncio.run(hour()))
```

```python notest
fragment(
```

<!-- notest -->

```python
another(
```

1. In a list, and awaiting:

    ```python
    later = asyncio.create_task(hour())
    await asyncio.sleep(60)
    ```

    ```python
    seen.append(await later)
    assert seen == [3600, 3600]
    ```

````markdown
```python
not_a_program(
```
````
"""


def test_blocks_share_names_and_await_in_virtual_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert len(list(blocks(page))) == 3
    run_page(page, monkeypatch)


@pytest.mark.parametrize(
    ("broken", "line", "error"),
    [
        ("x = 1\n\n1 / 0", 6, "ZeroDivisionError"),
        ("x = 1\nif x", 5, "SyntaxError"),
        ("import asyncio\nawait asyncio.Event().wait()", 4, "Deadlock"),
        ("raise SystemExit(1)", 4, "SystemExit: 1"),
        ("def f():\n    1 / 0\n\n\nasyncio = f()", 5, "ZeroDivisionError"),
    ],
)
def test_a_block_that_fails_names_file_and_line(
    broken: str, line: int, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Broken\n\n```python\n{broken}\n```\n")
    with pytest.raises(AssertionError, match=rf"page\.md:{line}: {error}"):
        run_page(page, monkeypatch)


def test_a_block_without_an_end_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n")
    with pytest.raises(AssertionError, match=r"page\.md:1: a block without an end"):
        list(blocks(page))


def test_one_user_floods_and_another_comes_next() -> None:
    flood = subprocess.run(
        [sys.executable, "examples/fair_service/flood.py"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert flood.returncode == 0, flood.stdout
    assert "of 41 to end" in flood.stdout
