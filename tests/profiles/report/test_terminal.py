"""Control characters of others are shown, not obeyed."""

from __future__ import annotations

import json
import unicodedata

import pytest

from lvlm_profiles.report.terminal import visible, visible_json

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\r\b\x00\x7f\u202egpj.exe\u2066\u2028"


def test_control_characters_are_written_out() -> None:
    shown = visible(HOSTILE)
    assert shown == (r"\x1b[2J\x1b]0;title\x07\x9b31m\x0d\x08\x00\x7f\u202egpj.exe\u2066\u2028")


@pytest.mark.parametrize("text", ["", "a\tb\nc", "é 猫 🐈", "שלום \u200f", "\\x1b"])
def test_other_text_stays(text: str) -> None:
    assert visible(text) == text


def test_no_control_character_is_left_out() -> None:
    everything = "".join(map(chr, range(0x3000)))
    kept = [c for c in visible(everything) if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    assert kept == ["\t", "\n"]


def test_json_keeps_its_content() -> None:
    document = json.dumps({HOSTILE: [HOSTILE]}, ensure_ascii=False, indent=1)
    shown = visible_json(document)
    assert json.loads(shown) == {HOSTILE: [HOSTILE]}
    assert visible(shown) == shown
