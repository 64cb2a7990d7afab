"""Where a checkpoint lies and which of its files are read: JSON, templates and safetensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_profiles.readers import UnreadableError, load_json, what_is
from lvlm_runtime.errors import LvlmError, UsageError

# What a hub snapshot needs; weights in any other format (pickles above all) stay there.
HUB_FILES = ("*.json", "*.jinja", "*.safetensors")
# ``owner/name``, and a revision behind an @ as a bundle's manifest names it.
HUB_ID = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
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


class AbsentFileError(LvlmError):
    """A file of the checkpoint is not there, or only git-lfs's stand-in for it."""


@dataclass(frozen=True)
class Located:
    """Where a checkpoint lies and what it is called.

    Attributes:
        directory: Its files.
        name: The absolute path of a directory, or ``owner/name@commit`` of a hub id.
    """

    directory: Path
    name: str


def locate(model: str, revision: str | None = None) -> Located:
    """A local directory, or the snapshot of a hub id (downloaded when needed).

    ``owner/name`` is a hub id where nothing called ``owner`` lies in the working directory, so that a
    path with a slip in it does not become a download; where a revision is given it always is.

    Args:
        model: A directory, ``owner/name`` or ``owner/name@revision``.
        revision: Branch, tag or commit on the hub, main where None; it is resolved to a commit first,
            and all files are that commit's.

    Raises:
        UsageError: A revision of something that is no hub id, or two of them.
        LvlmError: Neither a directory nor a hub id that can be fetched.
    """
    if not model:
        raise UsageError("the model's name is empty; give a directory or a hub id (owner/name)")
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError(
                f"--revision is for hub ids and {model!r} is a directory; leave it out"
            )
        return Located(path, str(path.resolve()))
    found = HUB_ID.fullmatch(model)
    if found is None or path.exists():
        raise LvlmError(
            f"no checkpoint directory at {model!r}, which is {what_is(path)}; give a directory or a hub"
            " id (owner/name)"
        )
    if found["revision"] is not None and revision is not None:
        raise UsageError(f"{model!r} names a revision and so does --revision; give one of them")
    revision = revision or found["revision"]
    owner = Path(found["owner"])
    if revision is None and (owner.exists() or owner.is_symlink()):
        raise LvlmError(
            f"no checkpoint directory at {model!r}, and {found['owner']!r} lies here, so that it is taken"
            " for a path with a slip in it; if it is a hub id, say so with --revision main"
        )
    return _download(f"{found['owner']}/{found['name']}", revision or "main")


def _download(hub_id: str, revision: str) -> Located:
    from huggingface_hub import snapshot_download

    try:
        # The client asks for the revision's commit first and names the snapshot's folder after it.
        directory = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=list(HUB_FILES))
        )
    except Exception as error:  # the hub client has many error types; each means the same here
        raise LvlmError(
            f"{hub_id!r} is no local directory and the hub did not give its revision {revision}:"
            f" {one_reason(error)}"
        ) from error
    if COMMIT.fullmatch(directory.name) is None:
        raise LvlmError(
            f"the hub gave {hub_id!r} without saying which commit it is ({directory}); download it to a"
            " directory and give that"
        )
    return Located(directory, f"{hub_id}@{directory.name}")


def refuse_pointer(path: Path) -> None:
    """AbsentFileError where a file is git-lfs's stand-in for the one that is wanted."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as stream:
            start = stream.read(len(POINTER))
    except OSError:
        return  # whoever reads the file says what is wrong with it
    if start == POINTER:
        raise AbsentFileError(
            f"{path} is a git-lfs pointer and not the file itself; type git lfs pull in"
            f" {path.parent}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object; LvlmError names the file when it is missing or damaged."""
    refuse_pointer(path)
    try:
        content = load_json(path, constants=True, repeated=True)
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


def one_reason(error: BaseException) -> str:
    """A library's words in one line of at most 200 characters; some list all that they know."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}…"
