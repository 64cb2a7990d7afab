"""What a search knows so far, in a file that is written whole, so that the same command goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lvlm_profiles.files import write_whole
from lvlm_profiles.records import mismatch, read, read_json
from lvlm_runtime.errors import LvlmError

REMEDY = "delete it to begin again, or name another --output"


@dataclass
class SearchRecord:
    """The content of a state file.

    Attributes:
        run: What must be equal to go on, by the name that a user knows it by.
        search: By trial, its answers to the search half, 1 for a right one and 0 for another.
        held: The same of the held-out half.
        done: Operations that it took.
        alone: Operations that every trial by itself would have taken.
        processor_seconds: Time of the processor.
    """

    run: dict[str, str]
    search: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    done: float = 0.0
    alone: float = 0.0
    processor_seconds: float = 0.0


class SearchState:
    """A state file.

    Args:
        path: The file; it need not be there.
        run: What must be equal to go on.
        trials: Names of all trials, the unreduced model's included.
        borders: Numbers of questions up to which pictures are whole, of the search half and of the
            held-out half.

    Raises:
        LvlmError: It is of another search, or damaged.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, str],
        trials: Collection[str],
        borders: tuple[Collection[int], Collection[int]],
    ) -> None:
        self.path, self.record = path, SearchRecord(dict(run))
        if not path.exists():
            return
        found: Any = read_json(path, REMEDY)
        self.record = read(SearchRecord, found, path, REMEDY)
        for name in dict.fromkeys((*run, *self.record.run)):
            before, now = self.record.run.get(name), run.get(name)
            if before != now:
                raise LvlmError(
                    f"{path} is of a search with another {name}: {_short(before)} there and"
                    f" {_short(now)} here; type the same command, {REMEDY}"
                )
        for half, whole in zip(("search", "held"), borders, strict=True):
            for name, answers in self._half(half).items():
                if name not in trials:
                    raise mismatch(path, half, "names of trials", repr(name), REMEDY)
                if set(answers) - {"0", "1"} or len(answers) not in whole:
                    wanted = "zeros and ones, one for each question about the first pictures"
                    raise mismatch(path, f"{half}.{name}", wanted, repr(_short(answers)), REMEDY)
        record = self.record
        amounts = {"done": record.done, "alone": record.alone}
        for name, value in (amounts | {"processor_seconds": record.processor_seconds}).items():
            if not (math.isfinite(value) and value >= 0):
                raise mismatch(path, name, "a number of 0 or more", repr(value), REMEDY)

    def right(self, half: str, name: str) -> tuple[bool, ...]:
        """A trial's answers to ``search`` or ``held`` so far."""
        return tuple(each == "1" for each in self._half(half).get(name, ""))

    def extend(self, half: str, answers: Mapping[str, tuple[bool, ...]]) -> None:
        """Add answers of several trials to the same questions, and write."""
        known = self._half(half)
        for name, right in answers.items():
            known[name] = known.get(name, "") + "".join("01"[each] for each in right)
        self.write()

    def write(self) -> None:
        """Write the file whole."""
        write_whole(self.path, json.dumps(asdict(self.record), indent=1) + "\n")

    def _half(self, half: str) -> dict[str, str]:
        return self.record.search if half == "search" else self.record.held


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value if len(value) <= 60 else f"{value[:57]}…"
