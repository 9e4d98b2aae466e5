"""A report's Markdown as one page: no script, no other file, light and dark, wide and narrow."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #161b22; --link: #79b8ff; } }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: #24292f; background: #fff; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } }
h1, h2, h3 { line-height: 1.25; } h2 { border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; overflow-wrap: anywhere;
  min-width: 12rem; max-width: 20rem; }
tbody tr:hover { background: var(--soft); }
code { background: var(--soft); padding: .1rem .3rem; border-radius: .2rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
"""


def page(title: str, text: str, figures: Mapping[str, str]) -> str:
    """The page of Markdown `text`; an image whose source is in `figures` becomes the SVG that stands there.

    Raw HTML in the text is shown, never obeyed.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("table_open", lambda *_: '<div class="table"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    markdown.add_render_rule("image", _image)
    body = markdown.render(text, {"figures": figures})
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )


def _image(_: Any, tokens: Any, index: int, __: Any, environment: Any) -> str:
    token = tokens[index]
    label = html.escape(token.content)
    svg: str | None = environment["figures"].get(token.attrs["src"])
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1) if svg else label
