"""``lvlm-export engines``: TensorRT engines of a bundle. Needs neither torch nor, for rtx, a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import bundle_argument, json_option, wide_option

if TYPE_CHECKING:
    from lvlm_profiles.devices.device import Device
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.bundle.manifest import Manifest
    from lvlm_runtime.engines.build import EngineResult
    from lvlm_runtime.engines.limits import Limits


@click.command(short_help="Build a bundle's TensorRT engines.")
@bundle_argument
@click.option(
    "--target",
    type=click.Choice(["rtx", "trt"]),
    help="TensorRT-RTX (needs no GPU to build) or the TensorRT of this machine [the device's, or rtx].",
)
@click.option(
    "--device",
    metavar="NAME",
    help="Device profile: target, GPU and limits that are not given come from it, and its memory"
    " is checked first (lvlm-export list targets).",
)
@click.option(
    "--compute-capability",
    "capabilities",
    metavar="SM",
    multiple=True,
    help="GPU that the engines are for, sm87; repeatable [rtx: sm80 to sm121; trt: this machine's].",
)
@click.option(
    "--text-tokens", type=click.IntRange(1), help="Longest text of a prompt [512 if it fits]."
)
@click.option(
    "--answer-tokens", type=click.IntRange(1), help="Longest answer in tokens [512 if it fits]."
)
@click.option(
    "--images",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Most pictures of a prompt.",
)
@click.option(
    "--workspace-mb",
    type=click.IntRange(1),
    help="Most scratch memory of a layer, in MB [the library's own limit].",
)
@wide_option
@json_option
def engines(
    bundle: Path,
    target: str | None,
    device: str | None,
    capabilities: tuple[str, ...],
    text_tokens: int | None,
    answer_tokens: int | None,
    images: int,
    workspace_mb: int | None,
    as_json: bool,
) -> None:
    """Build one engine per graph, with one optimisation profile per token budget and one for decode.

    Engines that are there already are kept; an interrupted build goes on where it stopped.
    """
    from lvlm_export.cli.console import echo_json, open_progress
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.engines.build import EngineSettings, build_engines

    opened = Bundle.open(bundle)
    profile = None if device is None else device_with_engines(device)
    if profile is not None:
        target = target or profile.target
        capabilities = capabilities or (profile.compute_capability or "",)
        text_tokens = text_tokens or profile.defaults.text_tokens
        answer_tokens = answer_tokens or profile.defaults.answer_tokens
    target = target or "rtx"
    settings = EngineSettings(
        target,
        limits(opened.manifest, text_tokens, answer_tokens, images),
        compute_capabilities(target, capabilities),
        None if workspace_mb is None else workspace_mb * 10**6,
    )
    if profile is not None:
        check_device(opened, settings.limits, profile)
    check_operators(opened, target)
    result = build_engines(opened, settings, open_progress())
    if as_json:
        echo_json(record(result))
    else:
        show(result, opened.directory)


def check_operators(bundle: Bundle, target: str) -> None:
    """Refuse graphs that the TensorRT of this machine would refuse, in seconds instead of minutes.

    Raises:
        LvlmError: Names the first of them and what to build instead, or there is no TensorRT.
    """
    from lvlm_export.cli.commands.check import refusal
    from lvlm_runtime.errors import LvlmError
    from lvlm_runtime.graphs.gate import check_bundle, parser_of
    from lvlm_runtime.tensorrt.library import open_library

    parser = parser_of(target, open_library(target).version)
    violations = [] if parser is None else check_bundle(bundle, parser)
    if parser is not None and violations:
        raise LvlmError(refusal(bundle, parser, violations))


def build_beside(bundle: Path) -> None:
    """Engines of a bundle that was just built, for every GPU and this model's default limits."""
    from lvlm_export.cli.console import open_progress
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.engines.build import EngineSettings, build_engines

    opened = Bundle.open(bundle)
    settings = EngineSettings(
        "rtx", limits(opened.manifest, None, None, 1), compute_capabilities("rtx", ())
    )
    show(build_engines(opened, settings, open_progress()), opened.directory)


def device_with_engines(name: str) -> Device:
    """A device profile; UsageError for a device that has no engines."""
    from lvlm_profiles.devices.device import load_device
    from lvlm_runtime.errors import UsageError

    profile = load_device(name)
    if profile.target == "cpu":
        raise UsageError(f"{profile.title} runs the graphs themselves; there are no engines for it")
    return profile


def check_device(bundle: Bundle, limits: Limits, profile: Device) -> None:
    """Print what the largest request needs there; LvlmError where it does not fit."""
    from lvlm_profiles.cost.memory import describe
    from lvlm_runtime.engines.memory import check_memory

    need = check_memory(bundle, limits, profile)
    say(f"{profile.title}: needs {describe(need)}", err=True)


def limits(manifest: Manifest, text: int | None, answer: int | None, images: int) -> Limits:
    """The largest request: what was asked for, and the defaults of this model for the rest."""
    from lvlm_runtime.engines.limits import Limits, default_limits

    default = default_limits(manifest)
    return Limits(text or default.text_tokens, answer or default.answer_tokens, images)


def compute_capabilities(target: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """What the engines are for. TensorRT builds for the one GPU of this machine."""
    from lvlm_runtime.errors import LvlmError, UsageError
    from lvlm_runtime.tensorrt.cuda import open_driver
    from lvlm_runtime.tensorrt.library import RTX_COMPUTE_CAPABILITIES

    if target == "rtx":
        return names or RTX_COMPUTE_CAPABILITIES
    try:
        here = open_driver().compute_capability
    except LvlmError as error:
        if len(names) == 1:
            return names
        raise UsageError(
            "TensorRT builds for the GPU of this machine; name it once, --compute-capability sm87"
            f" for an Orin ({error})"
        ) from None
    if names not in ((), (here,)):
        raise UsageError(
            f"TensorRT builds for the GPU of this machine, {here}, and not for {', '.join(names)}"
        )
    return (here,)


def record(result: EngineResult) -> dict[str, Any]:
    """The result as plain JSON types."""
    from lvlm_runtime.bundle.manifest import to_json

    weights, total = result.totals()
    return {
        **to_json(result.record),
        "built": list(result.built),
        "weights_bytes": weights,
        "engines_bytes": total,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def show(result: EngineResult, bundle: Path) -> None:
    """One row per engine, then the sum."""
    from lvlm_export.cli.console import new_table, show_table, size
    from lvlm_runtime.engines.record import directory_of

    table = new_table(
        "graph",
        "profiles",
        "weights",
        "engine",
        "overhead",
        right=("weights", "engine", "overhead"),
    )
    for graph, engine in result.record.engines.items():
        names = ", ".join("+".join(profile.names) for profile in engine.profiles) or "all static"
        over = engine.size_bytes - engine.weights_bytes
        table.add_row(graph, names, size(engine.weights_bytes), size(engine.size_bytes), size(over))
    show_table(table, ("overhead",))
    weights, total = result.totals()
    record = result.record
    say(
        f"weights {size(weights)}, engines {size(total)}, overhead {size(total - weights)};"
        f" peak memory {size(result.peak_memory_bytes)}"
    )
    say(
        f"built by version {record.library_version} for {', '.join(record.compute_capabilities)};"
        f" at most {record.limits.text_tokens} text tokens, {record.limits.answer_tokens} answer tokens"
        f" and {record.limits.images} picture(s)"
    )
    say(f"engines {directory_of(bundle, record.target)}")
