"""Where a checkpoint lies and which of its files are read: JSON, templates and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lvlm_profiles.readers import UnreadableError, load_json, what_is
from lvlm_runtime.errors import LvlmError

# What a hub snapshot needs; weights in any other format (pickles above all) stay there.
HUB_FILES = ("*.json", "*.jinja", "*.safetensors")
# What is read beside the weights and their index.
READ_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
)
# What git-lfs leaves in place of a file that was not fetched.
POINTER = b"version https://git-lfs.github.com/spec/"


def locate(model: str) -> Path:
    """A local directory, or the snapshot of a hub id (downloaded when needed).

    Raises:
        LvlmError: Neither a directory nor a hub id that can be fetched.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise LvlmError(
            f"no checkpoint directory at {model!r}, which is {what_is(path)}; give a directory or a hub"
            " id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub client has many error types; each means the same here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LvlmError(
            f"{model!r} is no local directory and the hub did not give it: {reason}"
        ) from error


def refuse_pointer(path: Path) -> None:
    """LvlmError where a file is git-lfs's stand-in for the one that is wanted."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as stream:
            start = stream.read(len(POINTER))
    except OSError:
        return  # whoever reads the file says what is wrong with it
    if start == POINTER:
        raise LvlmError(
            f"{path} is a git-lfs pointer and not the file itself; type git lfs pull in"
            f" {path.parent}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object; LvlmError names the file when it is missing or damaged."""
    refuse_pointer(path)
    try:
        content = load_json(path, constants=True)
    except FileNotFoundError:
        raise LvlmError(
            f"{path} is missing; {path.parent} is {what_is(path.parent)}, give a Hugging Face checkpoint"
            " directory"
        ) from None
    except (OSError, UnreadableError) as error:
        raise LvlmError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise LvlmError(f"{path} does not hold a JSON object")
    return content


def one_reason(error: Exception) -> str:
    """A library's words in one line of at most 200 characters; some list all that they know."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}…"
