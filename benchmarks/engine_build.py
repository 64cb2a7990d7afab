"""Time, memory and size of TensorRT-RTX engines of a LLaVA-OneVision-0.5B-shaped checkpoint.

    python benchmarks/engine_build.py [--work DIRECTORY] [--layers N] [--precision int8]

Writes (once) a random checkpoint with the shapes of LLaVA-OneVision-0.5B, builds a bundle with four
budgets for TensorRT-RTX, and one engine per graph for all GPUs from Ampere on; no GPU is needed. Every
engine is built in a process of its own, so that its peak memory is its own: the aim
is for the largest of them. Wall time counts what other programs took of the cores, processor time
does not; both are kept, with the load of the machine. A run ends with 1 when an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lvlm_runtime.bundle.bundle import Bundle
from report import WORK, environment, print_environment, print_table, save

RATIOS = (1.0, 0.66, 0.5, 0.33)
# Aims, on two cores: all engines together, and the largest process.
AIM_MINUTES, AIM_GB = 10.0, 10.0


def main() -> int:
    """Build, print, save; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=WORK, help="directory of checkpoint and bundle"
    )
    parser.add_argument("--layers", type=int, help="cut both towers to so many layers, for a trial")
    parser.add_argument("--precision", default="fp16", help="as of lvlm-export build")
    parser.add_argument("--engine", nargs=2, metavar=("BUNDLE", "GRAPH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(build_one(Path(options.engine[0]), options.engine[1])))
        return 0
    bundle = ensure_bundle(options.work, options.layers, options.precision)
    before = environment()
    print_environment(before)
    rows = [measured(bundle.directory, graph) for graph in graphs(bundle)]
    return report(rows, before, options.layers, options.precision)


def ensure_bundle(work: Path, layers: int | None, precision: str) -> Bundle:
    """The bundle with four budgets, built unless it is there."""
    import shapes
    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_export.plan.weight_formats import parse_precision
    from lvlm_runtime.progress import NoProgress

    name = "onevision" if layers is None else f"onevision-{layers}"
    if layers is not None:
        shapes.SIGLIP_SO400M["num_hidden_layers"] = layers
        shapes.QWEN2_0_5B["num_hidden_layers"] = layers
    checkpoint = work / name
    if not (checkpoint / "newline.safetensors").exists():
        print("writing the checkpoint …", flush=True)
        shapes.write_onevision(checkpoint)
    print("building the bundle unless it is there …", flush=True)
    bundle = work / f"{name}-rtx-{precision}"
    given = parse_precision(precision)
    options = BuildOptions(
        ratios=RATIOS[1:],
        method="illava_v1",
        target="rtx",
        precision=given.activations,
        weights=given.weights,
    )
    opened = Checkpoint.open(checkpoint)
    build(opened, name, options, bundle, NoProgress(), verify_samples=0, force=True)
    return Bundle.open(bundle)


def graphs(bundle: Bundle) -> list[str]:
    """The graphs that engines are built from, weighted ones first."""
    return [spec.graph for spec in specs(bundle)]


def specs(bundle: Bundle) -> Any:
    """What ``lvlm-export engines`` would build."""
    from lvlm_runtime.engines.limits import default_limits
    from lvlm_runtime.engines.plan import plan_engines

    return plan_engines(bundle, default_limits(bundle.manifest))


def measured(bundle: Path, graph: str) -> dict[str, Any]:
    """Build one engine in a process of its own."""
    command = [sys.executable, __file__, "--engine", str(bundle), graph]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row["process_s"] = time.perf_counter() - start
    print(f"{graph}: {row['wall_s']:.1f} s, {row['peak_bytes'] / 1e9:.2f} GB", flush=True)
    return row


def build_one(directory: Path, graph: str) -> dict[str, Any]:
    """In the child: build, and return time and memory."""
    from lvlm_runtime.bundle.bundle import read_manifest
    from lvlm_runtime.engines.builder import build_engine
    from lvlm_runtime.tensorrt.library import RTX_COMPUTE_CAPABILITIES, open_library

    bundle = Bundle(directory, read_manifest(directory))
    spec = next(each for each in specs(bundle) if each.graph == graph)
    library = open_library("rtx")
    start, used = time.perf_counter(), time.process_time()
    engine = build_engine(library, spec, bundle, RTX_COMPUTE_CAPABILITIES)
    return {
        "graph": graph,
        "profiles": len(spec.profiles),
        "wall_s": time.perf_counter() - start,
        "processor_s": time.process_time() - used,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "weights_bytes": spec.weights_bytes,
        "engine_bytes": engine.nbytes,
        "library": library.title,
    }


def report(
    rows: list[dict[str, Any]], before: dict[str, Any], layers: int | None, precision: str
) -> int:
    """Print and save; 1 when an aim is missed."""
    cells = [
        (
            row["graph"],
            str(row["profiles"]),
            f"{row['wall_s']:.1f}",
            f"{row['processor_s']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
            f"{row['weights_bytes'] / 1e6:.1f}",
            f"{row['engine_bytes'] / 1e6:.1f}",
        )
        for row in rows
    ]
    titles = ("engine", "profiles", "s", "processor s", "peak GB", "weights MB", "engine MB")
    print_table("engines, four budgets", titles, cells)
    total = {
        key: sum(row[key] for row in rows)
        for key in ("wall_s", "processor_s", "process_s", "weights_bytes", "engine_bytes")
    }
    peak = max(row["peak_bytes"] for row in rows)
    minutes = total["wall_s"] / 60
    over = total["engine_bytes"] / total["weights_bytes"]
    print(
        f"{len(rows)} engines in {minutes:.1f} minutes ({total['processor_s'] / 60:.1f} of processor"
        f" time), at most {peak / 1e9:.2f} GB, {over:.3f} of their weights"
    )
    names = ["engine_build", *([] if layers is None else [f"{layers}-layers"])]
    names += [] if precision == "fp16" else [precision]
    path = save(
        ".".join(names),
        {
            "precision": precision,
            "before": before,
            "after": environment(),
            "library": rows[0]["library"],
            "ratios": RATIOS,
            "engines": rows,
            "total": {**total, "peak_bytes": peak},
            "aims": {"minutes": AIM_MINUTES, "gb": AIM_GB},
            "note": "The machine was shared: wall times hold what other programs took.",
        },
    )
    print(f"wrote {path}")
    return int(minutes > AIM_MINUTES or peak > AIM_GB * 1e9)


if __name__ == "__main__":
    sys.exit(main())
