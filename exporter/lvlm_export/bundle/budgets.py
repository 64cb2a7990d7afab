"""Budgets added to a finished bundle or taken from it: its weights and weighted graphs stay as they are.

A ratio is a few reducers without weights. So the new bundle begins with the old one's files, under
hard links where the file system has them, and only the reducers that are missing are exported. What
comes out is byte for byte the bundle that a build with all its ratios makes, but for the order in
which ``weights.bin`` and the manifest list what they hold.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvlm_export.bundle.present import intact_manifest
from lvlm_export.bundle.workspace import Workspace
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import Plan
from lvlm_runtime.bundle.bundle import WEIGHTS
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.golden import FILE as GOLDEN

# As near as two ratios may be and still be one.
SAME = 1e-9


def changed_ratios(
    present: Sequence[float], added: Sequence[float], removed: Sequence[float]
) -> tuple[float, ...]:
    """The ratios of a bundle after a change, the default first and 1.0 where it was.

    Args:
        present: Of the bundle, the first is its default.
        added: New ones; one that is there already changes nothing.
        removed: Ones to go; one that is not there changes nothing.

    Raises:
        UsageError: A ratio is both added and removed, or none would be left.

    Example:
        >>> changed_ratios((0.33, 1.0), (0.25,), ())
        (0.33, 0.25, 1.0)
        >>> changed_ratios((0.33, 0.25, 1.0), (), (0.33,))
        (0.25, 1.0)
    """
    for ratio in removed:
        if _has(added, ratio):
            raise UsageError(
                f"ratio {ratio:g} is given to --add-ratio and to --remove-ratio; give it to one"
            )
    new = [ratio for ratio in dict.fromkeys(added) if not _has(present, ratio)]
    # A build puts the unreduced model last, unless it is the default.
    last = list(present[-1:]) if len(present) > 1 and _has(present[-1:], 1.0) else []
    first = list(present[: len(present) - len(last)])
    ratios = tuple(ratio for ratio in (*first, *new, *last) if not _has(removed, ratio))
    if not ratios:
        known = ", ".join(f"{ratio:g}" for ratio in present)
        raise UsageError(f"no ratio would be left of {known}; leave one, or remove the bundle")
    return ratios


def manifest_to_change(directory: Path, checkpoint: Checkpoint) -> Manifest:
    """The manifest of the whole bundle whose budgets are to change.

    Raises:
        LvlmError: There is none, it is damaged, or of another checkpoint.
    """
    manifest = intact_manifest(directory)
    if manifest is None:
        raise LvlmError(
            f"{directory} holds no whole bundle whose ratios could change; build it with --ratio"
        )
    if checkpoint.content_key() != manifest.checkpoint_key:
        raise LvlmError(
            f"{directory} was not built from the checkpoint in {checkpoint.directory}: its content"
            " differs; name the right one with --model, or build the bundle again"
        )
    return manifest


def check_same_version(directory: Path, manifest: Manifest, plan: Plan) -> None:
    """LvlmError where this version makes other files of the same options."""
    if manifest.content_key != plan.key:
        raise LvlmError(
            f"{directory} was built by another version, whose files are not mixed with this one's;"
            " build it again with all its ratios (--ratio … --force)"
        )


def check_same_cuts(before: Plan, after: Plan) -> None:
    """UsageError where the new ratios cut the model elsewhere, so that no graph stays as it is."""
    if (before.vision, before.decoder) != (after.vision, after.decoder):
        raise UsageError(
            f"method {after.method.name} cuts the model elsewhere with these ratios; build the bundle"
            " again with all of them (--ratio … --force)"
        )


@dataclass(frozen=True)
class Beginning:
    """A whole bundle that another begins with.

    Attributes:
        directory: Where it lies.
        manifest: Its manifest.
    """

    directory: Path
    manifest: Manifest

    def unchecked(self, plan: Plan) -> Plan:
        """A plan without the budgets that passed the parity gate when this bundle was built."""
        if GOLDEN not in self.manifest.files:
            return plan
        had = {budget.ratio for budget in self.manifest.budgets}
        new = tuple(budget for budget in plan.budgets if budget.ratio not in had)
        return replace(plan, budgets=new)

    def take_over(self, workspace: Workspace, graphs: Iterable[str]) -> None:
        """Put its weights and graphs into a workspace, unless an earlier run has begun there.

        Args:
            workspace: Of the new bundle.
            graphs: Files that the new bundle has; those that this one has too are taken.
        """
        if workspace.done or workspace.tensors:
            return
        files = self.manifest.files
        shared = [name for name in graphs if name in files]
        for name in (WEIGHTS, *shared):
            _link(self.directory / name, workspace.path(name))
        workspace.done.update({name: files[name] for name in shared})
        workspace.note_weights(self.manifest.weights)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy; nothing writes to a file that has two names."""
    with contextlib.suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _has(ratios: Sequence[float], wanted: float) -> bool:
    return any(abs(ratio - wanted) < SAME for ratio in ratios)
