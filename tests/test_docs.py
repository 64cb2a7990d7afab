"""The documents keep up with the code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from lvlm_export.cli import COMMANDS, cli
from lvlm_export.families import FAMILIES
from lvlm_export.reduction import METHODS
from update_readme import render

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "jetson/README.md")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(name: str) -> str:
    """A document, or a skip where it is not written yet."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not written yet")
    return path.read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def has_anchor(target: Path, anchor: str) -> bool:
    """The place in a document that a link names; other files are not looked into."""
    return not anchor or target.suffix != ".md" or anchor in anchors(target.read_text("utf-8"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    text = text_of(name)
    wrong = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        if not target.exists() or not has_anchor(target, anchor):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_names_every_command_and_option(command: str) -> None:
    text = text_of("README.md")
    assert f"lvlm-export {command}" in text
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    options = [opt for each in found.params if isinstance(each, click.Option) for opt in each.opts]
    long = [option for option in options if option.startswith("--")]
    assert [option for option in long if option not in text] == []


def test_the_readme_names_every_family_and_method() -> None:
    text = text_of("README.md")
    assert [name for name in (*FAMILIES, *METHODS) if f"`{name}`" not in text] == []


def test_the_generated_parts_of_the_readme_are_up_to_date() -> None:
    text = text_of("README.md")
    assert render(text) == text, "type `make readme`"


def test_every_make_target_is_explained_and_real() -> None:
    makefile = text_of("Makefile")
    explained = set(re.findall(r"^# make ([\w-]+)", makefile, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE)) - {"help"}
    assert explained == targets
    documents = "".join(
        (ROOT / name).read_text("utf-8") for name in DOCUMENTS if (ROOT / name).exists()
    )
    assert set(re.findall(r"`make ([\w-]+)`", documents)) <= targets


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    assert found.help
    options = [each for each in found.params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help] == []
