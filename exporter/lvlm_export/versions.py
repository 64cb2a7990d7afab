"""Versions of what a bundle is built with; part of its content key."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from lvlm_export import __version__

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")


def versions() -> dict[str, str]:
    """Package -> installed version, this one included."""
    found = {"lvlm-export": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
