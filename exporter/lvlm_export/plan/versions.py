"""Versions of what a bundle is built with; part of its content key."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lvlm_export import __version__

# What this release was tested with (constraints.txt); rewrites name it when they do not know a graph.
TESTED_TRANSFORMERS = "5.23.0"
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")


def versions() -> dict[str, str]:
    """Package -> installed version, this one included."""
    installed = {"lvlm-export": __version__}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "absent"
    return installed


def source_key() -> str:
    """SHA-256 over the modules that shape graphs, so that a changed rewrite is a new bundle.

    Everything in the package but the command line and the demo counts: a needless build is better
    than an old bundle that passes for a current one.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[0] not in ("cli", "demo"):
            digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()
