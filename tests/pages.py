"""Reads the pages that people read: their blocks of code, their links and what these may point to.

A page is Markdown. What a block is, its fence says:

    python          run, a page's blocks one after the other in one process, in an empty folder; a block whose first
                    line is `# NAME.py` is that file, and is imported
    python ray      the same, but it starts Ray; a file is then run as a program
    yaml, json, csv, jsonl   read by what reads such a file; a second word, or a first line `# NAME`, makes it that file
    sh              commands, whose flags are checked; nothing is started
    text            what a command prints, signatures, diagrams; not checked
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"python", "yaml", "json", "jsonl", "csv", "sh", "text"}


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    kind: str
    rest: tuple[str, ...]  # of the fence's words
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is; None if it is none."""
        first = re.match(r"# ([\w./-]+\.\w+)\b", self.text)
        named = [word for word in self.rest if "." in word]
        return first[1] if first else named[0] if named else None

    @property
    def starts_ray(self) -> bool:
        """Whether it says so."""
        return "ray" in self.rest


def name(page: Path) -> str:
    """How a test calls it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *kinds: str) -> list[Block]:
    """The page's blocks of these kinds, in order; all without any."""
    found = []
    for token in _tokens(page):
        if token.type in ("fence", "code_block"):
            kind, *rest = token.info.split() or [""]
            found.append(Block(kind, tuple(rest), token.content, (token.map or [0])[0] + 1))
    return [block for block in found if not kinds or block.kind in kinds]


def inline_code(page: Path) -> list[str]:
    """What is set as code within text."""
    return [t.content for token in _tokens(page) for t in token.children or () if t.type == "code_inline"]


def links(page: Path) -> list[str]:
    """Where it points to: links and images."""
    children = [t for token in _tokens(page) for t in token.children or ()]
    return [str(t.attrs[a]) for t in children for a in ("href", "src") if a in t.attrs]


def anchors(page: Path) -> set[str]:
    """What a link to a part of it can name, by GitHub's rule."""
    found: set[str] = set()
    tokens = _tokens(page)
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open":
            text = "".join(t.content for t in token.children or () if t.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            again = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
            found.add(f"{slug}-{again}" if again else slug)
    return found


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())
