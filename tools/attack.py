"""Attacks on every reader: valid inputs are changed, then a command reads them as a user types it.

    python tools/attack.py DIRECTORY --invocations 2000 [--seed N] [--minutes M] [--table docs/attacks.md]

DIRECTORY gets a tiny checkpoint, its bundle and one input of every kind where it has none. Whatever comes in, a command ends with status 0, 1, 2 or 130, at
most one line says what is wrong, there is no traceback, nothing but its output changed, and it took
neither longer than 20 s nor more than 4 GB of memory. What breaks this is printed and kept below
DIRECTORY/findings, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

import mutations
from attack_targets import MAY_CHANGE, TARGETS, Target, contents, kept, make_inputs, sign_again

LONGEST_S = 20
MOST_MEMORY = 4 << 30
STATUSES = (0, 1, 2, 130)
# What stands on stderr beside the line of an error.
PROGRESS = re.compile(
    r"(?!error: )(loading PyTorch and reading the checkpoint.*|.+: \d+ of \d+, .+|.+ …)"
)

# What Rust writes of a panic before anybody can catch it.
PANIC = re.compile(
    r"^\n?thread '[^']*' (\(\d+\) )?panicked at .*?\nnote: [^\n]*RUST_BACKTRACE=[^\n]*\n?",
    re.M | re.S,
)


class TooSlow(BaseException):
    """Not an Exception, so that nothing turns it into a line."""


class OutOfTime(BaseException):
    """The minutes of the campaign are over."""


class Reached(BaseException):
    """A command got as far as the work that needs minutes: its input was accepted."""


@dataclass
class Counts:
    """A row of the table."""

    invocations: int = 0
    refused: int = 0
    accepted: int = 0
    tracebacks: int = 0
    other: int = 0
    seconds: float = 0.0


@dataclass
class Campaign:
    """A run of attacks.

    Attributes:
        directory: The inputs.
        counts: By kind of input.
        findings: What went wrong, each once for every kind and place.
        until: Time at which it stops.
    """

    directory: Path
    counts: dict[str, Counts] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    until: float = float("inf")

    def run(self, target: Target, invocations: int, number: int) -> None:
        """Attack one kind of input; ``number`` is the seed."""
        counts = self.counts.setdefault(target.kind, Counts())

        @seed(number)
        @settings(
            max_examples=invocations,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def attack(data: Any) -> None:
            if time.monotonic() > self.until:
                raise OutOfTime
            self.attack(target, counts, data.draw)

        try:
            attack()
        except (OutOfTime, Flaky):
            # hypothesis may find it odd that the time is over where it was not before.
            if time.monotonic() <= self.until:
                raise

    def check_inputs(self, target: Target) -> None:
        """Refuse to begin where a command does not take what is still valid: it would test nothing."""
        for name in target.files:
            told = [
                invoke([word.format(file=name) for word in words], self.directory)
                for words in target.commands
            ]
            if (0, "") not in told:
                raise SystemExit(f"no command takes the valid {name}: {told}")

    def attack(self, target: Target, counts: Counts, draw: mutations.Draw) -> None:
        """Change one file and type one command."""
        name = draw(st.sampled_from(target.files))
        words = [word.format(file=name) for word in draw(st.sampled_from(target.commands))]
        path, again = self.directory / name, draw(st.booleans())
        in_bundle = name.startswith("bundle/")
        with kept(self.directory, name, *(["bundle/manifest.json"] if in_bundle else [])):
            if draw(st.integers(0, 19)) == 0 and name != "stdin":
                mutations.put_no_file(path, draw(st.sampled_from(target.no_files)))
            else:
                path.write_bytes(target.mutate(draw, path.read_bytes()))
            if in_bundle and again:
                sign_again(self.directory, path)
            before = contents(self.directory)
            counts.invocations += 1
            start = time.monotonic()
            status, wrong = invoke(words, self.directory)
            counts.seconds += time.monotonic() - start
            changed = differences(before, contents(self.directory))
            if name.startswith(MAY_CHANGE):  # An output behind a link is written where that leads.
                written = os.path.relpath(os.path.realpath(path), os.path.realpath(self.directory))
                changed = [each for each in changed if each != written]
            if not wrong and changed:
                wrong = f"changed {', '.join(changed)}"
            counts.accepted += not wrong and status == 0
            counts.refused += not wrong and status != 0
            if wrong:
                traced = "Traceback" in wrong
                counts.tracebacks += traced
                counts.other += not traced
                self.keep(target, words, path, wrong)

    def keep(self, target: Target, words: list[str], path: Path, wrong: str) -> None:
        """Note what went wrong; of one kind and place, the first."""
        place = re.sub(r"\d+|'[^']*'", "…", wrong.strip().splitlines()[-1])[:150]
        frames = re.findall(r'File ".*?([^/"]+\.py)", line (\d+)', wrong)
        key = f"{target.kind}: {place} {':'.join(frames[-1]) if frames else ''}"
        if key in self.findings:
            return
        self.findings[key] = wrong
        number = len(self.findings)
        print(f"FOUND {number} {key}\n  lvlm-export {' '.join(words)}", flush=True)
        folder = self.directory.parent / "findings" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "what.txt").write_text(f"{words}\n{path.name}\n{wrong}", errors="replace")
        if path.is_file() and path.stat().st_size < 1 << 28:
            shutil.copyfile(path, folder / path.name)


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of what is not as it was."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def invoke(words: list[str], directory: Path) -> tuple[int, str]:
    """Type a command in a directory; its status, and what is wrong with how it ended."""
    from click.testing import CliRunner

    from lvlm_export.cli import cli

    stdin = (directory / "stdin").read_bytes()
    with contextlib.chdir(directory), stderr_of_libraries() as noise, at_most(LONGEST_S):
        try:
            result = CliRunner().invoke(cli, words, input=stdin)
        except TooSlow as late:
            return 1, "took longer than 20 s\n" + "".join(
                traceback.format_tb(late.__traceback__)[-6:]
            )
        except Reached:
            return 0, ""
    if isinstance(result.exception, Exception):
        return 1, "".join(traceback.format_exception(result.exception))
    lines = [*result.stderr.splitlines(), *noise]
    if "Traceback" in result.stderr:
        return 1, result.stderr
    if result.exit_code not in STATUSES:
        return 1, f"status {result.exit_code}"
    told = [line for line in lines if not PROGRESS.fullmatch(line)]
    if result.exit_code and not told and "FAIL" in result.stdout:
        return result.exit_code, ""  # the answer of ``verify``
    if result.exit_code and (len(told) != 1 or not told[0].startswith("error: ")):
        return 1, f"{len(told)} lines on stderr\n" + "\n".join(told)[:2000]
    return result.exit_code, ""


def last_line(words: list[str], directory: Path) -> str:
    """The line that a command ends with."""
    from click.testing import CliRunner

    from lvlm_export.cli import cli

    with contextlib.chdir(directory):
        result = CliRunner().invoke(cli, words, input=(directory / "stdin").read_bytes())
    return (result.stderr.splitlines() or [""])[-1]


@contextlib.contextmanager
def stderr_of_libraries() -> Iterator[list[str]]:
    """Lines that libraries write to the process's stderr, past Python's."""
    lines: list[str] = []
    saved = os.dup(2)
    with open(f"/tmp/attack.{os.getpid()}.stderr", "w+b") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += PANIC.sub("", file.read().decode(errors="replace")).splitlines()


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """TooSlow where a block takes longer."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stop_before_the_work() -> None:
    """Let ``build`` and ``profile`` end where their input is read and minutes of work begin."""
    from lvlm_export.bundle import build
    from lvlm_export.graphs.attention import NAME
    from lvlm_runtime.profile import run

    def export_graphs(checkpoint: Any, plan: Any, *_: Any) -> None:
        from lvlm_export.graphs.element_types import torch_dtype

        checkpoint.skeleton(torch_dtype(plan.options.effective_precision), NAME)
        raise Reached

    def profile_bundle(*_: Any) -> None:
        raise Reached

    build.export_graphs = export_graphs
    run.profile_bundle = profile_bundle


