"""The README's Python snippets run, one after the other, and print what the README shows."""

import contextlib
import io
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import heedful

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"```python\n(.*?)```\n```text\n(.*?)```", re.DOTALL)


def test_snippets(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heedful, "load", lambda **_: lm)
    namespace: dict[str, Any] = {}
    found = SNIPPET.findall(README)
    assert len(found) == 2
    for code, shown in found:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, namespace)
        assert [line.rstrip() for line in out.getvalue().splitlines()] == shown.splitlines()


def test_commands_exist() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile
    assert "@@" not in README


def test_capacity_is_what_the_script_works_out() -> None:
    script = runpy.run_path(str(ROOT / "tools" / "capacity.py"))
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in (script["sizes"](), script["throughput"]()):
        assert "\n".join(table) in page
