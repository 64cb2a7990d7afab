"""Do a checkpoint's tensors fit its configuration? Names and shapes, from headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

from lvlm_export.checkpoint.shards import StoredTensor
from lvlm_runtime.errors import LvlmError

# A tower without its pooling head, or with one that is never run, is common.
UNUSED = re.compile(r"model\.vision_tower\.(head|post_layernorm)\.")


def check_tensors(
    directory: Path,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    optional: Set[str],
) -> None:
    """Compare what is stored with the parameters of the model, both by their current names.

    Args:
        directory: The checkpoint, for the message.
        stored: What the files hold.
        wanted: Shapes of the model's parameters.
        optional: Parameters that may be absent, because another one stands for them.

    Raises:
        LvlmError: A parameter is missing, a tensor is unknown, or a shape is another one.
    """
    missing = _used(wanted.keys() - stored.keys() - optional)
    unknown = _used(stored.keys() - wanted.keys())
    for problem, names in (("lacks", missing), ("has unknown tensor", unknown)):
        if names:
            raise LvlmError(
                f"{directory} {problem} {names[0]} ({len(names)} in all); its config.json"
                " and weights do not fit each other"
            )
    for name in _used(wanted.keys() & stored.keys()):
        if stored[name].shape != wanted[name]:
            raise LvlmError(
                f"{directory} holds {name} as {list(stored[name].shape)} and its config.json makes"
                f" it {list(wanted[name])}; correct the one that is wrong"
            )


def _used(names: Set[str]) -> list[str]:
    return sorted(name for name in names if not UNUSED.match(name))
