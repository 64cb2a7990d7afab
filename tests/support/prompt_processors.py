"""Tokenizers and ``transformers`` processors of several makes, for the tests of prompts."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    LlamaTokenizer,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

PLAIN_TEMPLATE = """\
{% for message in messages %}
{% if message['role'] == 'system' %}
{{ message['content'][0]['text'] + ' ' }}
{%- else %}
{{ message['role'] | upper }}: {% for part in message['content'] if part['type'] == 'image' %}
{{ '<image>\n' }}
{%- endfor %}
{% for part in message['content'] if part['type'] == 'text' %}
{{ part['text'] + ' ' }}
{%- endfor %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}ASSISTANT:{% endif %}
"""

CHATML_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}"
    "{% endfor %}{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + p['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

WORDS = "the cat sat on the mat USER: what is it? ASSISTANT: yes naïve 日本語 🙂 user assistant\n"


def metaspace_tokenizer(*, with_bos: bool = True) -> Tokenizer:
    """As Llama's: sentencepiece spaces, byte fallback, a beginning-of-sequence token."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for letter in "▁abcdefghijklmnopqrstuvwxyzAEINRSTU:,.?é":
        vocab[letter] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "c"), ("▁c", "a"), ("▁ca", "t")]
    merges += [("a", "t"), ("U", "S"), ("▁", "US"), ("▁", "▁")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return tokenizer


def byte_level_tokenizer() -> Tokenizer:
    """As Qwen2's: byte-level BPE without a beginning-of-sequence token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"])
    return tokenizer


class OnevisionProcessor(LlavaOnevisionProcessor):
    """Without a video processor, which would need torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> None:
        """Accepts its absence."""


def llava(tokenizer: PreTrainedTokenizerFast, template: str = PLAIN_TEMPLATE) -> LlavaProcessor:
    return LlavaProcessor(
        CLIPImageProcessorPil(size=28, crop_size=28),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def onevision(tokenizer: PreTrainedTokenizerFast) -> OnevisionProcessor:
    return OnevisionProcessor(
        LlavaOnevisionImageProcessorPil(),
        tokenizer,
        None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHATML_TEMPLATE,
    )


def wrapped(tokenizer: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, **options
    )


PROCESSORS = {
    "llava": lambda: llava(
        wrapped(metaspace_tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    ),
    "llava_class_tokenizer": lambda: llava(
        LlamaTokenizer(
            vocab=json.loads(metaspace_tokenizer().to_str())["model"]["vocab"],
            merges=[
                tuple(m) for m in json.loads(metaspace_tokenizer().to_str())["model"]["merges"]
            ],
            add_bos_token=True,
            extra_special_tokens={"image_token": "<image>"},
        )
    ),
    "llava_bos_in_template": lambda: llava(
        wrapped(metaspace_tokenizer(), bos_token="<s>", eos_token="</s>"),
        "{{ bos_token }}" + PLAIN_TEMPLATE,
    ),
    "onevision": lambda: onevision(
        wrapped(byte_level_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ),
    "onevision_class_tokenizer": lambda: onevision(
        Qwen2Tokenizer(
            vocab=json.loads(byte_level_tokenizer().to_str())["model"]["vocab"],
            merges=[
                tuple(m) for m in json.loads(byte_level_tokenizer().to_str())["model"]["merges"]
            ],
            add_bos_token=False,
            extra_special_tokens={"image_token": "<image>"},
        )
    ),
}


def save(processor: LlavaProcessor, directory: Path) -> Path:
    """The files that a bundle has."""
    processor.tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
    return directory
