"""Memory before the run: what a request needs against what a device has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lvlm_profiles.devices.device import Device
from lvlm_profiles.errors import LvlmError

# Halvings of the request that are tried before it is called hopeless.
STEPS = 16
# Measured on TensorRT-RTX 1.7: what an engine holds beside its weights, per profile.
KERNELS_PER_PROFILE = 4_000_000
# Tensors of the widest layer that are alive at once: input, two projections, output.
LIVE_TENSORS = 4


@dataclass(frozen=True)
class Need:
    """Bytes that a bundle's largest request needs.

    Attributes:
        weights: Of all engines.
        kernels: What engines hold beside weights.
        kv_cache: All caches at full length.
        activations: An estimate, from the widest layer and the longest prompt.
    """

    weights: int
    kernels: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.kernels + self.kv_cache + self.activations


def free_bytes(device: Device) -> int | None:
    """What a device has for us, or None where its memory is not known."""
    if device.memory_gb.value is None:
        return None
    return int((device.memory_gb.value - (device.reserved_gb.value or 0)) * 1e9)


def check_fits(
    device: Device, need: Callable[[int, int], Need], text_tokens: int, answer_tokens: int
) -> Need:
    """Refuse a request that a device cannot hold.

    Args:
        device: Where it is to run.
        need: ``need(text_tokens, answer_tokens)`` of the bundle.
        text_tokens: Longest text of a prompt.
        answer_tokens: Longest answer.

    Returns:
        What it needs.

    Raises:
        LvlmError: Names the largest request that fits, or says that none does.
    """
    wanted, free = need(text_tokens, answer_tokens), free_bytes(device)
    if free is None or wanted.total <= free:
        return wanted
    shortage = (
        f"{device.title} has {free / 1e9:.2f} GB for this ({device.memory_gb.value:g} GB less"
        f" {device.reserved_gb.value:g} GB of others) and it needs {describe(wanted)}"
    )
    smallest = need(1, 1)
    if smallest.total > free:
        raise LvlmError(f"{shortage}; even the shortest request does not fit: use a smaller model")
    text, answer = _largest(need, free, text_tokens, answer_tokens)
    raise LvlmError(f"{shortage}; --text-tokens {text} --answer-tokens {answer} fits")


def _largest(
    need: Callable[[int, int], Need], free: int, text_tokens: int, answer_tokens: int
) -> tuple[int, int]:
    """The largest request in the same proportion that fits, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        text, answer = max(1, int(text_tokens * middle)), max(1, int(answer_tokens * middle))
        fits = need(text, answer).total <= free
        low, high = (middle, high) if fits else (low, middle)
    return max(1, int(text_tokens * low)), max(1, int(answer_tokens * low))


def describe(need: Need) -> str:
    """For people: the sum and its parts."""
    parts = ("weights", "kernels", "kv_cache", "activations")
    each = ", ".join(f"{part.replace('_', ' ')} {getattr(need, part) / 1e9:.2f}" for part in parts)
    return f"{need.total / 1e9:.2f} GB ({each}; activations are an estimate)"
