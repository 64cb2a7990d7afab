"""Recipe files: the options of ``lvlm-export build``, and two more that have no flag.

A recipe is TOML, or YAML with the same entries. Every flag of ``build`` that shapes a bundle may be
in it, under its name with underscores and with the value that would be typed; ``share`` and
``budgets`` have no flag. A flag that is typed wins over the recipe's entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_export.plan.recipe_formats import load_toml, load_yaml
from lvlm_profiles.readers import UnreadableError
from lvlm_runtime.bundle.placement import HandBudget
from lvlm_runtime.errors import UsageError

SUFFIXES = (".toml", ".yaml", ".yml")


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read; empty where there is none.

    Attributes:
        path: The file.
        flags: Flag name with underscores -> what would be typed, once or several times.
        share: Share of the log-ratio of the sites before the decoder, or None.
        budgets: Ratios with counts by hand.
    """

    path: Path | None = None
    flags: Mapping[str, str | list[str]] = field(default_factory=dict)
    share: float | None = None
    budgets: tuple[HandBudget, ...] = ()


def read_recipe(path: Path, flags: tuple[str, ...]) -> Recipe:
    """Read a recipe file.

    Args:
        path: A ``.toml``, ``.yaml`` or ``.yml`` file.
        flags: Names of the flags that may be in it.

    Raises:
        UsageError: Names the file and the entry that does not fit.
    """
    content = _parse(path)
    known = (*flags, "share", "budgets")
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: unknown entry {key!r}; known: {', '.join(known)}")
    share = content.pop("share", None)
    budgets = content.pop("budgets", [])
    if not isinstance(budgets, list) or not all(isinstance(each, dict) for each in budgets):
        raise UsageError(f"{path}: budgets: write each as a table, [[budgets]]")
    return Recipe(
        path,
        {key: _typed(f"{path}: {key}", value) for key, value in content.items()},
        None if share is None else _share(f"{path}: share", share),
        tuple(_budget(f"{path}: budgets[{i}]", each) for i, each in enumerate(budgets)),
    )


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a recipe is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    try:
        content = load_toml(path) if path.suffix == ".toml" else load_yaml(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such recipe file") from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    except UnreadableError as error:
        raise UsageError(f"{path} is not {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: a recipe is a table of names and values")
    return content


def _typed(where: str, value: Any) -> str | list[str]:
    """A value as it would be typed on a command line."""
    if isinstance(value, list):
        return [_word(f"{where}[{i}]", each) for i, each in enumerate(value)]
    return _word(where, value)


def _word(where: str, value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise UsageError(f"{where}: expected a word or a number, got {value!r}")
    return str(value)


def _share(where: str, value: Any) -> float:
    share = _number(where, value)
    if not 0 < share < 1:
        raise UsageError(f"{where}: {value} is outside 0 to 1")
    return share


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: expected a number, got {value!r}")
    return float(value)


def _budget(where: str, value: dict[str, Any]) -> HandBudget:
    if set(value) != {"ratio", "keep"}:
        raise UsageError(f"{where}: a budget has ratio and keep, and nothing else")
    ratio = _number(f"{where}.ratio", value["ratio"])
    if not 0 < ratio < 1:
        raise UsageError(f"{where}.ratio: {value['ratio']} is outside 0 to 1")
    keep = value["keep"]
    if not isinstance(keep, dict) or not keep:
        raise UsageError(f'{where}.keep: write what stays at every site, {{"decoder@8" = 0.5}}')
    return HandBudget(
        ratio, {str(site): _kept(f"{where}.keep.{site}", each) for site, each in keep.items()}
    )


def _kept(where: str, value: Any) -> float:
    kept = _number(where, value)
    if not (0 < kept < 1 or (isinstance(value, int) and kept >= 1)):
        raise UsageError(
            f"{where}: {value} is neither a count from 1 up nor a share between 0 and 1"
        )
    return kept
