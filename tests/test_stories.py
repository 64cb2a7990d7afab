"""A real pretrained Llama in a LLaVA checkpoint gives its published text through the chain."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig

import stories
import tiny
from helpers import build_tiny
from lvlm_runtime.session import Session

# Of its 512 tokens none is for a picture; no prompt has the one that ends a text.
END = 2
TEMPLATE = """{% for part in messages[0]['content'] %}\
{{ '</s>' if part['type'] == 'image' else part['text'] }}{% endfor %}"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("stories")
    config = LlavaConfig(
        vision_config=tiny.vision_config("siglip").to_dict(),
        text_config=stories.config().to_dict(),
        image_token_index=END,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 48, "width": 48},
    }
    path = tiny.save(folder / "model", config, processor, seed=0)
    weights = load_file(path / "model.safetensors")
    text = stories.state_dict("language_model.model.")
    kept = {name: value for name, value in weights.items() if "language_model" not in name}
    save_file({**kept, **text}, path / "model.safetensors", metadata={"format": "pt"})
    (path / "tokenizer.json").write_bytes((stories.FOLDER / "tokenizer.json").read_bytes())
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (path / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "image_token": "</s>"}))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    result = build_tiny(path, folder / "bundle", 0.5)
    return Session.open(result.directory, device="cpu")


@pytest.fixture(scope="module")
def golden() -> dict[str, list[int]]:
    return json.loads((stories.FOLDER / "golden_greedy.json").read_text())


def test_all_golden_ids(session: Session, golden: dict[str, list[int]]) -> None:
    prompt, ids = golden["prompt_ids"], golden["greedy_ids"]
    expected = ids[len(prompt) :]
    assert len(expected) == 256
    answer = session.generate_ids(prompt, max_new_tokens=256)
    assert list(answer.token_ids) == expected


def test_the_text_is_the_published_one(session: Session, golden: dict[str, list[int]]) -> None:
    pieces: list[str] = []
    answer = session.generate_ids(golden["prompt_ids"], max_new_tokens=256, on_text=pieces.append)
    published = (stories.FOLDER / "golden_text_greedy.txt").read_text().strip()
    assert "".join(pieces).strip() == answer.text
    assert answer.text.startswith(published)


def test_state_dict_is_the_whole_file() -> None:
    elements = sum(tensor.numel() for tensor in stories.state_dict("").values())
    tail = 2 * 512 * 8 // 2  # RoPE tables that llama2.c stores and nobody reads
    assert (stories.FOLDER / "stories260K.bin").stat().st_size == 28 + 4 * (elements + tail)
    assert torch.isfinite(torch.cat([t.flatten() for t in stories.state_dict("").values()])).all()
