"""What was built, by what, for what: the record beside a bundle's engines, and its refusals.

An engine runs only under the library version and on the kind of GPU that it was built for, and it
is worth nothing once the bundle's graphs have changed. The record says all of it, so a mismatch is
one line with the command that rebuilds, and not a crash in the driver.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles import records
from lvlm_profiles.files import write_whole
from lvlm_runtime.bundle.bundle import file_sha256
from lvlm_runtime.bundle.files import read_described
from lvlm_runtime.bundle.manifest import Manifest, to_json
from lvlm_runtime.bundle.route import route
from lvlm_runtime.bundle.signature import PublicKey
from lvlm_runtime.engines.limits import Limits, reachable_budgets
from lvlm_runtime.engines.plan import EngineSpec, Profile
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.tensorrt.library import MODULES

DIRECTORY = "engines"
RECORD = "record.json"
ENGINE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}\.engine")
SCHEMA = 2


@dataclass(frozen=True)
class EngineFile:
    """One engine.

    Attributes:
        file: Its name beside the record.
        size_bytes: Its length.
        sha256: Of its bytes.
        graph_sha256: Of the graph it was built from.
        weights_bytes: What the graph's constants take.
        capacity: Rows of the caches it works on, or None where it has none.
        profiles: In their order in the engine.
    """

    file: str
    size_bytes: int
    sha256: str
    graph_sha256: str
    weights_bytes: int
    capacity: int | None
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class EngineRecord:
    """All engines of a bundle for one target.

    Attributes:
        schema: Version of this layout.
        content_key: Of the bundle.
        target: ``rtx`` or ``trt``.
        library_version: Of the TensorRT that built them.
        cuda_version: Of the driver of the machine that built them, ``13.0``; None where there was
            none, as TensorRT-RTX allows.
        compute_capabilities: ``sm80`` …, what they run on.
        device: Name of the GPU of that machine, or None.
        precision: Element type of weights and activations.
        limits: The largest request they take.
        engines: Graph file -> engine.
    """

    schema: int
    content_key: str
    target: str
    library_version: str
    cuda_version: str | None
    compute_capabilities: tuple[str, ...]
    device: str | None
    precision: str
    limits: Limits
    engines: dict[str, EngineFile]

    def same_setting(self, other: EngineRecord) -> bool:
        """Engines of the one can stand beside engines of the other."""
        keys = ["schema", "content_key", "target", "library_version", "compute_capabilities"]
        # TensorRT times its kernels on the GPU at hand; TensorRT-RTX compiles them where they run.
        keys += [] if self.target == "rtx" else ["cuda_version", "device"]
        same = all(getattr(self, key) == getattr(other, key) for key in keys)
        return same and self.limits == other.limits


def engine_file(spec: EngineSpec, path: Path, graph_sha256: str) -> EngineFile:
    """The entry of an engine that was just written."""
    lengths = {size for axes in spec.fixed.values() for size in axes.values()}
    return EngineFile(
        path.name,
        path.stat().st_size,
        file_sha256(path),
        graph_sha256,
        spec.weights_bytes,
        lengths.pop() if lengths else None,
        spec.profiles,
    )


def directory_of(bundle: Path, target: str) -> Path:
    """Where the engines of a target lie."""
    return bundle / DIRECTORY / target


def record_path(bundle: Path, target: str) -> Path:
    """The file of a target's record."""
    return directory_of(bundle, target) / RECORD


def engine_targets(bundle: Path) -> tuple[str, ...]:
    """The libraries that a bundle has engines for."""
    return tuple(target for target in MODULES if record_path(bundle, target).exists())


def read_record(bundle: Path, target: str, key: PublicKey | None = None) -> EngineRecord | None:
    """The record, or None where there is none.

    Args:
        bundle: The bundle's directory.
        target: ``rtx`` or ``trt``.
        key: Whose signature it must have.

    Raises:
        LvlmError: A damaged one, or one that is not signed as it must be.
    """
    path, remedy = record_path(bundle, target), rebuild(bundle, target)
    try:
        content = read_described(path, key, remedy)
    except FileNotFoundError:
        return None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise LvlmError(f"{path} has schema {schema!r} and this version reads {SCHEMA}; {remedy}")
    record = records.read(EngineRecord, content, path, remedy)
    if record.target != target:
        raise records.mismatch(path, "target", target, repr(record.target), remedy)
    for graph, engine in record.engines.items():
        if not ENGINE_NAME.fullmatch(engine.file):
            entry = f"engines.{graph}.file"
            raise records.mismatch(path, entry, "a plain name, *.engine", repr(engine.file), remedy)
    return record


