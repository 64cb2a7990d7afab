"""Commands that the documents show are commands of today: they are parsed, not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from command_line import wrong
from documents import DOCUMENTS, text_of

# The changelog tells of options that were.
SHOWN = tuple(name for name in DOCUMENTS if name != "CHANGELOG.md")
BLOCK = re.compile(r"^ *```(?:bash|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def lines_of(block: str, console: bool) -> Iterator[str]:
    """Commands of a block, continued lines joined; of a console only what was typed."""
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        typed = line.strip()
        if console and not typed.startswith("$ "):
            continue
        yield from re.split(r" (?:&&|;|\|) ", typed.removeprefix("$ "))


def filled(block: str) -> str:
    """A block with its own variables set; a loop's is its first word."""
    values = dict(re.findall(r'^(\w+)="?([^"\n#]*?)"?(?: +#.*)?$', block, re.MULTILINE))
    for name, words in re.findall(r"^for (\w+) in ([^;]+);", block, re.MULTILINE):
        values[name] = values.get(words.removeprefix("$"), words).split()[0]
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), block)


def typed_commands(text: str) -> list[list[str]]:
    """Words behind ``lvlm-export`` of every command in a document's blocks."""
    found = []
    for match in BLOCK.finditer(text):
        for line in lines_of(filled(match[1]), match[0].lstrip().startswith("```console")):
            words = shlex.split(line, comments=True)
            if words and re.fullmatch(r"(.*/)?lvlm-export", words[0]):
                found.append(words[1:])
    return found


def named_commands(text: str) -> list[list[str]]:
    """Words of what stands in backticks, where arguments may be missing."""
    text = BLOCK.sub("", text)
    return [each.split() for each in re.findall(r"`lvlm-export\s+([^`]+)`", text)]


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_that_is_shown_is_parsed(name: str) -> None:
    text = text_of(name)
    shown = [(each, True) for each in typed_commands(text)]
    shown += [(each, False) for each in named_commands(text)]
    found = {" ".join(words): wrong(words, whole) for words, whole in shown}
    assert {command: reason for command, reason in found.items() if reason is not None} == {}


def test_the_first_pages_show_commands() -> None:
    assert [words[0] for words in typed_commands(text_of("README.md"))] == [
        *("plan", "build", "run", "visualize", "profile"),
    ]
    for name in ("docs/own.md", "docs/jetson.md", "docs/start.md"):
        assert len(typed_commands(text_of(name))) > 1


def test_a_stale_command_is_found() -> None:
    text = "```bash\nlvlm-export build --rate 0.3 \\\n  -o x\nlvlm-export fly\n```\n`lvlm-export run --fast`"
    first, second = typed_commands(text)
    assert "No such option" in str(wrong(first, True))
    assert wrong(second, True) == "there is no command fly"
    assert wrong(named_commands(text)[0], False) == "there is no option --fast"
    assert wrong(["build", "--ratio", "2", "-o", "x"], True) is not None
