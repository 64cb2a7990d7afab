"""Which safetensors files hold a model's weights, and what stands in their headers.

Which files count is the rule of transformers, so that both read the same weights whatever else
lies in the directory.
Source: transformers 5.23, ``modeling_utils.py``: ``_get_resolved_checkpoint_files`` and
``_load_pretrained_model``; ``utils/hub.py``: ``get_checkpoint_shard_files``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from lvlm_export.checkpoint.files import AbsentFileError, read_json, refuse_pointer
from lvlm_profiles.readers import UnreadableError, check_regular
from lvlm_runtime.errors import LvlmError

WEIGHTS_ENDING, INDEX_ENDING = ".safetensors", ".safetensors.index.json"
WHOLE, INDEX = f"model{WEIGHTS_ENDING}", f"model{INDEX_ENDING}"
# Of a training that was saved by its ranks; transformers then reads every .safetensors file there.
RANKS = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
# Of two large tensors, compared at a time.
ROWS = 1024
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of a safetensors file describes it.

    Attributes:
        path: The file.
        name: What the file calls it.
        shape: Its dimensions.
        dtype: Its element type as safetensors writes it, F32 or BF16.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a model's weights.

    Attributes:
        paths: In the order they are read.
        placed: What the index says, stored name to file name; empty for a file without one.
    """

    paths: tuple[Path, ...]
    placed: Mapping[str, str]


def find_weights(directory: Path, named: object = None) -> WeightFiles:
    """The files that hold a model's weights.

    ``model.safetensors`` counts alone; where there is none, what its index names. Files of other
    names (averaged weights, the authors' own layout, variants) never mix in.

    Args:
        directory: The checkpoint.
        named: ``transformers_weights`` of config.json, a file that counts instead.

    Raises:
        AbsentFileError: There is no such file, the index names what is not there, or is a pointer.
        LvlmError: The index is damaged, or there are the shards of a training run.
    """
    ranks = sorted(path.name for path in directory.glob("shard-*") if RANKS.match(path.name))
    if ranks:
        raise LvlmError(
            f"{directory} holds the shards of a training run ({ranks[0]}); save the model with"
            " save_pretrained and give that directory"
        )
    if named is not None:
        return _named_weights(directory, named)
    if (directory / WHOLE).is_file():
        return WeightFiles((directory / WHOLE,), {})
    if (directory / INDEX).is_file():
        return _indexed_shards(directory, INDEX)
    raise AbsentFileError(f"{directory} has no {WHOLE} and no {INDEX}{_hint(directory)}")


def _named_weights(directory: Path, named: object) -> WeightFiles:
    if not isinstance(named, str) or not named.endswith((WEIGHTS_ENDING, INDEX_ENDING)):
        raise LvlmError(
            f"transformers_weights in {directory / 'config.json'} is {named!r}, a .safetensors file"
            " or its .safetensors.index.json is needed"
        )
    path = _inside(directory, named, directory / "config.json")
    if not path.is_file():
        raise AbsentFileError(
            f"{directory} lacks {named} which transformers_weights in its config.json names; copy"
            " it again"
        )
    if named.endswith(INDEX_ENDING):
        return _indexed_shards(directory, named)
    return WeightFiles((path,), {})


def _indexed_shards(directory: Path, index: str) -> WeightFiles:
    """The files that an index names, sorted by name as transformers reads them."""
    content = read_json(directory / index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(content.get("metadata"), dict):
        raise LvlmError(f"{directory / index} has no weight_map or no metadata; copy it again")
    names = list(places.values())
    for name in names:
        if not isinstance(name, str) or not name.endswith(WEIGHTS_ENDING):
            raise LvlmError(
                f"{directory / index} names {name!r}, which is no .safetensors file; convert the"
                " weights to safetensors"
            )
    paths = [_inside(directory, name, directory / index) for name in sorted(set(names))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise AbsentFileError(
            f"{directory} lacks {missing[0]} which its index names; copy it again"
        )
    return WeightFiles(tuple(paths), places)


def _inside(directory: Path, name: str, source: Path) -> Path:
    """A file in the checkpoint, of a name that some file gives; its link may lead elsewhere."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise LvlmError(f"{source} names {name!r}, which is outside the checkpoint; correct it")
    return directory / name


def _hint(directory: Path) -> str:
    """What lies there instead of weights, and what to do about it."""
    others = sorted(path.name for path in directory.glob(f"*{WEIGHTS_ENDING}"))
    if others:
        return (
            f"; {others[0]} is not read, as transformers does not: rename the model's weights to"
            f" {WHOLE}, or copy the index of its shards"
        )
    if any(directory.glob("*.gguf")):
        return "; GGUF files are not read, give the checkpoint that they were made from"
    if any(path for pattern in PICKLES for path in directory.glob(pattern)):
        return "; pickled weights are never read, convert them to safetensors"
    return "; copy the weights there"


def stored_tensors(files: WeightFiles) -> dict[str, StoredTensor]:
    """What the files hold, by stored name; of two files with one name the later counts.

    A tensor may lie in another shard than the index says, as transformers reads every shard whole.

    Raises:
        LvlmError: A file cannot be read, or what the index names is in none.
    """
    found: dict[str, StoredTensor] = {}
    for path in files.paths:
        with open_shard(path) as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                part = shard.get_slice(name)
                found[name] = StoredTensor(path, name, tuple(part.get_shape()), part.get_dtype())
    lost = sorted(files.placed.keys() - found.keys())
    if lost:
        path = files.paths[0].with_name(files.placed[lost[0]])
        raise LvlmError(
            f"{path} lacks {lost[0]} which the index places there ({len(lost)} in all); copy it"
            " again"
        )
    return found


def same_tensor(first: StoredTensor, second: StoredTensor) -> bool:
    """The two hold the same numbers, whatever their element types; read a piece at a time."""
    if first.shape != second.shape:
        return False
    with open_shard(first.path) as one, open_shard(second.path) as other:
        left, right = one.get_slice(first.name), other.get_slice(second.name)
        return all(
            bool((left[start : start + ROWS].double() == right[start : start + ROWS]).all())
            for start in range(0, first.shape[0] if first.shape else 0, ROWS)
        )


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A safetensors file whose tensors are read when they are asked for.

    Raises:
        LvlmError: It cannot be read.
    """
    refuse_pointer(path)
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError, UnreadableError) as error:
        raise LvlmError(f"{path} is truncated or damaged ({error}); copy it again") from error