def check_engines(bundle: Path, target: str, key: PublicKey | None = None) -> None:
    """Hash every engine of a target.

    Args:
        bundle: The bundle's directory.
        target: ``rtx`` or ``trt``.
        key: Whose signature the record must have.

    Raises:
        LvlmError: There are none, the record is damaged or not signed, or an engine is not its.
    """
    record = read_record(bundle, target, key)
    again = rebuild(bundle, target)
    if record is None:
        raise LvlmError(f"{bundle} has no engines for {target}; {again}")
    for engine in record.engines.values():
        path = directory_of(bundle, target) / engine.file
        if not path.is_file() or file_sha256(path) != engine.sha256:
            raise LvlmError(f"{path} is damaged: its SHA-256 is not the record's; {again}")


def write_record(bundle: Path, record: EngineRecord) -> None:
    """Written whole, so that an interrupted build leaves a record that is true."""
    path = record_path(bundle, record.target)
    write_whole(path, json.dumps(to_json(record), indent=1))


def check_record(
    bundle: Path,
    manifest: Manifest,
    record: EngineRecord | None,
    target: str,
    library_version: str,
    compute_capability: str,
    cuda_version: str,
) -> EngineRecord:
    """Refuse engines that are not of this bundle, library or GPU.

    Args:
        bundle: The bundle's directory.
        manifest: What the bundle holds now.
        record: As ``read_record`` found it.
        target: ``rtx`` or ``trt``.
        library_version: Of the TensorRT that is to run them.
        compute_capability: Of the GPU that is to run them, ``sm87``.
        cuda_version: Of the driver there. TensorRT's engines hold kernels of one CUDA major
            version; TensorRT-RTX's are compiled where they run.

    Raises:
        LvlmError: What does not fit, and the command that rebuilds.
    """
    again = rebuild(bundle, target)
    if record is None:
        raise LvlmError(f"{bundle} has no engines for {target}; {again}")
    stale = [
        name
        for name, engine in record.engines.items()
        if name not in manifest.files or manifest.files[name].sha256 != engine.graph_sha256
    ]
    if record.content_key != manifest.content_key or stale:
        raise LvlmError(f"the engines of {bundle} were built from another bundle; {again}")
    missing = sorted(_reached(manifest, record) - set(record.engines))
    if missing:
        raise LvlmError(f"{bundle} has no engine of {missing[0]} for {target}; {again}")
    if record.library_version != library_version:
        raise LvlmError(
            f"the engines of {bundle} were built by version {record.library_version} and this is"
            f" {library_version}; {again}"
        )
    if compute_capability not in record.compute_capabilities:
        built = ", ".join(record.compute_capabilities)
        raise LvlmError(
            f"the engines of {bundle} were built for {built} and this GPU is {compute_capability};"
            f" {again}"
        )
    if record.precision != manifest.precision:
        raise LvlmError(
            f"the engines of {bundle} are {record.precision} and the bundle is"
            f" {manifest.precision}; {again}"
        )
    built_with = record.cuda_version
    if target == "trt" and built_with is not None and _major(built_with) != _major(cuda_version):
        raise LvlmError(
            f"the engines of {bundle} were built under CUDA {built_with} and this driver has"
            f" {cuda_version}; {again}"
        )
    return record


def _major(version: str) -> str:
    return version.split(".")[0]


def _reached(manifest: Manifest, record: EngineRecord) -> set[str]:
    """Graphs that some request within the record's limits passes."""
    return {
        name
        for budget, part in reachable_budgets(manifest, record.limits.images)
        for step in route(manifest, budget, part)
        for name in step.graphs
    }


def rebuild(bundle: Path, target: str) -> str:
    """The command that builds them anew."""
    return f"build them: lvlm-export engines {bundle} --target {target}"
