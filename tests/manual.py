"""The README and the guide as the tests read them: blocks, lines of commands, words, links, headings."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "retina" / "guide"
README = ROOT / "README.md"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (README, *sorted(GUIDE.glob("*.md")))}
GENERATED = (GUIDE / "reference.md", GUIDE / "settings.md")
"""Written from docstrings and from the descriptions of the settings, and kept current by tests; their numbers are
examples, defaults and bounds."""


KINDS = {"table_open": "table", "heading_open": "heading", "paragraph_open": "paragraph", "fence": "code"}


class Block(NamedTuple):
    """A paragraph, item, table or code of a page, in Markdown.

    `before` is the paragraph or heading that stands before it, `section` all text below the same heading.
    """

    kind: str
    text: str
    before: str
    section: str


@cache
def text(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def parse(markdown: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(markdown)


@cache
def tokens(page: str) -> list[Token]:
    return parse(text(page))


def blocks(page: str) -> list[Block]:
    """Return what a page is made of, from the top; a table is a single block."""
    lines = text(page).splitlines()
    starts = [0, *(token.map[0] for token in tokens(page) if token.type == "heading_open" and token.map), len(lines)]
    parts: list[Block] = []
    before = ""
    table_end = 0
    for token in tokens(page):
        kind = KINDS.get(token.type)
        if kind is None or token.map is None or token.map[0] < table_end:
            continue
        first, last = token.map
        content = "\n".join(lines[first:last])
        top = max(start for start in starts if start <= first)
        section = "\n".join(lines[top : min(start for start in starts if start > first)])
        parts.append(Block(kind, content, before, section))
        if kind == "table":
            table_end = last
        elif kind != "code":
            before = content
    return parts


def fences(page: str, language: str, section: str | None = None) -> list[str]:
    """Return the content of a page's code blocks in a language, of the whole page or below one heading."""
    heading, inside = "", []
    for position, token in enumerate(tokens(page)):
        if token.type == "heading_open":
            heading = tokens(page)[position + 1].content
        if token.type == "fence" and token.info == language and section in (None, heading):
            inside.append(token.content)
    return inside


def shell_lines(page: str, section: str | None = None) -> list[str]:
    """Return the commands in a page's bash blocks; a line that ends with a backslash continues."""
    joined = [re.sub(r"\\\n\s*", "", block) for block in fences(page, "bash", section)]
    return [line for block in joined for line in block.splitlines() if shlex.split(line, comments=True)]


def inline_code(page: str) -> list[str]:
    """Return the contents of a page's single backticks."""
    children = [child for token in tokens(page) for child in token.children or () if child.type == "code_inline"]
    return [child.content for child in children]


def words(page: str) -> int:
    """Return the number of words that a reader sees on a page."""
    return visible_words(text(page))


def visible_words(markdown: str) -> int:
    """Return the number of words that a reader of the rendered page sees: no link targets, pictures or table lines."""
    parsed = parse(markdown)
    shown = [token.content for token in parsed if token.type in ("fence", "code_block")]
    shown += ["".join(map(_visible, token.children or ())) for token in parsed if token.type == "inline"]
    return sum(len(part.split()) for part in shown)


def _visible(token: Token) -> str:
    if token.type in ("text", "code_inline"):
        return token.content
    return " " if token.type in ("softbreak", "hardbreak") else ""


def links(page: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    children = [child for token in tokens(page) for child in token.children or ()]
    targets = [child.attrs.get("href") or child.attrs.get("src") for child in children]
    return [unquote(str(target)) for target in targets if target]


def headings(page: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    titles = [tokens(page)[n + 1].content for n, token in enumerate(tokens(page)) if token.type == "heading_open"]
    return {anchor(title) for title in titles}


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")
