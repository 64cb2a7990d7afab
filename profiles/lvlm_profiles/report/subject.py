"""What a profile measured, where and how: the descriptive half of ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """What was measured.

    Attributes:
        name: What the checkpoint was called.
        revision: Of the checkpoint, where its name carries one; else null.
        method: Reduction method; ``seed`` for methods that draw numbers.
        precision: Element type of weights and activations.
        target: What the graphs were lowered for.
        content_key: SHA-256 key of the bundle.
        checkpoint_key: SHA-256 key of the checkpoint.
        weights_bytes: Of the shared weight file.
        built_with: Library -> version at build time.
        graphs: Graph file -> SHA-256.
        dims: Shapes as the cost model takes them.
    """

    name: str
    revision: str | None
    family: str
    method: str
    seed: int
    precision: str
    target: str
    content_key: str
    checkpoint_key: str
    weights_bytes: int
    built_with: dict[str, str]
    graphs: dict[str, str]
    dims: dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        fingerprint: Of the machine; two reports of one machine share it.
        processor: CPU as the kernel names it.
        board: Of a Jetson, from its device tree; else null.
        accelerator: GPU as its driver names it; null where the graphs ran on the CPU.
        cores: Logical CPUs this process may use.
        memory_bytes: Main memory.
        system: Operating system and kernel.
        driver: Of the accelerator; null likewise.
        power_mode: As ``nvpmodel`` names it; null where there is none.
        clocks: What could be read of governors and clock limits.
        libraries: Library -> version at run time.
        backend: What ran the graphs.
        execution: ``cpu`` or ``cuda``.
        threads: CPU threads asked for; null for one per physical core.
    """

    fingerprint: str
    processor: str
    board: str | None
    accelerator: str | None
    cores: int
    memory_bytes: int
    system: str
    driver: str | None
    power_mode: str | None
    clocks: dict[str, str]
    libraries: dict[str, str]
    backend: str
    execution: str
    threads: int | None


@dataclass(frozen=True)
class Image:
    """A picture of the request; ``sha256`` is of its file, null for one made for the profile."""

    name: str
    width: int
    height: int
    sha256: str | None


@dataclass(frozen=True)
class Request:
    """What was asked, the same at every budget.

    Attributes:
        text_tokens: Of the prompt, template included and images not.
        answer_tokens: Tokens of every answer; stop tokens do not end it.
        layout: Tile layout of the images; null without images.
        tiles: Tiles that pass the vision encoder.
    """

    prompt: str
    text_tokens: int
    images: tuple[Image, ...]
    layout: str | None
    tiles: int
    answer_tokens: int


@dataclass(frozen=True)
class Protocol:
    """How it was measured.

    Attributes:
        rounds: Measured rounds; each asks every budget once.
        warmup_rounds: Rounds before them, not counted.
        warmup_rule: What ended the warm-up.
        stable: The warm-up ended because times had settled.
        order: Order of the budgets within the rounds.
        clock: What timed a graph call.
        seconds: From the first warm-up round to the last measured one.
    """

    rounds: int
    warmup_rounds: int
    warmup_rule: str
    stable: bool
    order: str
    clock: str
    seconds: float


@dataclass(frozen=True)
class Startup:
    """The cold start: loading the bundle, and the process's very first request."""

    load_ms: float
    cold_ratio: float
    cold_ttft_ms: float
    cold_end_to_end_ms: float