def limit_memory() -> None:
    """Allow 4 GB more of addresses than the libraries take that are loaded."""
    import onnxruntime  # noqa: F401
    import transformers  # noqa: F401

    # What is loaded stays; the collector need not walk through it again and again.
    gc.collect()
    gc.freeze()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def table(campaign: Campaign, number: int, seconds: float, binary: Path) -> str:
    """docs/attacks.md."""
    import platform
    from importlib.metadata import version

    packages = ("transformers", "onnxruntime", "tokenizers", "safetensors", "Pillow", "click")
    total = Counter[str]()
    for counts in campaign.counts.values():
        total.update(asdict(counts))
    lines = [
        "# Attacks",
        "",
        "Written by `make attacks`. A valid input is changed, in its structure, in its bytes or in what",
        "lies at its place (a directory, a pipe, a link that leads nowhere or to itself, 10 GB); then a",
        "command reads it as a user types it. It must end with status 0, 1, 2 or 130, with at most one",
        "line of error (behind what Rust writes of a panic in a library) and no traceback, without a change of any file but its output, within 20 s and",
        "4 GB. `make fuzz` runs 50,000 of them with a seed of its own, the test suite the first 2,000.",
        "",
        f"{total['invocations']:,} invocations with seed {number} in {seconds / 60:.0f} minutes on"
        f" {time.strftime('%Y-%m-%d')}; Python {platform.python_version()},"
        f" {platform.system()} {platform.machine()}, {os.cpu_count()} cores,",
        ", ".join(f"{name} {version(name)}" for name in packages) + ".",
        "",
        "| input | readers | invocations | refused | accepted | tracebacks | other faults |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    readers = {target.kind: target.reader for target in TARGETS}
    for kind, counts in campaign.counts.items():
        lines.append(
            f"| {kind} | {readers[kind]} | {counts.invocations:,} | {counts.refused:,} |"
            f" {counts.accepted:,} | {counts.tracebacks} | {counts.other} |"
        )
    lines.append(
        f"| all | | {total['invocations']:,} | {total['refused']:,} | {total['accepted']:,} |"
        f" {total['tracebacks']} | {total['other']} |"
    )
    if binary.exists():
        lines += [
            "",
            "The binary readers alone, with inputs that atheris (libFuzzer) derives from the code that they",
            "reach. A reader gives a value or an error of one line.",
            "",
            "| reader | inputs | faults |",
            "|---|---:|---:|",
        ]
        lines += [
            f"| {row['kind']} | {row['invocations']:,} | {int(row['failed'])} |"
            for row in json.loads(binary.read_text())
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--tiny", type=Path, help="with checkpoint and bundle, as the tests build it"
    )
    parser.add_argument("--invocations", type=int, default=2000)
    parser.add_argument("--seed", type=int, help="[a random one, which is printed]")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--kind", help="only targets whose kind holds this word")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    number = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    from lvlm_export.cli.console import quiet_libraries

    quiet_libraries()  # As the command does, before anything loads transformers.
    directory = options.directory / "inputs"
    shutil.rmtree(directory, ignore_errors=True)
    made = options.tiny
    if made is None:
        # Made anew each time: what lies there may be half of one, or another version's.
        made = options.directory / "tiny"
        shutil.rmtree(made, ignore_errors=True)
        import tiny
        from helpers import build_tiny

        build_tiny(tiny.llava(made / "checkpoint"), made / "bundle", 0.5)
    make_inputs(directory, made / "checkpoint", made / "bundle")
    os.environ["OMP_NUM_THREADS"] = "1"
    stop_before_the_work()
    limit_memory()
    print(f"seed {number}", flush=True)
    start = time.monotonic()
    campaign = Campaign(directory)
    chosen = [each for each in TARGETS if options.kind is None or options.kind in each.kind]
    parts = sum(each.weight for each in chosen)
    for target in chosen:
        campaign.check_inputs(target)
        if not options.invocations:
            continue
        # Its share of the time too, so that every kind has its turn.
        campaign.until = time.monotonic() + 60 * options.minutes * target.weight / parts
        campaign.run(target, math.ceil(options.invocations * target.weight / parts), number)
        counts = campaign.counts[target.kind]
        print(f"{target.kind}: {json.dumps(asdict(counts))}", flush=True)
    if options.table is not None:
        text = table(campaign, number, time.monotonic() - start, options.directory / "binary.json")
        options.table.write_text(text, encoding="utf-8")
    total = sum(each.invocations for each in campaign.counts.values())
    print(f"{total} invocations, {len(campaign.findings)} findings", flush=True)
    return bool(campaign.findings)


if __name__ == "__main__":
    sys.exit(main())
