"""What a chat template takes as content: parts, a text, or both, found by trying."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.encoder import PromptEncoder
from prompt_processors import CHATML_TEMPLATE, PLAIN_TEMPLATE, PROCESSORS, save

# Of language models, which know no pictures: the first is of zephyr, with a trim as of Llama 3.
TEXT_TEMPLATES = {
    "trims": "{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>' ~ (m['content'] | trim) ~ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "joins": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}",
    "takes the system message apart": "{% if messages[0]['role'] == 'system' %}"
    "{{ '<<SYS>>' + messages[0]['content'] + '<</SYS>>' }}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% endfor %}",
}
BOTH = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)
# The user's words as parts, the instruction as a text: of several LLaVA-like checkpoints.
MIXED = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages if m['role'] == 'user' %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return PROCESSORS["llava"]()


def encoder_of(processor: LlavaProcessor, template: str, directory: Path) -> PromptEncoder:
    save(processor, directory)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return PromptEncoder.open(directory)


def ids_of_text(tokenizer: PreTrainedTokenizerFast, template: str, chat: list[Any]) -> list[int]:
    """Ids of a chat of texts as transformers' tokenizer and the processor of a picture make them."""
    text = tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    starts = text.startswith(tokenizer.bos_token)
    return list(tokenizer(text, add_special_tokens=not starts).input_ids)


@pytest.mark.parametrize("system", [None, "be brief"])
@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_a_language_models_template_gets_a_text(
    name: str, system: str | None, processor: LlavaProcessor, tmp_path: Path
) -> None:
    template = TEXT_TEMPLATES[name]
    encoder = encoder_of(processor, template, tmp_path)
    assert (encoder.user.parts, encoder.user.text) == (False, True)
    chat = [{"role": "user", "content": "<image>\n<image>\nthe cat?"}]
    if system is not None:
        chat.insert(0, {"role": "system", "content": system})
    assert encoder.encode("the cat?", 2, system) == ids_of_text(processor.tokenizer, template, chat)


@pytest.mark.parametrize("template", TEXT_TEMPLATES.values(), ids=TEXT_TEMPLATES)
def test_transformers_prints_a_list_or_fails_there(
    template: str, processor: LlavaProcessor
) -> None:
    """Why there is no prompt of its processor to compare with."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the cat?"}]}]
    try:
        prompt = processor.apply_chat_template(chat, chat_template=template)
    except TypeError:
        return
    assert "[{'type': 'image'}" in prompt


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, CHATML_TEMPLATE])
def test_a_text_becomes_parts_where_the_template_takes_parts(
    template: str, processor: LlavaProcessor, tmp_path: Path
) -> None:
    encoder = encoder_of(processor, template, tmp_path)
    assert (encoder.user.parts, encoder.user.text) == (True, False)
    parts = [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}]
    texts = [{"role": "user", "content": "the cat"}]
    assert encoder.encode_messages(texts) == encoder.encode_messages(parts)


@pytest.mark.parametrize("content", ["the cat", [{"type": "text", "text": "the cat"}]])
def test_what_a_template_takes_is_left_as_it_is(
    content: Any, processor: LlavaProcessor, tmp_path: Path
) -> None:
    encoder = encoder_of(processor, BOTH, tmp_path)
    assert (encoder.user.parts, encoder.user.text) == (True, True)
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, chat_template=BOTH, add_generation_prompt=True)
    assert encoder.encode_messages(chat) == processor.tokenizer(text).input_ids


def test_a_system_message_has_a_form_of_its_own(processor: LlavaProcessor, tmp_path: Path) -> None:
    encoder = encoder_of(processor, MIXED, tmp_path)
    assert (encoder.system.parts, encoder.system.text) == (False, True)
    expected = processor.tokenizer("be brief <image>\nthe cat").input_ids
    assert encoder.encode("the cat", 1, "be brief") == expected


def test_a_system_message_that_would_be_left_out_is_refused(
    processor: LlavaProcessor, tmp_path: Path
) -> None:
    encoder = encoder_of(processor, NO_SYSTEM, tmp_path)
    assert encoder.encode("the cat", 1)
    with pytest.raises(LvlmError, match="leaves system messages out; put the instruction in front"):
        encoder.encode("the cat", 1, "be brief")
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    encoder = encoder_of(processor, picky + NO_SYSTEM, tmp_path)
    with pytest.raises(LvlmError, match=r"leaves system messages out \(no system\); put the"):
        encoder.encode("the cat", 1, "be brief")
