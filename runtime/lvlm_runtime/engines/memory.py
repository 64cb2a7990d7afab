"""How much memory a bundle's engines need, before any is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lvlm_profiles.cost.memory import KERNELS_PER_PROFILE, LIVE_TENSORS, Need, check_fits
from lvlm_profiles.devices.device import Device
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.bundle.route import cache_bytes
from lvlm_runtime.engines.limits import Limits, capacities_of
from lvlm_runtime.engines.plan import EngineSpec, plan_engines
from lvlm_runtime.graphs.reader import read_model


def estimate(
    directory: Path, manifest: Manifest, specs: tuple[EngineSpec, ...], limits: Limits
) -> Need:
    """What the largest request within ``limits`` needs.

    Weights and caches are exact; kernels and activations are estimates.
    """
    dtype = numpy_dtype(manifest.precision)
    capacities = capacities_of(manifest, limits)
    cache = cache_bytes(manifest, capacities, dtype.itemsize)
    profiles = sum(max(1, len(spec.profiles)) for spec in specs)
    # The head, wide as it is, has one row only.
    layers = [spec for spec in specs if spec.weights_bytes and spec.graph not in manifest.lm_head]
    widest = max((_widest(directory / spec.graph) for spec in layers), default=0)
    rows = max(capacities.values()) - limits.answer_tokens
    return Need(
        sum(spec.weights_bytes for spec in specs),
        profiles * KERNELS_PER_PROFILE,
        cache,
        LIVE_TENSORS * rows * widest * dtype.itemsize,
    )


def check_memory(directory: Path, manifest: Manifest, limits: Limits, device: Device) -> Need:
    """Refuse limits that a device has no memory for.

    Raises:
        LvlmError: Says what is needed, what is there and what would fit.
    """
    specs = plan_engines(directory, manifest, limits)

    def need(text_tokens: int, answer_tokens: int) -> Need:
        asked = replace(limits, text_tokens=text_tokens, answer_tokens=answer_tokens)
        return estimate(directory, manifest, specs, asked)

    return check_fits(device, need, limits.text_tokens, limits.answer_tokens)


def _widest(path: Path) -> int:
    """Most values per token that a layer makes."""
    constants = read_model(path).graph.constants.values()
    return max((max(each.dims) for each in constants if len(each.dims) == 2), default=0)
