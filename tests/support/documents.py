"""The documents, for tests that hold them against the code."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md", "RELEASE.md", "SECURITY.md"),
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
    *("jetson/README.md", "examples/README.md", "exporter/lvlm_export/demo/README.md"),
    *sorted(f"examples/{path.parent.name}/README.md" for path in ROOT.glob("examples/*/README.md")),
)


def text_of(name: str) -> str:
    """A document; one that is missing is an error."""
    return (ROOT / name).read_text(encoding="utf-8")
