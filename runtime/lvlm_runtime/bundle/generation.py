"""What a checkpoint's generation_config.json asks of answers, beside the manifest.

A file of its own that the manifest lists, so that bundles of earlier builds, which have none, still
open: they have no rules.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_profiles import records
from lvlm_profiles.files import write_whole
from lvlm_runtime.bundle.bundle import REBUILD, Bundle
from lvlm_runtime.bundle.manifest import to_json
from lvlm_runtime.prompt.rules import NO_RULES, GenerationRules, checked_rules

FILE = "generation.json"
# transformers' ``generate`` would never stop where the file does not say where answers end.
END = "eos_token_id"
# What a user chooses for every request, and a checkpoint only proposes.
CHOSEN = ("do_sample", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class GenerationRecord:
    """Rules that are applied, and what is not.

    Attributes:
        rules: Applied to every answer.
        left_out: Settings of the file that are not applied, by name; ``END`` where it names none.
    """

    rules: GenerationRules
    left_out: dict[str, Any]

    def sentences(self, rules: bool = True, sampled: bool = False) -> list[str]:
        """What is to be said once of the file; nothing where it asks for nothing.

        Args:
            rules: They are applied; else they are among what is not.
            sampled: The user has chosen how tokens are drawn.
        """
        in_force = {name: getattr(self.rules, name) for name in self.rules.in_force}
        left_out = {**({} if rules else in_force), **self.left_out}
        if sampled:
            left_out = {name: left_out[name] for name in left_out if name not in CHOSEN}
        said = []
        if rules and in_force:
            said.append(f"applied of generation_config.json: {_list(in_force)}")
        if END in left_out:
            del left_out[END]
            said.append("generation_config.json names no eos_token_id: config.json's ends answers")
        if left_out:
            said.append(
                f"not applied of generation_config.json: {_list(left_out)}{_advice(left_out)}"
            )
        return said


def write_generation(directory: Path, record: GenerationRecord) -> None:
    """Keep it beside a bundle's manifest, which then names the file."""
    write_whole(directory / FILE, json.dumps(to_json(record), indent=1))


def read_generation(bundle: Bundle) -> GenerationRecord:
    """That of a bundle; no rules where it has none.

    Raises:
        LvlmError: The file is damaged.
    """
    if FILE not in bundle.manifest.files:
        return GenerationRecord(NO_RULES, {})
    path = bundle.path(FILE)
    content = records.parse(bundle.read(FILE), path, REBUILD)
    return generation_record(content, bundle.manifest.text.vocab_size, path)


def generation_record(content: Any, vocab_size: int, where: Path) -> GenerationRecord:
    """That of the file's content.

    Args:
        content: What JSON gave.
        vocab_size: Tokens of the language model.
        where: The file, for messages.

    Raises:
        LvlmError: It is not what a build writes, or a rule of it cannot be applied.
    """
    record = records.read(GenerationRecord, content, where, REBUILD)
    return replace(record, rules=checked_rules(record.rules, vocab_size, where, REBUILD))


def _list(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in settings.items())


def _shown(value: Any) -> str:
    """A value in few words; lists of tokens are long."""
    if isinstance(value, list | tuple) and len(value) > 3:
        return f"of {len(value)}"
    return json.dumps(value)


def _advice(left_out: dict[str, Any]) -> str:
    """How to get what is left out, where there is an option for it."""
    options = [
        f"--{name.replace('_', '-')} {left_out[name]}" for name in CHOSEN[1:] if name in left_out
    ]
    if "do_sample" not in left_out:
        return ""
    return f"; answers are greedy, for others give {' '.join(options) or '--temperature 1'}"
