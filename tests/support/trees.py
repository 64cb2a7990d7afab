"""Pieces of other machines' file systems, from ``tests/profiles/data/*.tree``."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "profiles" / "data"


def plant(name: str, root: Path, **changes: str | None) -> Path:
    """Write a tree's files below ``root``.

    Args:
        name: ``orin_nano``, ``agx_orin`` or ``x86_rapl``.
        root: Where to.
        changes: End of a path, ``__`` for ``/``, to its content in place of the tree's; None
            leaves the file out.
    """
    for line in (DATA / f"{name}.tree").read_text(encoding="utf-8").splitlines():
        path, content = line.split(" = ", 1)
        new: str | None = content
        for end, given in changes.items():
            if path.endswith(end.replace("__", "/")):
                new = given
        if new is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(
                new.replace("\\n", "\n").replace("\\t", "\t"), encoding="utf-8"
            )
    return root
