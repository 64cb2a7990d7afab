"""The result of ``lvlm-export eval --json``, to stand beside the times of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles.readers import load_json
from lvlm_profiles.records import read
from lvlm_profiles.report.figures import Accuracy
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError

FIELDS = ("questions", "right", "accuracy", "low", "high")


@dataclass(frozen=True)
class EvalResult:
    """What ``eval --json`` printed.

    Attributes:
        path: Where it was read.
        model: That answered, as its bundle's manifest names it.
        method: Of that bundle.
        rows: Ratio -> accuracy over all kinds of questions.
    """

    path: Path
    model: str
    method: str
    rows: Mapping[float, Accuracy]

    def check(self, manifest: Manifest) -> None:
        """LvlmError where it is of another model or method than a bundle."""
        if (self.model, self.method) != (manifest.model, manifest.method):
            raise LvlmError(
                f"{self.path} is of {self.model} with {self.method} and the bundle is of"
                f" {manifest.model} with {manifest.method}; give the bundle's own eval result"
            )


def read_eval_result(path: Path) -> EvalResult:
    """Read what ``lvlm-export eval --json`` printed.

    Raises:
        LvlmError: No such file, or one of another content.
    """
    try:
        content = load_json(path)
        kinds = {row["kind"] for row in content["rows"]}
        # Of several kinds, eval prints all together too.
        wanted = "all" if "all" in kinds else min(kinds)
        rows = {
            float(row["ratio"]): read(
                Accuracy, {name: row[name] for name in FIELDS}, path, "print it again"
            )
            for row in content["rows"]
            if row["kind"] == wanted
        }
        return EvalResult(path, str(content["model"]), str(content["method"]), rows)
    except FileNotFoundError:
        raise LvlmError(
            f"there is no eval result {path}; `lvlm-export eval --json` prints one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise LvlmError(
            f"{path} is no result of `lvlm-export eval --json` ({type(error).__name__}: {error})"
        ) from None
