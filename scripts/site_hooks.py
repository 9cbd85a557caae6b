"""Hooks of MkDocs: pages that lie outside docs/ (the changelog, tables of results) are pages of the site as well.

In the repository a card links to ``../benchmarks/results/x.md``, so that the link works where the file is read; on the
site the same page lies at ``benchmarks/results/x.md``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "benchmarks" / "results").glob("*.[mp][dn]*"))),
]
LINK = re.compile(r"\]\((?:\.\./)+((?:benchmarks/results/)?[\w.-]+\.(?:md|png))(#[\w-]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for name in OUTSIDE:
        if (ROOT / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to pages outside docs/ to their place on the site."""
    depth = page.file.src_uri.count("/")

    def placed(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if target == "README.md":
            target = "index.md"
        return f"]({'../' * depth}{target}{anchor})" if files.get_file_from_path(target) else found[0]

    markdown = LINK.sub(placed, markdown)
    # in a table a number and its interval stay on one line
    markdown = re.sub(
        r"^\|.*$",
        lambda row: row[0].replace(" \N{PLUS-MINUS SIGN} ", "\u00a0\N{PLUS-MINUS SIGN}\u00a0"),
        markdown,
        flags=re.M,
    )
    if page.file.src_uri in ("CHANGELOG.md", "CONTRIBUTING.md"):
        markdown = markdown.replace("](docs/", "](")
    return markdown
