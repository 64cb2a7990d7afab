"""Building one TensorRT engine from one graph of a bundle. No GPU is needed for TensorRT-RTX.

Not through Polygraphy 0.53, whose engines are the same to the byte count: it finds weights only beside a graph
file, where this parses bytes that were checked and then given static sizes; it keeps why the parser refused a
node to its log; and which TensorRT it uses is set once for a process. What it would save is ``_add_profiles``
and ``_load_timing_cache``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvlm_profiles.files import write_whole
from lvlm_runtime.bundle.bundle import WEIGHTS, Bundle
from lvlm_runtime.engines.plan import EngineSpec
from lvlm_runtime.engines.turing import TURING, multiply_in_half
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.graphs.external import check_external
from lvlm_runtime.graphs.gate import check_model, find_parser
from lvlm_runtime.graphs.reader import fix_input_sizes, parse_model
from lvlm_runtime.tensorrt.library import Library

# Told a phase of the builder and the share of its steps that is done, in [0, 1].
OnPhase = Callable[[str, float], None]


def build_engine(
    library: Library,
    spec: EngineSpec,
    bundle: Bundle,
    compute_capabilities: tuple[str, ...] = (),
    workspace_bytes: int | None = None,
    timing_cache: Path | None = None,
    on_phase: OnPhase | None = None,
) -> Any:
    """Build an engine.

    Args:
        library: The TensorRT to build with.
        spec: Graph, static sizes and profiles.
        bundle: The bundle; the graph's weights are read from its weight file.
        compute_capabilities: ``sm75`` …, for TensorRT-RTX; TensorRT builds for the GPU at hand.
            With ``sm75`` among them reducers multiply in half precision, see ``turing``.
        workspace_bytes: Most scratch memory that a layer may use; None for the library's own.
        timing_cache: File that keeps measured kernels (TensorRT only, TensorRT-RTX has none).
        on_phase: Told what the builder does.

    Returns:
        The serialised engine (``IHostMemory``, a buffer).

    Raises:
        LvlmError: The operator gate or the library refuses the graph; names graph and node.
        KeyboardInterrupt: Ctrl-C, also while the builder works.
    """
    data, path = bundle.graph(spec.graph), bundle.path(spec.graph)
    check_external(data, WEIGHTS, bundle.manifest.files[WEIGHTS].size_bytes, path)
    model = parse_model(data, path)
    for violation in check_model(model, path.name, find_parser(library.parser))[:1]:
        raise LvlmError(f"{library.title} does not take {violation}")
    trt = library.module
    library.logger.errors.clear()
    builder = trt.Builder(library.logger)
    if builder is None:
        raise LvlmError(f"{library.title} does not start: {library.complaint()}")
    network = builder.create_network(library.network_flags())
    _parse(library, network, spec, bundle)
    # The parser has read the weights, from a file that it opened by its name.
    bundle.check_place()
    if TURING in compute_capabilities:
        multiply_in_half(trt, network)
    config = builder.create_builder_config()
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    # Without it TensorRT-RTX may allocate while a graph is captured (release notes of 1.2).
    user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if user_allocation is not None:
        config.set_flag(user_allocation)
    _set_compute_capabilities(library, config, compute_capabilities)
    _add_profiles(library, builder, config, spec)
    cache = _load_timing_cache(library, config, timing_cache)
    monitor = _make_monitor(trt, on_phase or (lambda _phase, _share: None))
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise LvlmError(f"{library.title} cannot build {spec.graph}: {library.complaint()}")
    if cache is not None and timing_cache is not None:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(timing_cache, bytes(config.get_timing_cache().serialize()))
    return engine


def _parse(library: Library, network: Any, spec: EngineSpec, bundle: Bundle) -> None:
    parser = library.module.OnnxParser(network, library.logger)
    # The path tells where the weight file lies.
    path = str(bundle.path(spec.graph))
    if parser.parse(fix_input_sizes(bundle.graph(spec.graph), spec.fixed), path):
        return
    error = parser.get_error(0) if parser.num_errors else None
    if error is None:
        raise LvlmError(f"{library.title} does not take {spec.graph}: {library.complaint()}")
    node = error.node_name() or f"node {error.node()}"
    reason = " ".join(re.split(r"\n\[", error.desc())[0].split())
    raise LvlmError(
        f"{library.title} does not take {spec.graph}, {node} ({error.node_operator()}): {reason}"
    )


def _set_compute_capabilities(library: Library, config: Any, names: tuple[str, ...]) -> None:
    if not names:
        return
    if library.target != "rtx":
        raise LvlmError(
            "TensorRT builds for the GPU of this machine; leave out compute capabilities"
        )
    known = library.module.ComputeCapability
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        wanted = getattr(known, name.upper(), None)
        if wanted is None:
            raise LvlmError(f"{library.title} knows no compute capability {name}")
        config.set_compute_capability(wanted, index)


def _add_profiles(library: Library, builder: Any, config: Any, spec: EngineSpec) -> None:
    for profile in spec.profiles:
        made = builder.create_optimization_profile()
        for name, (low, best, high) in profile.shapes.items():
            try:
                made.set_shape(name, low, best, high)
            except (RuntimeError, ValueError) as error:
                raise LvlmError(
                    f"{spec.graph}, input {name}: {low} to {high} is no range ({error})"
                ) from None
        if config.add_optimization_profile(made) < 0:
            raise LvlmError(
                f"{library.title} does not take the profile {', '.join(profile.names)} of"
                f" {spec.graph}: {library.complaint()}"
            )


def _load_timing_cache(library: Library, config: Any, path: Path | None) -> Any:
    """Kernels that were measured before; TensorRT-RTX picks its kernels without measuring."""
    if path is None or library.target == "rtx":
        return None
    found = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(found)
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _make_monitor(trt: Any, on_phase: OnPhase) -> Any:
    """Hands the builder's phases on, and turns Ctrl-C into a stop that TensorRT understands."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, _parent: str | None, steps: int) -> None:
            self.steps[name] = max(1, steps)

        def step_complete(self, name: str, step: int) -> bool:
            # An exception must not leave through the library's own frames.
            try:
                on_phase(name, (step + 1) / self.steps.get(name, 1))
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()
