"""Peak memory of one budget, in a process of its own.

Arenas keep what the largest request needed, so a process that has asked one budget cannot tell
what another takes. The process reads a request as JSON from stdin, loads the bundle, asks once and
prints the readings as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lvlm_profiles.devices.memory_probe import open_probe
from lvlm_profiles.devices.nvml import find_gpu
from lvlm_profiles.missing import Missing
from lvlm_profiles.processes import python_command
from lvlm_profiles.readers import parse_json

TIMEOUT_S = 900


@dataclass(frozen=True)
class Job:
    """What to ask.

    Attributes:
        bundle: The bundle.
        backend: Key in ``BACKENDS``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; None for one per physical core.
        prompt: The question.
        images: Picture files.
        synthetic: Pictures made for the profile, in place of files.
        ratio: The budget.
        answer_tokens: Tokens of the answer.
    """

    bundle: str
    backend: str
    device: str
    threads: int | None
    prompt: str
    images: Sequence[str]
    synthetic: int
    ratio: float
    answer_tokens: int


@dataclass(frozen=True)
class Readings:
    """Bytes at the points that matter.

    Attributes:
        kind: Of the probe.
        before: Before the bundle was loaded.
        loaded: After that.
        load_peak: Highest while it was loaded.
        peak: Highest during the request.
    """

    kind: str
    before: int
    loaded: int
    load_peak: int
    peak: int


def read_memory(job: Job) -> Readings | Missing:
    """Run a job in a process of its own."""
    try:
        done = subprocess.run(
            python_command("lvlm_runtime.profile.memory_run"),
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Missing(f"the process that measures memory took longer than {TIMEOUT_S} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return Missing(f"the process that measures memory failed: {last}")
    answer = parse_json(lines[-1])
    return Missing(answer["reason"]) if "reason" in answer else Readings(**answer)


def run_job(job: Job) -> Readings | Missing:
    """Load, ask and read, in this process."""
    # Everything that the request imports is loaded before the first reading.
    from lvlm_runtime.backends import open_backend
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.image import synthetic
    from lvlm_runtime.session import Picture, Session

    backend = open_backend(job.backend, job.device, job.threads)
    probe = open_probe(backend.device, find_gpu(backend.device))
    if isinstance(probe, Missing):
        return probe
    bundle = Bundle.open(job.bundle)
    images: list[Picture] = [synthetic.picture() for _ in range(job.synthetic)]
    images += [Path(image) for image in job.images]
    before = probe.used_bytes()
    with probe:
        session = Session.load(bundle, job.backend, job.device, job.threads)
    loaded, load_peak = probe.used_bytes(), probe.peak_bytes
    with probe:
        session.generate(
            job.prompt, images, job.ratio, max_new_tokens=job.answer_tokens, ignore_stop=True
        )
    return Readings(probe.kind, before, loaded, load_peak, probe.peak_bytes)


def main() -> None:
    """Read a job from stdin, print its readings, or the reason why there are none."""
    print(json.dumps(asdict(run_job(Job(**parse_json(sys.stdin.read()))))))


if __name__ == "__main__":
    main()
