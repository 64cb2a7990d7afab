"""How much memory a bundle's engines need, before any is built."""

from __future__ import annotations

from dataclasses import replace

from lvlm_profiles.cost.memory import KERNELS_PER_PROFILE, LIVE_TENSORS, Need, check_fits
from lvlm_profiles.devices.device import Device
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.route import cache_bytes
from lvlm_runtime.engines.limits import Limits, capacities_of
from lvlm_runtime.engines.plan import EngineSpec, plan_engines
from lvlm_runtime.graphs.reader import parse_model


def estimate(bundle: Bundle, specs: tuple[EngineSpec, ...], limits: Limits) -> Need:
    """What the largest request within ``limits`` needs.

    Weights and caches are exact; kernels and activations are estimates.
    """
    manifest = bundle.manifest
    dtype = numpy_dtype(manifest.precision)
    capacities = capacities_of(manifest, limits)
    cache = cache_bytes(manifest, capacities, dtype.itemsize)
    profiles = sum(max(1, len(spec.profiles)) for spec in specs)
    # The head, wide as it is, has one row only.
    layers = [spec for spec in specs if spec.weights_bytes and spec.graph not in manifest.lm_head]
    widest = max((_widest(bundle, spec.graph) for spec in layers), default=0)
    rows = max(capacities.values()) - limits.answer_tokens
    return Need(
        sum(spec.weights_bytes for spec in specs),
        profiles * KERNELS_PER_PROFILE,
        cache,
        LIVE_TENSORS * rows * widest * dtype.itemsize,
    )


def check_memory(bundle: Bundle, limits: Limits, device: Device) -> Need:
    """Refuse limits that a device has no memory for.

    Raises:
        LvlmError: Says what is needed, what is there and what would fit.
    """
    specs = plan_engines(bundle, limits)

    def need(text_tokens: int, answer_tokens: int) -> Need:
        asked = replace(limits, text_tokens=text_tokens, answer_tokens=answer_tokens)
        return estimate(bundle, specs, asked)

    return check_fits(device, need, limits.text_tokens, limits.answer_tokens)


def _widest(bundle: Bundle, graph: str) -> int:
    """Most values per token that a layer makes."""
    constants = parse_model(bundle.graph(graph), bundle.path(graph)).graph.constants.values()
    return max((max(each.dims) for each in constants if len(each.dims) == 2), default=0)
