"""The shipped checkpoint: layout, prompt, and that it answers; and how training packs questions."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lvlm_export.demo import CHECKPOINT  # noqa: E402
from lvlm_export.demo.evaluate import score_answers  # noqa: E402
from lvlm_export.demo.questions import evaluation_set  # noqa: E402
from lvlm_export.demo.train import mosaics  # noqa: E402
from lvlm_export.demo.train.evaluate_checkpoint import CheckpointAnswerer  # noqa: E402
from lvlm_export.demo.train.model import IMAGE_ID, IMAGE_TOKENS, build_model  # noqa: E402
from lvlm_export.demo.train.mosaics.batches import Batch, Packer  # noqa: E402
from lvlm_export.demo.train.mosaics.mosaic import make_mosaic  # noqa: E402
from lvlm_export.demo.train.objectives import vision_features  # noqa: E402


@pytest.fixture(scope="module")
def processor() -> transformers.LlavaProcessor:
    return transformers.AutoProcessor.from_pretrained(CHECKPOINT)


def test_prompt_has_the_llava_layout(processor: transformers.LlavaProcessor) -> None:
    sample = evaluation_set(1)[0]
    part = {"type": "text", "text": sample.question}
    messages = [{"role": "user", "content": [{"type": "image", "image": sample.image}, part]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == f"USER: <image>\n{sample.question} ASSISTANT:"
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(IMAGE_ID) == IMAGE_TOKENS == 196
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 112, 112)


@pytest.mark.parametrize("text", ["Wo ist der Kreis?", "какого цвета?", "圆在哪里", "\x00🙂"])
def test_tokenizer_takes_any_text(processor: transformers.LlavaProcessor, text: str) -> None:
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


def test_training_rows_equal_the_chat_template() -> None:
    """A packed question gives the logits that it gives alone, after the template's own tokens."""
    processor = transformers.AutoProcessor.from_pretrained(mosaics.CHECKPOINT)
    model = build_model(seed=1).eval()
    batch = Packer(processor, IMAGE_TOKENS).batch(11, 1, flip=False)
    image = make_mosaic(11, "train").image
    is_head = batch.question_index[0] < 0
    head_length = int(batch.position_ids[0].masked_fill(~is_head, 0).max()) + 1
    with torch.no_grad():
        packed = _packed_logits(model, batch)
        for number in range(int(batch.question_index.max()) + 1):
            row = batch.question_index[0] == number
            text = processor.tokenizer.decode(batch.input_ids[0, row])
            alone = processor(images=image, text=f"USER: <image>{text}", return_tensors="pt")
            assert torch.equal(alone["input_ids"][0, head_length:], batch.input_ids[0, row])
            assert torch.equal(alone["pixel_values"], batch.pixel_values)
            logits = model(**alone).logits[0, head_length:]
            torch.testing.assert_close(packed[0, row], logits, rtol=1e-4, atol=1e-5)


def _packed_logits(model: transformers.LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    visual = model.model.multi_modal_projector(vision_features(model, batch.pixel_values))
    embeddings = model.get_input_embeddings()(batch.input_ids)
    embeddings = embeddings.masked_scatter((batch.input_ids == IMAGE_ID).unsqueeze(-1), visual)
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden)


def test_checkpoint_answers_questions_about_unseen_scenes() -> None:
    samples = evaluation_set(210, seed=2)
    answers = CheckpointAnswerer(CHECKPOINT).answers(
        [(sample.image, sample.question) for sample in samples]
    )
    assert (
        score_answers(samples, answers)["all"].share > 0.866
    )  # 92.2 % of 2,000, less three errors of 210
