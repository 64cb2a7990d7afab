"""Peak memory of an export against its bound: the checkpoint plus one layer's worth of copies.

    python benchmarks/export_memory.py

The export of a LLaVA-OneVision-0.5B-shaped checkpoint runs in a process of its own. Counted is
the kernel's high-water mark of resident memory (``VmHWM``) above the resident memory after the
imports: anonymous pages and mapped file pages alike, so pages of the checkpoint's shards that are
mapped while a tensor is read count as memory. Pages of files that are only written or read
(``weights.bin``) lie in the page cache of the system, belong to no process and are not counted.
``RssAnon``, memory that cannot be given back to a file, is sampled beside it every 10 ms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from report import WORK, environment, print_environment, print_table, save

SAMPLE_S = 0.01
PRECISION_BYTES = {"fp32": 4, "fp16": 2}


def main() -> int:
    """Measure, print, save; 1 when the export is over the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=WORK, help="directory of checkpoint and bundles"
    )
    parser.add_argument("--precision", choices=PRECISION_BYTES, default="fp32")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkpoint, bundle = options.work / "onevision", options.work / "memory-bundle"
    if options.child:
        print(json.dumps(export(checkpoint, bundle, options.precision)))
        return 0
    if not (checkpoint / "newline.safetensors").exists():
        import shapes

        shapes.write_onevision(checkpoint)
    result = measure(options)
    shutil.rmtree(bundle)
    return report(result, checkpoint, options.precision)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the export in a fresh process; returns what it printed."""
    command = [sys.executable, __file__, "--child", "--work", str(options.work)]
    command += ["--precision", options.precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def export(checkpoint: Path, bundle: Path, precision: str) -> dict[str, Any]:
    """Build a bundle and return time and memory (in the child)."""
    import onnxruntime  # noqa: F401  (the build imports it late; its code is no copy of weights)
    import torch.onnx  # noqa: F401

    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_runtime.progress import NoProgress

    opened = Checkpoint.open(checkpoint)
    # 5 sets VmHWM back to the present size. Source: Linux Documentation/filesystems/proc.rst.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    baseline, anon = memory("VmRSS"), memory("RssAnon")
    start = time.perf_counter()
    with PeakAnon() as peak:
        options = BuildOptions(ratios=(0.33,), method="illava_v1", precision=precision)
        build(opened, "bench", options, bundle, NoProgress(), verify_samples=0, force=True)
    return {
        "baseline_bytes": baseline,
        "peak_bytes": memory("VmHWM") - baseline,
        "peak_anonymous_bytes": peak.bytes - anon,
        "seconds": time.perf_counter() - start,
        "weights_bytes": (bundle / "weights.bin").stat().st_size,
    }


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class PeakAnon:
    """Samples ``RssAnon`` in a thread; the kernel keeps no high-water mark of it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> PeakAnon:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.bytes = max(self.bytes, memory("RssAnon"))


def report(result: dict[str, Any], checkpoint: Path, precision: str) -> int:
    """Print and save; 1 when over the bound."""
    size, layer = checkpoint_bytes(checkpoint, PRECISION_BYTES[precision])
    within = result["peak_bytes"] <= size + layer
    where = environment()
    rows = [
        ("checkpoint on disk", size),
        (f"largest tensor in {precision} (token table)", layer),
        ("bound: their sum", size + layer),
        ("peak above the imports (VmHWM)", result["peak_bytes"]),
        ("of it anonymous (RssAnon)", result["peak_anonymous_bytes"]),
        ("resident after the imports", result["baseline_bytes"]),
        ("weights.bin", result["weights_bytes"]),
    ]
    print_table("Memory of an export", ("", "MB"), [(name, f"{n / 1e6:.0f}") for name, n in rows])
    print(f"{result['seconds']:.0f} s; {'within' if within else 'OVER'} the bound")
    print_environment(where)
    content = {"environment": where, "precision": precision, "checkpoint_bytes": size}
    save(
        f"export_memory.{precision}",
        {**content, "layer_bytes": layer, "within_bound": within, **result},
    )
    return 0 if within else 1


def checkpoint_bytes(checkpoint: Path, itemsize: int) -> tuple[int, int]:
    """Size of all shards, and of the largest tensor in the export's precision."""
    size = largest = 0
    for path in checkpoint.glob("*.safetensors"):
        size += path.stat().st_size
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        spans = [entry["data_offsets"] for entry in header.values()]
        largest = max(largest, *((end - start) // 2 * itemsize for start, end in spans))
    return size, largest


if __name__ == "__main__":
    sys.exit(main())
