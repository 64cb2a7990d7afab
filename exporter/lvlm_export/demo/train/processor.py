"""The demo's tokenizer, chat template and image preprocessing, as one Hugging Face processor."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lvlm_export.demo.scenes import IMAGE_SIZE

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
"""Special tokens; their ids are 0, 1, 2 and 3, in this order."""

SPECIAL_TOKENS = (BOS, EOS, PAD, IMAGE)
VOCAB_SIZE = 384
PATCH_SIZE = 8

PROMPT_HEAD = "USER: <image>"
"""The text before a question's own tokens in every prompt (BOS comes before it)."""

# The template of LLaVA-1.5 as Hugging Face writes it: images first, then texts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ':' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ ' <image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ ('\\n' if message['role'] == 'user' else ' ') + part['text'] }}"
    "{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def prompt_tail(question: str) -> str:
    """The text after the image tokens when the model is to answer a question."""
    return f"\n{question} ASSISTANT:"


def answer_text(answer: str) -> str:
    """The text that the model must give after ``prompt_tail``; EOS follows."""
    return f" {answer}{EOS}"


def build_processor(corpus: Iterable[str], vocab_size: int = VOCAB_SIZE) -> LlavaProcessor:
    """Train the tokenizer on the demo's own questions and wrap it with the preprocessing.

    Args:
        corpus: Prompts with answers.
        vocab_size: Token ids, at most.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train_tokenizer(corpus, vocab_size),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    # The pictures already have this size; resizing is for pictures of users.
    image_processor = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )


def _train_tokenizer(corpus: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: all 256 bytes have an id, so any text can be typed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return tokenizer
