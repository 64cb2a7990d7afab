"""First token, decode, file and memory of weights in fewer bits, interleaved in one run.

    python benchmarks/precision.py [--layout llava] [--rounds 7] [--precision int8 --precision int4]

Builds (once) bundles of a random checkpoint with the shapes of LLaVA-OneVision-0.5B for the CPU, in
float32 and at each precision, and asks all of them about one picture at both ratios by turns, after a
warm-up. A change is the median of what a round's pairs say, so that what else the machine does falls on
both alike. Resident memory is that of a process of its own that loaded one bundle and answered once. A
run ends with 1 when an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from first_token import METHOD, QUESTION, RATIOS, ensure_checkpoint, picture
from lvlm_runtime.bundle.bundle import WEIGHTS
from lvlm_runtime.session import Session
from report import WORK, environment, print_environment, print_table, save

FULL = "fp32"
PRECISIONS = ("int8", "int4")
# Aims against float32: at most this share of the file; at least so many times as fast.
AIM_FILE = {"int8": 0.29, "int4": 0.20}
AIM_FIRST, AIM_TOKEN = {"int8": 2.0}, {"int4": 3.5}
# Resident memory against weights, caches and 200 MB for the rest of the process.
AIM_RESIDENT, REST_BYTES = 1.15, 200_000_000


@dataclass
class Times:
    """Milliseconds per round, at one precision and ratio.

    Attributes:
        first: To the first token.
        token: Per token after it.
    """

    first: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)


def main() -> int:
    """Measure, print, save; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, help="directory of the bundles")
    parser.add_argument("--layout", choices=("onevision", "llava"), default="onevision")
    parser.add_argument("--checkpoint", type=Path, help="one of your own in place of the layout's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--answer-tokens", type=int, default=17)
    parser.add_argument("--threads", type=int, help="CPU threads; default one per core")
    parser.add_argument("--precision", action="append", dest="precisions", help="repeatable")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident is not None:
        print(json.dumps(resident(options.resident, options.threads, options.answer_tokens)))
        return 0
    names = (FULL, *(options.precisions or PRECISIONS))
    checkpoint = options.checkpoint or ensure_checkpoint(options.work, options.layout)
    bundles = {name: ensure_bundle(options.work, checkpoint, name) for name in names}
    memory = {name: measure_resident(bundle, options) for name, bundle in bundles.items()}
    before = environment()
    times = measure(bundles, options)
    return report(options.layout, times, memory, before)


def ensure_bundle(work: Path, checkpoint: Path, precision: str) -> Path:
    """A bundle of this working tree's exporter, built unless it is there."""
    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_export.plan.weight_formats import parse_precision
    from lvlm_runtime.progress import NoProgress

    print(f"building {checkpoint.name} in {precision} unless it is there …", flush=True)
    given = parse_precision(precision)
    plan = BuildOptions(
        RATIOS[1:], method=METHOD, precision=given.activations, weights=given.weights
    )
    bundle = work / f"{checkpoint.name}-{precision.replace(',', '-').replace('=', '-')}"
    opened = Checkpoint.open(checkpoint)
    build(opened, checkpoint.name, plan, bundle, NoProgress(), verify_samples=0, force=True)
    return bundle


