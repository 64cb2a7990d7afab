"""The trait table: what stands in checkpoints and pictures that people have, and what comes out.

A row is a function that writes one trait into a tiny checkpoint, under a decorator that says what
must come out::

    @trait(refused(r"merge it first"))
    def adapter_beside_weights(directory: Path) -> None:
        '''An unmerged LoRA adapter beside full weights.'''
        write_json(directory / "adapter_config.json", {"peft_type": "LORA"})

The directory holds a copy of ``BASES[base]`` when the function is called. What comes out is checked
by any function that takes the directory: ``refused`` (the command line says one line, before any
graph), one that compares what we read with what transformers reads (``outcomes.py``), or one of the
row's own file. A new file of rows is one line in ``FILES``; ``tests/test_traits.py`` runs them all.
Rows stay at the level of the reader where that decides; one that has to build is marked ``slow``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tiny

FILES = (
    "weights",
    "damaged",
    "quantised",
    "configs",
    "image_settings",
    "prompts",
    "processors",
    "answers",
    "pictures",
)
BASES: dict[str, Callable[[Path], Path]] = {
    "llava": lambda directory: tiny.llava(directory, seed=3),
    "mistral": lambda directory: tiny.llava(directory, text="mistral"),
    "siglip": lambda directory: tiny.llava(directory, tower="siglip", text="qwen2"),
    "onevision": tiny.onevision,
    "shards": lambda directory: tiny.llava(directory, seed=3, max_shard_size="100KB"),
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Trait:
    """A row of the table.

    Attributes:
        write: Writes the trait into the directory; its docstring says what it is.
        check: Fails unless what must come out does.
        base: The checkpoint that it is written into, a key of ``BASES``.
        slow: It builds a bundle.
    """

    write: Callable[[Path], None]
    check: Callable[[Path], None]
    base: str
    slow: bool


def trait(
    check: Callable[[Path], None], base: str = "llava", slow: bool = False
) -> Callable[[Callable[[Path], None]], Trait]:
    """Make a row of a function that writes a trait."""
    return lambda write: Trait(write, check, base, slow)


def rows() -> dict[str, Trait]:
    """All rows by name, in the order of the files."""
    found: dict[str, Trait] = {}
    for file in FILES:
        for name, value in vars(import_module(f"traits.{file}")).items():
            if isinstance(value, Trait):
                assert name not in found, f"two rows are called {name}"
                found[name] = value
    return found


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; ``text_config__rope_theta=1.0`` is one level down."""
    content = read_json(path)
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = content
        for part in parts:
            place = place[part]
        place[last] = value
    write_json(path, content)


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of ``model.safetensors`` by their stored names."""
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_weights(directory / WEIGHTS, weights)


def drop_weights(directory: Path, *names: str) -> None:
    """Take tensors out of ``model.safetensors`` by their stored names."""
    edit_weights(directory, lambda weights: [weights.pop(name) for name in names])


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file as transformers marks its own."""
    save_file(weights, path, metadata={"format": "pt"})
