"""The bundles of a server by the ids that requests name them with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lvlm_runtime.errors import UsageError
from lvlm_runtime.serve.patches import patch_grid
from lvlm_runtime.serve.refusal import RefusedError
from lvlm_runtime.serve.served import ServedBundle


class Catalogue:
    """Bundles by name, and by name and ratio: ``bundle`` and ``bundle@0.33``.

    Args:
        bundles: What is served.

    Raises:
        UsageError: Two have one name.
    """

    def __init__(self, bundles: Iterable[ServedBundle]) -> None:
        self.bundles: dict[str, ServedBundle] = {}
        self._ids: dict[str, tuple[ServedBundle, float | None]] = {}
        for bundle in bundles:
            if bundle.name in self.bundles:
                raise UsageError(
                    f"two bundles are called {bundle.name}, and requests name them; rename a directory"
                )
            self.bundles[bundle.name] = bundle
            self._ids[bundle.name] = bundle, None
            for ratio in bundle.ratios:
                self._ids[f"{bundle.name}@{ratio:g}"] = bundle, ratio

    def __contains__(self, model: str) -> bool:
        """Whether there is such an id."""
        return model in self._ids

    def find(self, model: str) -> tuple[ServedBundle, float | None]:
        """The bundle of an id, and its ratio where the id has one.

        Raises:
            RefusedError: There is none of this name.
        """
        found = self._ids.get(model)
        if found is None:
            known = ", ".join(self._ids)
            raise RefusedError(
                f"no model {model[:80]!r}; there are {known}", 404, "model_not_found", "model"
            )
        return found

    def entry(self, model: str) -> dict[str, Any]:
        """One id as ``/v1/models`` says it; ``ratio`` is what a request without one gets.

        ``patches`` are rows and columns of a picture's tokens, where an answer can tell which stay.
        """
        bundle, ratio = self.find(model)
        manifest = bundle.session.bundle.manifest
        return {
            "id": model,
            "object": "model",
            "created": bundle.created,
            "owned_by": "lvlm-export",
            "ratio": bundle.ratios[0] if ratio is None else ratio,
            "ratios": list(bundle.ratios),
            "family": manifest.family,
            "method": manifest.method,
            "context_length": manifest.text.context_length,
            "patches": patch_grid(bundle.session.bundle),
        }

    def entries(self) -> dict[str, Any]:
        """All of them."""
        return {"object": "list", "data": [self.entry(model) for model in self._ids]}