def measure_resident(bundle: Path, options: argparse.Namespace) -> dict[str, int]:
    """Memory of a process of its own."""
    command = [sys.executable, __file__, "--resident", str(bundle)]
    command += ["--answer-tokens", str(options.answer_tokens)]
    command += [] if options.threads is None else ["--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def resident(bundle: Path, threads: int | None, answer_tokens: int) -> dict[str, int]:
    """In the child: load, answer once at the first ratio, and say what is resident then."""
    from lvlm_runtime.profile.subject import kv_cache_bytes

    session = Session.open(bundle, device="cpu", threads=threads)
    answer = session.generate(QUESTION, [picture()], RATIOS[0], max_new_tokens=answer_tokens)
    manifest = session.bundle.manifest
    budget = session.bundle.budget(RATIOS[0])
    text = answer.prompt_tokens - budget.layouts[0].tokens_in
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = next(line.split()[1] for line in status.splitlines() if "VmRSS" in line)
    return {
        "weights_bytes": manifest.files[WEIGHTS].size_bytes,
        "kv_bytes": kv_cache_bytes(session, budget.layouts[0], 1, text, answer_tokens),
        "resident_bytes": 1024 * int(kilobytes),
    }


def measure(
    bundles: dict[str, Path], options: argparse.Namespace
) -> dict[tuple[str, float], Times]:
    """Every bundle at every ratio by turns; the first round is not counted."""
    sessions = {
        name: Session.open(bundle, device="cpu", threads=options.threads)
        for name, bundle in bundles.items()
    }
    found = {(name, ratio): Times() for name in bundles for ratio in RATIOS}
    image = picture()
    for number in range(options.rounds + 1):
        for (name, ratio), times in found.items():
            answer = sessions[name].generate(
                QUESTION, [image], ratio, max_new_tokens=options.answer_tokens, ignore_stop=True
            )
            if number:
                times.first.append(answer.time_to_first_token_ms)
                times.token.append(1e3 / (answer.decode_tokens_per_s or float("nan")))
            print(
                f"round {number} of {options.rounds}, {name} at {ratio:g}:"
                f" {answer.time_to_first_token_ms:.0f} ms",
                flush=True,
            )
    return found


def report(
    layout: str,
    times: dict[tuple[str, float], Times],
    memory: dict[str, dict[str, int]],
    before: dict[str, Any],
) -> int:
    """Print and save; 1 when an aim is missed."""
    whole = memory[FULL]["weights_bytes"]
    results, missed = {}, []
    for (name, ratio), each in times.items():
        row = {
            "first_ms": median(each.first),
            "token_ms": median(each.token),
            "first_faster": pairwise(times[FULL, ratio].first, each.first),
            "token_faster": pairwise(times[FULL, ratio].token, each.token),
            "rounds": {"first_ms": each.first, "token_ms": each.token},
        }
        results[f"{name} at {ratio:g}"] = row
        missed += [
            f"{name} at {ratio:g}: {row[key]:.2f} times as fast {what}, {aims[name]:g} is the aim"
            for key, aims, what in (
                ("first_faster", AIM_FIRST, "to the first token"),
                ("token_faster", AIM_TOKEN, "per token"),
            )
            if name in aims and row[key] < aims[name]
        ]
    for name, each in memory.items():
        share = each["weights_bytes"] / whole
        if share > AIM_FILE.get(name, 1):
            missed.append(f"{name}: {share:.3f} of the file, {AIM_FILE[name]:g} is the aim")
        over = each["resident_bytes"] / (each["weights_bytes"] + each["kv_bytes"] + REST_BYTES)
        if over > AIM_RESIDENT:
            missed.append(f"{name}: resident {over:.2f} of its parts, {AIM_RESIDENT:g} is the aim")
    show(layout, results, memory)
    for line in missed:
        print(f"missed  {line}")
    content = {"results": results, "memory": memory, "missed": missed}
    save(f"precision.{layout}", {"before": before, "after": environment(), **content})
    print_environment(before)
    return int(bool(missed))


def pairwise(full: list[float], other: list[float]) -> float:
    """How many times as fast, the median over rounds."""
    return median(one / two for one, two in zip(full, other, strict=True))


def show(layout: str, results: dict[str, Any], memory: dict[str, dict[str, int]]) -> None:
    """Times, then sizes."""
    titles = ("", "first token ms", "against fp32", "token ms", "against fp32")
    cells = [
        (
            name,
            f"{row['first_ms']:.0f}",
            f"{row['first_faster']:.2f}x",
            f"{row['token_ms']:.1f}",
            f"{row['token_faster']:.2f}x",
        )
        for name, row in results.items()
    ]
    print_table(f"{layout}: medians", titles, cells)
    keys = ("weights_bytes", "kv_bytes", "resident_bytes")
    rows = [(name, *(f"{each[key] / 1e6:.1f}" for key in keys)) for name, each in memory.items()]
    print_table("MB", ("", "weights", "caches", "resident"), rows)


if __name__ == "__main__":
    sys.exit(main())
