"""What the campaign found, a row each; and that it finds what it looks for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attack
from attack_targets import RUN, contents, kept, make_inputs, sign_again
from lvlm_export.cli.commands import list as list_command
from mutations import put_no_file

BUILD = ("build", "--model", "checkpoint", "--ratio", "0.5", "-o", "out/bundle")
GOLDEN = ("verify", "bundle", "--golden", "--threads", "1")
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def inputs(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("attack") / "inputs"
    return make_inputs(place, tiny_llava / "checkpoint", tiny_llava / "bundle")


def becomes(kind: str) -> Change:
    return lambda path: put_no_file(path, kind)


def entry(value: Any, *keys: str) -> Change:
    """One entry of a JSON file is another value, or gone where that is ``...``."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        path.write_text(json.dumps(content))

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("name", "change", "words", "message"),
    [
        ("checkpoint/config.json", becomes("pipe"), BUILD, "it is a pipe, not a file"),
        ("checkpoint/generation_config.json", becomes("huge"), BUILD, "larger than the 67 MB"),
        ("checkpoint/tokenizer.json", becomes("huge"), BUILD, "larger than the 67 MB"),
        ("checkpoint/model.safetensors", becomes("huge"), BUILD, "is truncated or damaged"),
        ("checkpoint/config.json", entry(-4, "text_config", "num_attention_heads"), BUILD, ""),
        ("checkpoint/config.json", entry(0, "vision_config", "image_size"), BUILD, ""),
        ("checkpoint/config.json", entry([[]], "text_config"), BUILD, "refused by transformers"),
        ("bundle/golden.json", entry(["abcde"], "pictures"), GOLDEN, "is no base64"),
        ("bundle/manifest.json", entry(..., "files", "vision.0.onnx"), ("inspect", "bundle"), ""),
        ("bundle/weights.bin", cut, RUN, ""),
        ("bundle/manifest.json", becomes("zero"), RUN, "bundle/manifest.json is "),
        ("recipe.toml", becomes("pipe"), (*BUILD[:3], "--recipe", "recipe.toml"), "it is a pipe"),
    ],
)
def test_what_was_found_is_one_line(
    inputs: Path, name: str, change: Change, words: tuple[str, ...], message: str
) -> None:
    manifest = ("bundle/manifest.json",) if name.startswith("bundle/") else ()
    with kept(inputs, name, *manifest):
        change(inputs / name)
        if manifest:
            sign_again(inputs, inputs / name)
        before = contents(inputs)
        result, wrong = attack.invoke(list(words), inputs)
        assert wrong == ""
        assert result in (1, 2)
        assert attack.differences(before, contents(inputs)) == []
        assert message in attack.last_line(list(words), inputs)


@pytest.mark.parametrize(
    ("does", "found"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: os.write(2, b"a library speaks\n") and exit(1), "lines on stderr"),
        (lambda: exit(7), "status 7"),
    ],
)
def test_the_campaign_finds_what_it_looks_for(
    inputs: Path, does: Callable[[], Any], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_command, "targets", does)
    _, wrong = attack.invoke(["list", "targets"], inputs)
    assert found in wrong


def test_the_campaign_sees_a_file_that_changed(inputs: Path) -> None:
    with kept(inputs, "accuracy.json"):
        before = contents(inputs)
        (inputs / "accuracy.json").write_bytes((inputs / "accuracy.json").read_bytes())
        (inputs / "new").mkdir()
        assert set(attack.differences(before, contents(inputs))) == {"accuracy.json", "new"}
        (inputs / "new").rmdir()
