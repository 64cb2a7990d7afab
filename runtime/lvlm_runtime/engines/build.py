"""All engines of a bundle: built one after another, kept when interrupted, recorded."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_profiles.files import remove_abandoned, whole_file
from lvlm_runtime.bundle.bundle import Bundle, file_sha256
from lvlm_runtime.engines.builder import OnPhase, build_engine
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.plan import EngineSpec, plan_engines
from lvlm_runtime.engines.record import (
    SCHEMA,
    EngineFile,
    EngineRecord,
    directory_of,
    engine_file,
    read_record,
    write_record,
)
from lvlm_runtime.engines.turing import TURING
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.progress import NoProgress, Progress
from lvlm_runtime.tensorrt.cuda import open_driver
from lvlm_runtime.tensorrt.library import Library, open_library

TIMING_CACHE = "timing.cache"
# Engines of graphs with fewer weights (reducers, packers) are built in memory first.
SMALL_BYTES = 1_000_000
NO_PROGRESS = NoProgress()


@dataclass(frozen=True)
class EngineSettings:
    """How engines are to be built.

    Attributes:
        target: ``rtx`` or ``trt``.
        limits: The largest request.
        compute_capabilities: ``sm80`` …; TensorRT takes the one of this machine's GPU.
        workspace_bytes: Most scratch memory of a layer, or None for the library's own limit.
    """

    target: str
    limits: Limits
    compute_capabilities: tuple[str, ...]
    workspace_bytes: int | None = None


@dataclass(frozen=True)
class EngineResult:
    """What a build of engines left behind.

    Attributes:
        record: All engines.
        built: Graphs whose engine was built now; the others were there.
        peak_memory_bytes: Most memory this process ever held.
    """

    record: EngineRecord
    built: tuple[str, ...]
    peak_memory_bytes: int

    def totals(self) -> tuple[int, int]:
        """Bytes of the weights in them and of the engines."""
        engines = self.record.engines.values()
        return sum(each.weights_bytes for each in engines), sum(each.size_bytes for each in engines)


def build_engines(
    bundle: Bundle,
    settings: EngineSettings,
    progress: Progress = NO_PROGRESS,
    on_phase: OnPhase | None = None,
) -> EngineResult:
    """Build every engine of a bundle that is not there yet.

    Args:
        bundle: The bundle; engines go to ``engines/<target>/`` in it.
        settings: Target and limits.
        progress: Shows what is done, an engine a step.
        on_phase: Told what the builder does inside an engine.

    Raises:
        UsageError: The limits do not fit the model, or the GPU the bundle's precision.
        LvlmError: No TensorRT, or it refuses a graph; engines built before stay.
    """
    library = open_library(settings.target)
    if not settings.compute_capabilities:
        raise UsageError("no compute capability given; name the GPU's, --compute-capability sm87")
    if TURING in settings.compute_capabilities and bundle.manifest.precision == "float32":
        # Its reducers may be rounded, its weighted graphs may not.
        raise UsageError(
            f"{library.title} has no float32 matrix product for Turing ({TURING}); build the bundle"
            " with --precision fp16"
        )
    if TURING in settings.compute_capabilities and "int4" in bundle.manifest.quantised.values():
        raise UsageError(
            f"{library.title} has no products with int4 weights for Turing ({TURING}); build the bundle"
            " with --precision int8, or leave that GPU out"
        )
    specs = plan_engines(bundle, settings.limits)
    cuda_version, device = _machine()
    record = EngineRecord(
        SCHEMA,
        bundle.manifest.content_key,
        settings.target,
        library.version,
        cuda_version,
        settings.compute_capabilities,
        device,
        bundle.manifest.precision,
        settings.limits,
        {},
    )
    # What a build that was killed left of a file that it was writing.
    remove_abandoned(directory_of(bundle.directory, settings.target))
    present = _present(bundle, record, specs)
    # Written with the first engine that is kept: a command that fails at once harms nothing.
    record = replace(record, engines=present)
    missing = [spec for spec in specs if spec.graph not in present]
    with progress.stage("building engines", len(specs)) as advance:
        for graph in present:
            advance(graph)
        # Small ones first, and kept when all are there: a library that refuses one does so within
        # seconds, and leaves the engines of other settings alone.
        small = [spec for spec in missing if spec.weights_bytes < SMALL_BYTES]
        ready = {}
        for spec in small:
            ready[spec.graph] = _build(bundle, library, spec, settings, on_phase)
            advance(spec.graph)
        for spec in (*small, *(spec for spec in missing if spec not in small)):
            engine = ready.pop(spec.graph, None)
            if engine is None:
                engine = _build(bundle, library, spec, settings, on_phase)
                advance(spec.graph)
            known = {**record.engines, spec.graph: _keep(bundle, spec, settings.target, engine)}
            ordered = {each.graph: known[each.graph] for each in specs if each.graph in known}
            record = replace(record, engines=ordered)
            write_record(bundle.directory, record)
    return EngineResult(record, tuple(spec.graph for spec in missing), _peak_memory())


def _machine() -> tuple[str | None, str | None]:
    """CUDA version and name of the GPU here, or nothing where there is none."""
    try:
        cuda = open_driver()
    except LvlmError:
        return None, None
    return cuda.version, cuda.name


def _present(
    bundle: Bundle, wanted: EngineRecord, specs: tuple[EngineSpec, ...]
) -> dict[str, EngineFile]:
    """Engines of an earlier build with the same settings that are still what they were."""
    try:
        found = read_record(bundle.directory, wanted.target)
    except LvlmError:
        found = None  # a record of another version; everything is built anew
    if found is None or not found.same_setting(wanted):
        return {}
    directory = directory_of(bundle.directory, wanted.target)
    return {
        spec.graph: found.engines[spec.graph]
        for spec in specs
        if spec.graph in found.engines and _intact(bundle, directory, spec, found)
    }


def _intact(bundle: Bundle, directory: Path, spec: EngineSpec, found: EngineRecord) -> bool:
    entry = found.engines[spec.graph]
    path = directory / entry.file
    same = bundle.manifest.files[spec.graph].sha256 == entry.graph_sha256
    return same and path.exists() and file_sha256(path) == entry.sha256


def _build(
    bundle: Bundle,
    library: Library,
    spec: EngineSpec,
    settings: EngineSettings,
    on_phase: OnPhase | None,
) -> Any:
    return build_engine(
        library,
        spec,
        bundle,
        settings.compute_capabilities if settings.target == "rtx" else (),
        settings.workspace_bytes,
        directory_of(bundle.directory, settings.target) / TIMING_CACHE,
        on_phase,
    )


def _keep(bundle: Bundle, spec: EngineSpec, target: str, engine: Any) -> EngineFile:
    """Write an engine, straight from the library's memory."""
    directory = directory_of(bundle.directory, target)
    path = directory / f"{Path(spec.graph).stem}.engine"
    directory.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        stream.write(engine)
    return engine_file(spec, path, bundle.manifest.files[spec.graph].sha256)


def _peak_memory() -> int:
    """Peak resident memory of this process; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
