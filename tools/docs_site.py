"""Hooks of mkdocs (``make docs``): pages from outside ``docs``, and links that lead out of it.

On GitHub a page links to sources and to the pages beside README.md by their paths. On the site the
latter are pages of it, and everything else in the repository is looked at on GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Pages of the site that lie beside docs.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside."""
    from mkdocs.structure.files import File

    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead every link where the site has it."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return rewrite(markdown, source, config["repo_url"])


def rewrite(markdown: str, source: str, repository: str) -> str:
    """The page with links as the site has them.

    Args:
        markdown: The page.
        source: Its path from the root of the repository.
        repository: Address of the repository.

    Example:
        >>> rewrite("[a](docs/own.md) [b](jetson/README.md)", "README.md", "https://x/y")
        '[a](own.md) [b](https://x/y/blob/main/jetson/README.md)'
    """

    def lead(match: re.Match[str]) -> str:
        return f"{match[1]}{target(match[2], source, repository)}{match[3]}"

    return LINK.sub(lead, markdown)


def target(link: str, source: str, repository: str) -> str:
    """Where one link of a page leads on the site."""
    if re.match(r"[a-z]+:|#", link):
        return link
    file, mark, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), file))
    for page, outside in PAGES.items():
        if path == outside:
            return f"{page}{mark}{anchor}"
    if path.startswith("docs/"):
        return f"{path.removeprefix('docs/')}{mark}{anchor}"
    if not (ROOT / path).exists():
        return link  # mkdocs says that it is broken
    if re.search(r"\.(png|svg|gif)$", path):
        return f"{repository.replace('//github.com/', '//raw.githubusercontent.com/')}/main/{path}"
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository}/{kind}/main/{path}{mark}{anchor}"
