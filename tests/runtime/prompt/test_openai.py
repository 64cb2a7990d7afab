"""Messages in the form of OpenAI's chat API."""

from __future__ import annotations

from typing import Any

import pytest

from lvlm_runtime.errors import UsageError
from lvlm_runtime.prompt.openai import read_openai

TEXT = {"type": "text", "text": "What is it?"}


def test_pictures_are_taken_out_in_their_order() -> None:
    chat = read_openai(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}, TEXT]},
            {"role": "assistant", "content": "A cat."},
            {
                "role": "user",
                "content": [
                    TEXT,
                    {"type": "image_url", "image_url": "b"},
                    {"type": "image", "image": b"c"},
                    {"type": "text", "text": "And where?"},
                ],
            },
        ]
    )
    assert chat.pictures == ["a", "b", b"c"]
    assert chat.question == "What is it?\nAnd where?"
    assert chat.messages[0] == {"role": "system", "content": "Be short."}
    assert chat.messages[3]["content"] == [
        *(TEXT, {"type": "image"}, {"type": "image"}),
        {"type": "text", "text": "And where?"},
    ]


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "messages are a list of .* put one question into prompt"),
        ("hello", "messages are a list of"),
        ({"role": "user", "content": "a"}, "messages are a list of"),
        (["hello"], "a message is a str; give {'role'"),
        ([{"role": "tool", "content": "a"}], "role 'tool'; give one of system, user, assistant"),
        (
            [{"role": "user", "content": None}],
            "the content of a message is a NoneType; give a text",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "a part of type 'input_audio'"),
        ([{"role": "user", "content": ["a"]}], "a part of type None; give {'type': 'text'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of type 'image_url'"),
        (
            [{"role": "assistant", "content": "a"}],
            "the last message has role 'assistant'; an answer",
        ),
        (
            [{"role": "system", "content": [{"type": "image", "image": "a"}]}],
            "a system message has a picture; show it",
        ),
    ],
)
def test_another_form_is_refused(messages: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        read_openai(messages)
