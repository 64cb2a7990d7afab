"""Text of others, for a terminal: what would command it is shown in place of done.

Names in a bundle, answers of a model, lines of a report: a terminal obeys the control characters in
them. It clears the screen, renames the window, writes over what was there, or shows letters in
another order than they stand (https://trojansource.codes).
"""

from __future__ import annotations

# C0 without tab and line feed, delete, C1, line and paragraph separators, and what turns the
# direction of writing around.
_CONTROLS = {
    code: f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"
    for code in (
        *(code for code in range(0x20) if code not in (0x09, 0x0A)),
        *range(0x7F, 0xA0),
        *(0x2028, 0x2029),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
}
_IN_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS}


def visible(text: str) -> str:
    r"""A text whose control characters are written out; tabs and line breaks stay.

    >>> visible("\x1b[2Ja cat")
    '\\x1b[2Ja cat'
    """
    return text.translate(_CONTROLS)


def visible_json(document: str) -> str:
    """A JSON document with the same content, whose control characters are JSON's own escapes."""
    return document.translate(_IN_JSON)
