"""Bytes against the binary readers, guided by the code that they reach (atheris, libFuzzer).

    python tools/attack_binary.py DIRECTORY --seconds 60 [--seed N]

DIRECTORY holds the inputs of ``attack.py``, which every reader begins with. A reader gives a value or
an LvlmError; anything else is printed and kept below DIRECTORY/crashes, and the exit status is 1. The
counts go to DIRECTORY/binary.json, from where ``attack.py --table`` takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# What each reader begins with, and what it reads.
SEEDS = {
    "onnx": ("bundle/*.onnx", "graphs, ONNX files (protobuf)"),
    "safetensors": ("checkpoint/*.safetensors", "weights, safetensors headers"),
    "picture": ("picture.*", "pictures (Pillow)"),
    "gzip": ("*.gz", "questions, gzip"),
    "json": ("*/*.json", "JSON"),
}
# Bytes of an attack at most, and seconds that one may take.
LONGEST, LATEST_S = 1 << 16, 20


def reader(name: str, place: Path) -> Callable[[bytes], object]:
    """The reader, of bytes; those that want a file get one at ``place``."""
    import atheris

    with atheris.instrument_imports(include=["lvlm_runtime", "lvlm_profiles", "PIL", "json"]):
        from lvlm_profiles import readers
        from lvlm_runtime.graphs.reader import fix_input_sizes, read_model
        from lvlm_runtime.image.picture import load_image, picture_size

    def onnx(data: bytes) -> None:
        place.write_bytes(data)
        model = read_model(place)
        sizes = {each.name: {0: 2} for each in model.graph.inputs}
        fix_input_sizes(data, sizes)

    def safetensors(data: bytes) -> None:
        from lvlm_export.checkpoint.shards import WeightFiles, stored_tensors

        place.write_bytes(data)
        stored_tensors(WeightFiles((place,), {}))

    def picture(data: bytes) -> None:
        picture_size(data)
        load_image(data)

    readers_of = {
        "onnx": onnx,
        "safetensors": safetensors,
        "picture": picture,
        "gzip": lambda data: list(readers.parse_json_lines(readers.decode(readers.unzip(data)))),
        "json": lambda data: readers.parse_json(readers.decode(data)),
    }
    return readers_of[name]


def attack(name: str, directory: Path, options: list[str]) -> None:
    """Run libFuzzer on a reader; does not return."""
    import atheris

    from lvlm_profiles.readers import UnreadableError
    from lvlm_runtime.errors import LvlmError

    read = reader(name, Path(f"/dev/shm/attack.{os.getpid()}"))

    def once(data: bytes) -> None:
        try:
            read(data)
        except (LvlmError, UnreadableError) as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error}") from error

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


def main() -> int:
    """Attack every reader in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--reader", help="only this one")
    parser.add_argument("--here", nargs=argparse.REMAINDER, help="run it in this process")
    options = parser.parse_args()
    if options.here is not None:
        attack(options.reader, options.directory, options.here)
    print(f"seed {options.seed}", flush=True)
    rows = []
    for name in [options.reader] if options.reader else SEEDS:
        pattern, title = SEEDS[name]
        corpus, crashes = (options.directory / each / name for each in ("corpus", "crashes"))
        for folder in (corpus, crashes):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (options.directory / "inputs").glob(pattern):
            if path.stat().st_size <= LONGEST:
                (corpus / path.name).write_bytes(path.read_bytes())
        limits = [
            f"-max_total_time={options.seconds}",
            f"-seed={options.seed}",
            f"-max_len={LONGEST}",
        ]
        limits += [f"-timeout={LATEST_S}", "-rss_limit_mb=4096", "-print_final_stats=1"]
        command = [sys.executable, __file__, str(options.directory), "--reader", name, "--here"]
        done = subprocess.run(
            [*command, *limits, f"-artifact_prefix={crashes}/", str(corpus)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        found = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        count = int(found[1]) if found else 0
        rows.append({"kind": title, "invocations": count, "failed": bool(done.returncode)})
        print(f"{title}: {count} inputs, status {done.returncode}", flush=True)
        if done.returncode or not count:
            print(done.stderr[-3000:], flush=True)
    (options.directory / "binary.json").write_text(json.dumps(rows))
    return any(row["failed"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
