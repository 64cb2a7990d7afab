"""Fill the generated parts of README and docs: ``make readme``. A test holds that they are up to date.

Commands come from the command line itself, numbers from the JSON files that ``make demo-table`` and
``make bench`` write; neither is typed by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import listed_parts
import measured_parts
from lvlm_export.demo.train import tuned
from lvlm_profiles.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
# By page, the parts between its <!-- … --> marks.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"speed": measured_parts.speed, "kept": measured_parts.kept},
    "docs/accuracy.md": {
        "accuracy": measured_parts.accuracy,
        "few tokens": measured_parts.few_tokens,
    },
    "docs/commands.md": {"commands": listed_parts.commands},
    "docs/engines.md": {"engines": measured_parts.engines},
    "docs/families.md": {"families": listed_parts.families},
    "docs/methods.md": {"methods": listed_parts.methods},
    "docs/performance.md": {
        "benchmark": measured_parts.benchmark,
        "peers": measured_parts.peers,
    },
    "docs/SERVING.md": {"load": measured_parts.serve_load},
    "docs/planning.md": {"tuned": tuned.as_markdown},
    "docs/support.md": {"fits": listed_parts.fits, "targets": listed_parts.targets},
    "exporter/lvlm_export/demo/README.md": {"kinds": measured_parts.kinds},
}


def fill(text: str, name: str, content: str) -> str:
    """Replace the text between the markers of a part."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no <!-- {name} --> … <!-- /{name} --> part")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def render(page: str) -> str:
    """A page with every generated part as it should be now."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        text = fill(text, name, make())
    return text


if __name__ == "__main__":
    for page in PAGES:
        old, new = (ROOT / page).read_text(encoding="utf-8"), render(page)
        if old != new:
            write_whole(ROOT / page, new)
        sys.stdout.write(f"{page} {'is up to date' if old == new else 'updated'}\n")
