"""TOML and YAML of recipes, read in the guarded way of ``lvlm_profiles.readers``.

They stand here because neither belongs to the standard library of every Python that runs a bundle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvlm_profiles.readers import MOST_DEPTH, UnreadableError, check_values, read_text
from lvlm_runtime.errors import UsageError

# A recipe is a page; the time that both parsers take grows faster than the text.
MOST_BYTES = 1 << 16


def load_toml(path: Path) -> Any:
    """Plain values of a TOML file.

    Raises:
        UnreadableError: It is no TOML, or holds what ``check_values`` refuses.
        OSError: It is not there or cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return _load(path, tomllib.loads, (ValueError,))


def load_yaml(path: Path) -> Any:
    """Plain values of a YAML file, of tags that JSON has too; errors as of ``load_toml``.

    Raises:
        UsageError: PyYAML is not installed.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise UsageError(
            f"{path}: YAML recipes need PyYAML, which is not installed; write it as .toml"
        ) from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Without references, which make a page expand to any size, and with names once."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise UnreadableError("it refers to another entry (*name), which is not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            mapping = super().construct_mapping(node, deep)
            if len(mapping) < len(node.value):
                raise UnreadableError(f"a name stands twice in one table{node.start_mark}")
            return mapping

    # What its constructors raise for a tag whose value does not fit, ``!!timestamp x``, is anything.
    odd = (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError)
    return _load(path, lambda text: yaml.load(text, Loader), odd)


def _load(path: Path, parse: Callable[[str], Any], refusals: tuple[type[Exception], ...]) -> Any:
    text = read_text(path, MOST_BYTES)
    try:
        value = parse(text)
    except UnreadableError:
        raise
    except RecursionError:
        raise UnreadableError(f"it nests deeper than {MOST_DEPTH} levels") from None
    except refusals as error:
        raise UnreadableError(" ".join(str(error).split())) from None
    check_values(value)
    return value
