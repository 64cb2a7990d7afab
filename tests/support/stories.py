"""stories260K as a Hugging Face Llama: a real pretrained text model with a published answer.

The llama2.c file holds float32 arrays one after another and interleaves RoPE pairs; Hugging Face
rotates halves, so query and key rows are permuted. Source: karpathy/llama2.c, ``run.c``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig

FOLDER = Path(__file__).resolve().parents[1] / "data" / "stories260K"


def config() -> LlamaConfig:
    """The model's configuration, from the file's header."""
    dim, hidden, layers, heads, kv_heads, vocab, length = _header()
    return LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


def state_dict(prefix: str) -> dict[str, torch.Tensor]:
    """All tensors under Hugging Face names that start with ``prefix``."""
    dim, hidden, layers, heads, kv_heads, vocab, _ = _header()
    kv = dim // heads * kv_heads
    shapes = {
        "embed_tokens.weight": (vocab, dim),
        "input_layernorm.weight": (layers, dim),
        "self_attn.q_proj.weight": (layers, dim, dim),
        "self_attn.k_proj.weight": (layers, kv, dim),
        "self_attn.v_proj.weight": (layers, kv, dim),
        "self_attn.o_proj.weight": (layers, dim, dim),
        "post_attention_layernorm.weight": (layers, dim),
        "mlp.gate_proj.weight": (layers, hidden, dim),
        "mlp.down_proj.weight": (layers, dim, hidden),
        "mlp.up_proj.weight": (layers, hidden, dim),
        "norm.weight": (dim,),
    }
    flat = np.fromfile(FOLDER / "stories260K.bin", np.float32, offset=28)
    tensors, start = {}, 0
    for name, shape in shapes.items():
        block = flat[start : start + np.prod(shape)].reshape(shape)
        start += block.size
        if name in ("embed_tokens.weight", "norm.weight"):
            tensors[prefix + name] = torch.from_numpy(block.copy())
            continue
        for layer in range(layers):
            tensors[f"{prefix}layers.{layer}.{name}"] = _halves(block[layer], name, heads, kv_heads)
    return tensors


def _halves(block: np.ndarray, name: str, heads: int, kv_heads: int) -> torch.Tensor:
    """Interleaved RoPE pairs to halves for query and key; other tensors as they are."""
    if ".q_proj" in name or ".k_proj" in name:
        count = heads if ".q_proj" in name else kv_heads
        rows, columns = block.shape
        pairs = block.reshape(count, rows // count // 2, 2, columns)
        block = pairs.transpose(0, 2, 1, 3).reshape(rows, columns)
    return torch.from_numpy(np.ascontiguousarray(block))


def _header() -> tuple[int, ...]:
    with (FOLDER / "stories260K.bin").open("rb") as stream:
        return struct.unpack("7i", stream.read(28))
