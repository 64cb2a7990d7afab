"""A Hugging Face checkpoint on disk: JSON files and lazily read safetensors.

Tensors are read one at a time when they are written into the bundle, so the export never holds
the checkpoint in memory. Nothing here runs code from a checkpoint or reads a pickle.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lvlm_export.checkpoint.files import TOKENIZER_FILES, read_json
from lvlm_export.checkpoint.processing import image_settings
from lvlm_export.checkpoint.shards import open_shard
from lvlm_export.families import Family, load_family
from lvlm_runtime.bundle.bundle import file_sha256
from lvlm_runtime.errors import LvlmError, UsageError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LM_HEAD = "lm_head.weight"
# Buffers that older checkpoints carry and current modules compute.
IGNORED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose family is known.

    Attributes:
        directory: The directory.
        family: The family of its ``model_type``.
        config: The HF configuration.
    """

    directory: Path
    family: Family
    config: PretrainedConfig

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read config.json and check that the weights are there.

        Raises:
            LvlmError: Unknown model_type, missing or damaged files, pickles only.
        """
        raw = read_json(directory / "config.json")
        model_type = raw.get("model_type")
        if not isinstance(model_type, str):
            raise LvlmError(f"{directory / 'config.json'} has no model_type")
        try:
            family = load_family(model_type)
        except UsageError as error:
            raise LvlmError(f"{directory} is not supported: {error}") from None
        if raw.get("quantization_config"):
            raise LvlmError(f"{directory} holds quantised weights; give the unquantised checkpoint")
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # validators raise types of their own
            reason = " ".join(str(error).split())
            raise LvlmError(
                f"{directory / 'config.json'} is refused by transformers: {reason}"
            ) from error
        return cls(directory, family, config)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Parameter name (current HF module tree) -> the safetensors file that holds it."""
        return {name: path for name, (path, _) in self._index.items()}

    @cached_property
    def _index(self) -> dict[str, tuple[Path, str]]:
        index: dict[str, tuple[Path, str]] = {}
        for path in self._shards():
            with open_shard(path) as shard:
                for stored in shard.keys():  # noqa: SIM118 (not a dict)
                    if not IGNORED.search(stored):
                        index[self._current_name(stored)] = (path, stored)
        return index

    def _shards(self) -> list[Path]:
        index = self.directory / "model.safetensors.index.json"
        if index.exists():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            paths = [self.directory / name for name in names]
            missing = [path.name for path in paths if not path.exists()]
            if missing:
                raise LvlmError(
                    f"{self.directory} lacks {missing[0]} which its index names; copy it again"
                )
            return paths
        paths = sorted(self.directory.glob("*.safetensors"))
        if not paths:
            pickles = [*self.directory.glob("*.bin"), *self.directory.glob("*.pt")]
            hint = (
                "; pickled weights are never read, convert them to safetensors" if pickles else ""
            )
            raise LvlmError(f"{self.directory} has no .safetensors file{hint}")
        return paths

    def _current_name(self, stored: str) -> str:
        for pattern, replacement in self.family.renames:
            stored = re.sub(pattern, replacement, stored)
        return stored

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor; the only place that brings weights into memory.

        A tied output projection is the token table, whatever else is stored under its name.
        """
        if name == LM_HEAD and self.tied_embeddings:
            name = self.family.embed_tokens
        path, stored = self._index[name]
        with open_shard(path) as shard:
            tensor: torch.Tensor = shard.get_tensor(stored)
            return tensor

    @property
    def tied_embeddings(self) -> bool:
        """The output projection is the token table."""
        tied = self.config.tie_word_embeddings or getattr(
            self.config.text_config, "tie_word_embeddings", False
        )
        return bool(tied) or LM_HEAD not in self.files

    @property
    def preprocessor(self) -> dict[str, Any]:
        """The image processor's settings, of the file that counts for transformers."""
        return image_settings(self.directory, self.config)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, from generation_config.json or else the text configuration."""
        path = self.directory / "generation_config.json"
        ids = read_json(path).get("eos_token_id") if path.exists() else None
        for config in (self.config, self.config.text_config):
            ids = getattr(config, "eos_token_id", None) if ids is None else ids
        if ids is None:
            raise LvlmError(
                f"{self.directory} names no eos_token_id; add it to generation_config.json"
            )
        return tuple(ids) if isinstance(ids, list) else (int(ids),)

    def content_key(self) -> str:
        """SHA-256 over everything that a bundle is built from."""
        digest = hashlib.sha256()
        names = {
            "config.json",
            "generation_config.json",
            "preprocessor_config.json",
            *TOKENIZER_FILES,
        }
        templates = self.directory.glob("additional_chat_templates/*.jinja")
        paths = [*(self.directory / name for name in sorted(names)), *sorted(templates)]
        for path in [*(path for path in paths if path.exists()), *self._shards()]:
            digest.update(path.name.encode() + bytes.fromhex(file_sha256(path)))
        return digest.hexdigest()

    def skeleton(self, dtype: torch.dtype, attention: str) -> nn.Module:
        """The HF model with unset parameters of ``dtype`` and real buffers, for tracing.

        Parameters are allocated but never written, so they cost address space and no memory.

        Args:
            dtype: Of the parameters.
            attention: Name of an attention function that is registered with transformers.

        Raises:
            LvlmError: The stored tensors do not fit the configuration.
        """
        from transformers.initialization import no_init_weights

        with no_init_weights():
            model = self.family.model_class(self.config)._from_config(
                self.config, dtype=dtype, attn_implementation=attention
            )
        self._check_names({name for name, _ in model.named_parameters(remove_duplicate=False)})
        frozen: nn.Module = model.eval().requires_grad_(False)
        return frozen

    def _check_names(self, wanted: set[str]) -> None:
        if self.tied_embeddings:
            wanted = wanted - {LM_HEAD}
        missing = sorted(wanted - set(self.files))
        unknown = sorted(set(self.files) - wanted - {LM_HEAD})
        # A tower without its pooling head, or with one that is never run, is common.
        missing = [name for name in missing if not _unused_by_features(name)]
        unknown = [name for name in unknown if not _unused_by_features(name)]
        for problem, names in (("lacks", missing), ("has unknown tensor", unknown)):
            if names:
                raise LvlmError(
                    f"{self.directory} {problem} {names[0]} ({len(names)} in all); its config.json"
                    " and weights do not fit each other"
                )


def _unused_by_features(name: str) -> bool:
    return bool(re.match(r"model\.vision_tower\.(head|post_layernorm)\.", name))
