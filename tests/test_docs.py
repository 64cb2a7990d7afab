"""The documents keep up with the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import tomllib

from docs_site import rewrite
from documents import DOCUMENTS, ROOT, text_of
from lvlm_export.cli import COMMANDS, cli
from lvlm_export.families import FAMILIES
from lvlm_export.reduction import METHODS
from update_readme import PAGES, fill, render

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
RAW = "https://raw.githubusercontent.com/lvlm-export/lvlm-export/"
# Where a path in a document may begin.
STARTS = (
    *(ROOT, *(ROOT / name for name in ("exporter", "runtime", "profiles"))),
    *(
        ROOT / "exporter/lvlm_export",
        ROOT / "runtime/lvlm_runtime",
        ROOT / "profiles/lvlm_profiles",
    ),
)


def project() -> dict[str, Any]:
    """The table of that name in pyproject.toml."""
    return dict(tomllib.loads(text_of("pyproject.toml"))["project"])


def own_file(link: str) -> str | None:
    """The file of this repository that an absolute link names; None for any other link.

    The package page shows the README away from the repository, so its links are absolute.
    """
    address = project()["urls"]["Homepage"]
    raw = address.replace("//github.com/", "//raw.githubusercontent.com/")
    for start in (f"{address}/blob/main/", f"{address}/tree/main/", f"{raw}/main/"):
        if link.startswith(start):
            return link.removeprefix(start)
    return None


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def has_anchor(target: Path, anchor: str) -> bool:
    """The place in a document that a link names; other files are not looked into."""
    return not anchor or target.suffix != ".md" or anchor in anchors(target.read_text("utf-8"))


def broken_links(text: str, document: Path) -> list[str]:
    """Links of a document to files or headings of this repository that are not there."""
    wrong = []
    for link in LINK.findall(text):
        own = own_file(link)
        if own is None and re.match(r"[a-z]+:", link):
            # A pull request or an issue of our own is fine; a file under another branch is not.
            if link.startswith((f"{project()['urls']['Homepage']}/blob/", RAW)):
                wrong.append(link)
            continue
        file, _, anchor = (link if own is None else own).partition("#")
        base = document.parent if own is None else ROOT
        target = base / file if file else document
        if not target.exists() or not has_anchor(target, anchor):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_into_the_repository_leads_somewhere(name: str) -> None:
    assert broken_links(text_of(name), ROOT / name) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    address = project()["urls"]["Homepage"]
    good = f"[a](README.md#nowhere) [b]({RAW}main/docs/idea.svg) [c]({address}/issues)"
    assert broken_links(good, ROOT / "README.md") == ["README.md#nowhere"]
    for link in ("docs/none.svg", f"{RAW}main/none.svg", f"{address}/blob/old/README.md"):
        assert broken_links(f"![x]({link})", ROOT / "README.md") == [link]


def package_page() -> str:
    """The README as the package page shows it, by the substitutions in pyproject.toml."""
    hooks = tomllib.loads(text_of("pyproject.toml"))["tool"]["hatch"]["metadata"]["hooks"]
    text = text_of("README.md")
    for each in hooks["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


def test_the_package_page_has_absolute_links_to_files_that_exist() -> None:
    links, page = LINK.findall(text_of("README.md")), package_page()
    assert len(links) > 5
    assert len(LINK.findall(page)) == len(links)
    assert [link for link in LINK.findall(page) if not re.match(r"https?:|#", link)] == []
    assert broken_links(page, ROOT / "README.md") == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert pictures
    assert [link for link in pictures if not link.startswith(RAW)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_names_every_command_and_option(command: str) -> None:
    text = text_of("docs/commands.md")
    assert f"lvlm-export {command}" in text
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    options = [opt for each in found.params if isinstance(each, click.Option) for opt in each.opts]
    long = [option for option in options if option.startswith("--")]
    assert [option for option in long if option not in text] == []


def test_pages_name_every_family_and_method() -> None:
    for names, page in ((FAMILIES, "families"), (METHODS, "methods")):
        text = text_of(f"docs/{page}.md")
        assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_up_to_date(page: str) -> None:
    assert render(page) == text_of(page), "type `make readme`"


def test_a_generated_part_without_marks_is_an_error() -> None:
    assert fill("<!-- a -->\nold\n<!-- /a -->", "a", "new") == "<!-- a -->\nnew\n<!-- /a -->"
    with pytest.raises(ValueError, match="there is no <!-- b -->"):
        fill("<!-- a -->\n<!-- /a -->", "b", "new")


def test_the_readme_is_short_and_its_figures_are_generated() -> None:
    """What is not a command, a name or a generated part has no measured figure."""
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150
    for part in PAGES["README.md"]:
        text = fill(text, part, "")
    text = re.sub(r"(?ms)^```.*?^```|`[^`]*`", "", text)
    assert re.findall(r"\d+(?:\.\d+)? ?(?:%|ms|MB|kB|points|times|seconds)(?!\w)", text) == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = text_of("mkdocs.yml").partition("\nnav:\n")[2]
    named = set(re.findall(r": ([\w-]+\.md)$", navigation, re.MULTILINE))
    pages = {path.name for path in ROOT.glob("docs/*.md")}
    assert pages | {"index.md", "contributing.md", "changelog.md", "security.md"} == named


def test_links_on_the_site_lead_to_its_pages_or_to_the_sources() -> None:
    address = project()["urls"]["Homepage"]
    text = "[a](docs/own.md#the-gate) [b](jetson) [c](SECURITY.md) [d](#x) [e](https://a.b)"
    assert rewrite(text, "README.md", address) == (
        f"[a](own.md#the-gate) [b]({address}/tree/main/jetson) [c](security.md) [d](#x) [e](https://a.b)"
    )
    page = rewrite("[a](../README.md) [b](idea.svg) [c](../none.md)", "docs/start.md", address)
    assert page == "[a](index.md) [b](idea.svg) [c](../none.md)"


def test_every_make_target_is_explained_and_real() -> None:
    makefile = text_of("Makefile")
    explained = set(re.findall(r"^# make ([\w-]+)", makefile, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE)) - {"all", "help"}
    assert explained == targets
    documents = "".join(text_of(name) for name in DOCUMENTS)
    assert set(re.findall(r"`make ([\w-]+)[^`]*`", documents)) <= {*targets, "help"}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "AGENTS.md", "RELEASE.md"])
def test_paths_that_documents_name_exist(name: str) -> None:
    """Words in backticks that look like a file of ours, from the root or inside a package."""
    paths = re.findall(r"`([\w.-]+(?:/[\w.-]+)+/?)`", text_of(name))
    made = ("build/", ".venv/", "bundles/")
    assert [
        path
        for path in paths
        if not path.startswith(made) and not any((root / path).exists() for root in STARTS)
    ] == []


def test_the_first_screen_says_how_to_install() -> None:
    first = "\n".join(text_of("README.md").splitlines()[:30])
    for words in (
        'pip install ".[cpu]"',
        "[cpu,export]",
        "`make",
        ".venv/bin/lvlm-export",
    ):
        assert words in first
    extras = project()["optional-dependencies"]
    named = re.findall(r"lvlm-export\[([\w,]+)\]", "".join(text_of(name) for name in DOCUMENTS))
    assert {extra for names in named for extra in names.split(",")} <= set(extras)


def test_one_version_and_one_date_everywhere() -> None:
    version = project()["version"]
    citation = text_of("CITATION.cff")
    released = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", text_of("CHANGELOG.md"), re.M)
    assert released[0][0] == version
    assert re.search(rf"^version: {re.escape(version)}$", citation, re.MULTILINE)
    assert re.search(rf"^date-released: {released[0][1]}$", citation, re.MULTILINE)
    assert f'repository-code: "{project()["urls"]["Homepage"]}"' in citation
    assert text_of("CHANGELOG.md").index("## [Unreleased]") < text_of("CHANGELOG.md").index(version)


def test_agents_page_is_short() -> None:
    assert len(text_of("AGENTS.md").splitlines()) <= 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    assert found.help
    options = [each for each in found.params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help] == []


def test_what_may_lie_in_a_bundle_stands_in_the_table() -> None:
    from lvlm_runtime.bundle.files import BESIDE

    table = text_of("docs/TRUST.md")
    for pattern in BESIDE:
        name = pattern.removeprefix("engines/(rtx|trt)/").replace("\\", "").replace("[^/]+", "*")
        name = name.replace("(.*/)?.nfs[0-9a-f]+", ".nfsXXXX")
        for word in (
            [name.replace("(timing|kernels)", each) for each in ("timing", "kernels")]
            if "timing" in name
            else [".NAME.XXXXXXXX.lvlm-tmp" if name.endswith("lvlm-tmp") else name]
        ):
            assert f"`{word}`" in table, word
