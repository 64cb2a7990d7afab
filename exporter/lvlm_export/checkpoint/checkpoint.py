"""A Hugging Face checkpoint on disk: JSON files and lazily read safetensors.

Tensors are read one at a time when they are written into the bundle, so the export never holds
the checkpoint in memory. Nothing here runs code from a checkpoint or reads a pickle.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lvlm_export.checkpoint.files import (
    READ_FILES,
    AbsentFileError,
    one_reason,
    read_json,
    refuse_pointer,
)
from lvlm_export.checkpoint.fit import check_tensors
from lvlm_export.checkpoint.generation import generation_config
from lvlm_export.checkpoint.numbers import check_numbers
from lvlm_export.checkpoint.processing import image_settings, prompt_files
from lvlm_export.checkpoint.refused import (
    refuse_adapter,
    refuse_authors_layout,
    refuse_quantised,
    refuse_tensors,
)
from lvlm_export.checkpoint.shards import (
    StoredTensor,
    WeightFiles,
    find_weights,
    open_shard,
    same_tensor,
    stored_tensors,
)
from lvlm_export.families import Family, ModelShape, load_family, with_layout
from lvlm_profiles.readers import UnreadableError, read_bytes
from lvlm_runtime.bundle.bundle import file_sha256
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.rules import check_token

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
        """Read config.json; the weights are looked at when they are asked for.

        Raises:
            LvlmError: Unknown model_type, or config.json is missing or damaged.
        """
        refuse_adapter(directory)
        raw = read_json(directory / "config.json")
        refuse_authors_layout(directory, raw)
        model_type = raw.get("model_type")
        if not isinstance(model_type, str):
            raise LvlmError(f"{directory / 'config.json'} has no model_type")
        try:
            family = load_family(model_type)
        except UsageError as error:
            raise LvlmError(f"{directory} is not supported: {error}") from None
        refuse_quantised(directory, raw)
        check_numbers(directory / "config.json", raw)
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # validators raise types of their own
            raise LvlmError(
                f"{directory / 'config.json'} is refused by transformers: {one_reason(error)}"
            ) from error
        return cls(directory, family, config)

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """What the weight files hold, by parameter name of the current HF module tree.

        Raises:
            LvlmError: Files are missing or damaged, hold something else than a model's weights, or
                hold one parameter twice.
        """
        tensors = [
            tensor
            for name, tensor in stored_tensors(self._weight_files()).items()
            if not IGNORED.search(name)
        ]
        refuse_tensors(self.directory, tensors)
        named: dict[str, StoredTensor] = {}
        for tensor in tensors:
            name = self._current_name(tensor.name)
            if name in named:
                raise LvlmError(
                    f"{self.directory} holds {name} twice, as {named[name].name} and as"
                    f" {tensor.name}; save the model again"
                )
            named[name] = tensor
        return named

    @property
    def has_weights(self) -> bool:
        """All weight files are there, none as a git-lfs pointer; a plan can do without them.

        Raises:
            LvlmError: It cannot be told which files they are.
        """
        try:
            for path in self._weight_files().paths:
                refuse_pointer(path)
        except AbsentFileError:
            return False
        return True

    def _weight_files(self) -> WeightFiles:
        return find_weights(self.directory, getattr(self.config, "transformers_weights", None))

    def _current_name(self, stored: str) -> str:
        for pattern, replacement in self.family.renames:
            stored = re.sub(pattern, replacement, stored)
        return stored

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor; the only place that brings weights into memory.

        What is stored counts; of two tied parameters with one stored, that one stands for both.
        """
        if name not in self.stored and self._tie_flag:
            pair = (LM_HEAD, self.family.embed_tokens)
            name = dict(zip(pair, reversed(pair), strict=True)).get(name, name)
        with open_shard(self.stored[name].path) as shard:
            tensor: torch.Tensor = shard.get_tensor(self.stored[name].name)
            return tensor

    @property
    def _tie_flag(self) -> bool:
        """The configuration ties the output projection; the text part's flag counts as well."""
        text = getattr(self.config.text_config, "tie_word_embeddings", False)
        return bool(self.config.tie_word_embeddings or text)

    @cached_property
    def tied_embeddings(self) -> bool:
        """The output projection is the token table.

        As in transformers 5.23 (``PreTrainedModel.tie_weights``) the flag ties where one of the two
        is stored or both are the same; a stored projection of its own stays one.
        """
        pair = (LM_HEAD, self.family.embed_tokens)
        if not self._tie_flag or any(name not in self.stored for name in pair):
            return self._tie_flag
        head, table = (self.stored[name] for name in pair)
        return same_tensor(head, table)

    @property
    def preprocessor(self) -> dict[str, Any]:
        """The image processor's settings, of the file that counts for transformers."""
        return image_settings(self.directory, self.config)

    @cached_property
    def prompt_files(self) -> dict[str, bytes]:
        """Tokenizer and chat template as the runtime reads them; making them takes a second or more.

        Raises:
            LvlmError: As ``processing.prompt_files``.
        """
        return prompt_files(self.directory, self.family.template, self.family.placeholder)

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The runtime's encoder of these files.

        Raises:
            LvlmError: The runtime could not make a prompt with them.
        """
        return PromptEncoder.read(self.prompt_files, self.directory)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, from generation_config.json or else the text configuration.

        Raises:
            LvlmError: There are none, or they are no ids of this model's tokens.
        """
        ids = generation_config(self.directory).eos_token_id
        for config in (self.config, self.config.text_config):
            ids = getattr(config, "eos_token_id", None) if ids is None else ids
        if ids is None:
            raise LvlmError(
                f"{self.directory} names no eos_token_id; add it to generation_config.json"
            )
        several = ids if isinstance(ids, list) and ids else [ids]
        if not all(type(number) is int and number >= 0 for number in several):
            raise LvlmError(
                f"eos_token_id of {self.directory} is {ids!r}, a token's id or a list of them is"
                " needed; correct generation_config.json"
            )
        for number in several:
            check_token(
                "eos_token_id",
                number,
                self.config.text_config.vocab_size,
                self.directory,
                "correct generation_config.json",
            )
        return tuple(several)

    def shape(
        self, image_size: tuple[int, int] | None, more_sizes: Sequence[tuple[int, int]] = ()
    ) -> ModelShape:
        """What the JSON files say about the model.

        Args:
            image_size: As ``Family.shape`` takes it.
            more_sizes: Of the pictures that further tile layouts are made for, (height, width).

        Raises:
            UsageError: An image size that does not fit the family.
            LvlmError: A checkpoint that is not supported.
        """
        shape = self.family.shape(self.config, self.preprocessor, image_size)
        for size in more_sizes:
            shape = with_layout(shape, self.family.shape(self.config, self.preprocessor, size))
        if not self.has_weights:
            return shape
        text = replace(shape.dims.text, tied=self.tied_embeddings)
        return replace(shape, dims=replace(shape.dims, text=text))

    def content_key(self) -> str:
        """SHA-256 over everything that a bundle is built from."""
        digest = hashlib.sha256()
        templates = self.directory.glob("additional_chat_templates/*.jinja")
        paths = [*(self.directory / name for name in sorted(READ_FILES)), *sorted(templates)]
        for path in (path for path in paths if path.exists()):
            try:
                content = read_bytes(path)
            except UnreadableError as error:
                raise LvlmError(f"{path} cannot be read: {error}; copy it again") from None
            digest.update(path.name.encode() + hashlib.sha256(content).digest())
        for path in self._weight_files().paths:
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
        model = self._empty_model("cpu", dtype=dtype, attn_implementation=attention)
        self._check_tensors(model)
        frozen: nn.Module = model.eval().requires_grad_(False)
        return frozen

    def check_weights(self) -> None:
        """Compare the headers of the weight files with the configuration, in a moment.

        Raises:
            LvlmError: The stored tensors do not fit the configuration.
        """
        self._check_tensors(self._empty_model("meta", dtype=torch.float32))

    def _empty_model(self, device: str, **options: Any) -> nn.Module:
        """The HF model without initialised weights, tied as its stored weights are."""
        from transformers.initialization import no_init_weights

        config = copy.deepcopy(self.config)
        for part in (config, config.text_config):
            part.tie_word_embeddings = self.tied_embeddings
        try:
            with torch.device(device), no_init_weights():
                model: nn.Module = self.family.model_class(config)._from_config(config, **options)
        except Exception as error:  # whatever a part of the model makes of a value it cannot take
            raise LvlmError(
                f"transformers makes no model of {self.directory / 'config.json'}:"
                f" {one_reason(error)}; correct it"
            ) from error
        return model

    def _check_tensors(self, model: nn.Module) -> None:
        parameters = model.named_parameters(remove_duplicate=False)
        wanted = {name: tuple(parameter.shape) for name, parameter in parameters}
        tied = (LM_HEAD, self.family.embed_tokens) if self._tie_flag else ()
        # One of the two has to be there.
        optional = {name for name in tied if name not in self.stored}
        check_tensors(self.directory, self.stored, wanted, optional if len(optional) < 2 else set())
