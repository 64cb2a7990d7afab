"""Token ids and text against transformers' processors, with tokenizers made here."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.encoder import PromptEncoder, image_token_of
from lvlm_runtime.prompt.panics import named
from prompt_processors import PROCESSORS, save


@pytest.fixture(scope="module", params=PROCESSORS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PromptEncoder, LlavaProcessor]:
    processor = PROCESSORS[request.param]()
    return PromptEncoder.open(save(processor, tmp_path_factory.mktemp("model"))), processor


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(PROCESSORS["llava"](), tmp_path)


def collapsed(ids: list[int], image_token_id: int) -> list[int]:
    """Runs of image tokens as one each."""
    return ids[:1] + [b for a, b in pairwise(ids) if not a == b == image_token_id]


def of_processor(processor: LlavaProcessor, messages: list[dict[str, object]]) -> list[int]:
    ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    return collapsed(list(ids[0]), processor.image_token_id)


texts = st.text(
    st.sampled_from("the cat?Naïv日語🙂é  \n\t:.") | st.characters(exclude_categories=["Cs"]),
    max_size=20,
).filter(
    lambda text: "<image>" not in text
)  # it is refused, and hypothesis tries a file's constants


@settings(max_examples=30, deadline=None)
@given(prompt=texts, system=st.none() | texts, n_images=st.integers(0, 2))
def test_ids_are_the_processors(
    both: tuple[PromptEncoder, LlavaProcessor], prompt: str, system: str | None, n_images: int
) -> None:
    encoder, processor = both
    image = Image.new("RGB", (20, 30))
    content = [{"type": "image", "image": image}] * n_images + [{"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        text = [{"type": "text", "text": system}]
        messages.insert(0, {"role": "system", "content": text})
    ids = encoder.encode(prompt, n_images, system)
    assert ids.count(encoder.image_token_id) == n_images
    assert collapsed(ids, encoder.image_token_id) == of_processor(processor, messages)


def test_a_chat_of_several_turns(both: tuple[PromptEncoder, LlavaProcessor]) -> None:
    encoder, processor = both
    image = {"type": "image", "image": Image.new("RGB", (20, 30))}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "the cat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "what"}, image]},
    ]
    ids = encoder.encode_messages(messages)
    assert ids.count(encoder.image_token_id) == 2
    assert collapsed(ids, encoder.image_token_id) == of_processor(processor, messages)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_decoded_text(
    both: tuple[PromptEncoder, LlavaProcessor], data: st.DataObject
) -> None:
    encoder, processor = both
    any_id = st.integers(0, encoder.tokenizer.get_vocab_size() - 1)
    ids = data.draw(
        st.lists(any_id, max_size=25)
        | texts.map(lambda text: encoder.tokenizer.encode(text, add_special_tokens=False).ids)
    )
    stream = encoder.decoder()
    pieces = [stream.push(token_id) for token_id in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    text = "".join(pieces) + stream.flush()
    assert text == processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_words_are_shown_at_once(both: tuple[PromptEncoder, LlavaProcessor]) -> None:
    encoder, _ = both
    stream = encoder.decoder()
    ids = encoder.tokenizer.encode("the cat sat", add_special_tokens=False).ids
    shown = [stream.push(token_id) for token_id in ids]
    assert "".join(shown) == "the cat sat"
    assert stream.flush() == ""


def test_a_character_of_many_bytes_is_shown_whole(
    both: tuple[PromptEncoder, LlavaProcessor],
) -> None:
    encoder, _ = both
    stream = encoder.decoder()
    ids = encoder.tokenizer.encode("the🦀cat", add_special_tokens=False).ids
    pieces = [piece for piece in map(stream.push, ids) if piece]
    assert "".join(pieces) == "the🦀cat"
    assert any("🦀" in piece for piece in pieces)


def test_special_and_unknown_ids_have_no_text(directory: Path) -> None:
    stream = PromptEncoder.open(directory).decoder()
    assert [stream.push(token_id) for token_id in (1, 2, 99_999)] == ["", "", ""]
    assert stream.flush() == ""


@pytest.mark.parametrize("switches", [{"add_bos_token": False}, {"add_eos_token": True}, {}])
def test_a_tokenizer_json_decides_on_special_tokens(
    switches: dict[str, bool], directory: Path
) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **switches}))
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    ids = PromptEncoder.open(directory).encode("the", 0)
    assert ids == theirs("USER: the ASSISTANT:").input_ids
    assert ids[0] == theirs.bos_token_id


def test_truncation_that_was_saved_is_not_applied(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(path))
    assert 10 < len(PromptEncoder.open(directory).encode("the cat sat on", 1)) < 50


@pytest.mark.parametrize(
    ("part", "content"),
    [
        # A panic of Rust, which is no Exception.
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "BAAAAAABAgM="}),
        # An error of the library at a text, where reading the file was none.
        (
            "model",
            {
                **{"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "##"},
                **{"max_input_chars_per_word": 100, "vocab": {"a": 1}},
            },
        ),
    ],
)
def test_a_tokenizer_that_fails_at_a_text_is_one_line(
    part: str, content: dict[str, object], directory: Path
) -> None:
    path = directory / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: content}))
    with pytest.raises(
        LvlmError,
        match=r"^the tokenizer does not take this text: .*; tokenizer\.json is damaged or of",
    ) as error:
        PromptEncoder.open(directory).encode("the cat sat", 1)
    assert "\n" not in str(error.value)


def test_an_answer_without_text_is_one_line(directory: Path) -> None:
    class Panicking:
        """As a tokenizer whose decoder has met something odd."""

        def get_added_tokens_decoder(self) -> dict[int, object]:
            return {}

        def id_to_token(self, _: int) -> str:
            return "a"

        def decode(self, *_: object, **__: object) -> str:
            raise PanicException("index out of bounds")

    encoder = dataclasses.replace(PromptEncoder.open(directory), tokenizer=Panicking())  # type: ignore[arg-type]
    message = r"^the tokenizer has no text for this answer: index out of bounds; tokenizer\.json is"
    with pytest.raises(LvlmError, match=message):
        encoder.decoder().push(1)


class PanicException(BaseException):
    """What pyo3 raises for a panic; no module exports the class."""


def test_an_interruption_is_no_fault_of_the_tokenizer() -> None:
    with pytest.raises(KeyboardInterrupt), named("the tokenizer", "save it"):
        raise KeyboardInterrupt


def with_template(directory: Path, template: str) -> PromptEncoder:
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return PromptEncoder.open(directory)


QUESTION = "{{ bos_token }}{{ image_token * (messages[-1].content | length - 1) }}{{ messages[-1].content[-1].text }}"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise_exception('one\n user only')", "one user only"),
        ("1 / 0", "division by zero"),
    ],
)
def test_a_template_that_fails_says_why(fault: str, reason: str, directory: Path) -> None:
    with pytest.raises(
        LvlmError, match=rf"no prompt with a picture .* in it \({reason}\); add the"
    ):
        with_template(directory, f"{{{{ {fault} }}}}")
    picky = "{% if 'cat' in messages[-1].content[-1].text %}{{ " + fault + " }}{% endif %}"
    encoder = with_template(directory, picky + QUESTION)
    assert encoder.encode("the", 1)
    with pytest.raises(LvlmError, match=rf"template refused this chat: {reason}; change the"):
        encoder.encode("the cat", 1)


def test_a_template_may_use_the_special_tokens(directory: Path) -> None:
    encoder = with_template(directory, QUESTION)
    assert encoder.encode("the", 1)[:2] == [1, encoder.image_token_id]
    assert encoder.encode("the", 0)[0] == 1


@pytest.mark.parametrize(
    "template",
    [
        "no pictures",
        "<image><image>{{ messages[0].role }}",
        "{{ messages }}",
        "<image>{{ messages | tojson }}",
        "{{ messages[0].content[0].type }}",
    ],
)
def test_a_template_that_cannot_say_a_question_is_refused(template: str, directory: Path) -> None:
    with pytest.raises(
        LvlmError, match=r"chat template in .* gives no prompt with a picture and a"
    ):
        with_template(directory, template)


def test_a_template_that_loses_a_picture_is_refused(directory: Path) -> None:
    one = "<image>{{ messages[-1].content[-1].text }}"
    with pytest.raises(LvlmError, match=r"put 1 image tokens into a chat with 2 pictures"):
        with_template(directory, one).encode("the", 2)


@pytest.mark.parametrize("system", [None, "the <image> cat"])
def test_the_image_token_in_a_text_is_refused(system: str | None, directory: Path) -> None:
    encoder = PromptEncoder.open(directory)
    with pytest.raises(LvlmError, match="prompt contains '<image>', which stands for a picture"):
        encoder.encode("what" if system else "a <image> b", 1, system)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            {"role": "user", "content": [{"type": "video"}]},
            "has a part of type 'video'; give 'image'",
        ),
        ({"role": "user", "content": ["the"]}, "has a part of type None; give 'image'"),
        ({"role": "user", "content": None}, "role 'user' and content of type NoneType"),
        ({"content": "the"}, "role None and content of type str"),
    ],
)
def test_messages_of_another_form_are_refused(
    message: dict[str, object], error: str, directory: Path
) -> None:
    with pytest.raises(LvlmError, match=error):
        PromptEncoder.open(directory).encode_messages([message])


def test_a_damaged_tokenizer_is_named(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(LvlmError, match=r"tokenizer.json is not a tokenizer: .*; export it again"):
        PromptEncoder.open(directory)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(name: str, directory: Path) -> None:
    (directory / name).unlink()
    with pytest.raises(LvlmError, match=rf"no such file: .*{name}; give the directory of a bundle"):
        PromptEncoder.open(directory)


@pytest.mark.parametrize("token", [5, ["<image>"], {"content": None}, {"token": "<image>"}])
def test_an_image_token_that_is_no_text_is_refused(token: object, directory: Path) -> None:
    with pytest.raises(
        LvlmError, match=r"image_token in .*/processor_config\.json is .*, a text is"
    ):
        image_token_of({"image_token": token}, directory)


def test_a_tokenizer_without_image_token_is_refused(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_token": "<picture>"}))
    with pytest.raises(LvlmError, match="has no image token '<picture>'"):
        PromptEncoder.open(directory)
