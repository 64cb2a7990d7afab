"""A whole profile: conditions, rounds, energy, sweeps and memory, in this order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu, NoGpuError, find_gpu
from lvlm_profiles.energy import Meter, find_meter
from lvlm_profiles.missing import Missing
from lvlm_profiles.report import Caution, Report, conditions
from lvlm_profiles.report.figures import Accuracy, Energy, Sweep
from lvlm_runtime.profile.build_report import build_report
from lvlm_runtime.profile.findings import Findings
from lvlm_runtime.profile.memory_run import Job, Readings, read_memory
from lvlm_runtime.profile.options import ProfileOptions
from lvlm_runtime.profile.predicted import predict_costs
from lvlm_runtime.profile.rounds import measure_rounds, time_request
from lvlm_runtime.profile.subject import describe_machine, describe_request
from lvlm_runtime.profile.sweep import sweep_subgraphs
from lvlm_runtime.session import Session

# Requests are asked for so long, and so often at least, while energy is counted.
ENERGY_S, ENERGY_REQUESTS, IDLE_S = 3.0, 3, 1.0
# Called with what is being done, in words.
Say = Callable[[str], None]


def profile_bundle(bundle: Path, options: ProfileOptions, say: Say) -> Report:
    """Load a bundle, measure everything that the options name, and report it.

    Args:
        bundle: Its directory.
        options: What to measure, and how.
        say: Called with what is being done, between requests.

    Raises:
        UsageError: A ratio that the bundle does not have.
        LvlmError: The bundle cannot be loaded, the request does not fit, or the eval result is of
            another bundle.

    Example:
        >>> options = ProfileOptions(ratios=(0.33,), answer_tokens=2, iterations=5, warmup=1)
        >>> report = profile_bundle(Path("bundle"), options, say=lambda phase: None)
        >>> report.budgets[0].ttft_ms.summary.median > 0
        True
    """
    load_before = os.getloadavg()[0]
    start = time.perf_counter()
    session = Session.open(bundle, options.backend, options.device, options.threads)
    load_ms = (time.perf_counter() - start) * 1e3
    if options.accuracy is not None:
        options.accuracy.check(session.bundle.manifest)
    options = options.for_bundle(session.bundle)
    findings = collect_findings(session, options, load_ms, load_before, say)
    return build_report(session, options, findings)


def collect_findings(
    session: Session, options: ProfileOptions, load_ms: float, load_before: float, say: Say
) -> Findings:
    """Measure one thing after the other, the times first.

    Args:
        session: The model that answers.
        options: ``for_bundle`` of its bundle.
        load_ms: Time to load it.
        load_before: One-minute load average before that.
        say: Called with what is being done.
    """
    backend, manifest = session.chain.backend, session.bundle.manifest
    gpu, request = find_gpu(backend.device), describe_request(session, options)
    described = describe_machine(session, options.threads, gpu)
    watch = Watch(gpu, load_before)
    timings = measure_rounds(session, options, lambda phase, _: watch.note(phase, say))
    cautions = tuple(watch.cautions())
    energy = _energy(session, options, find_meter(backend.device, gpu), say)
    sweeps: tuple[Sweep, ...] | Missing = Missing("not asked for (--sweep)")
    if options.sweep:
        sweeps = sweep_subgraphs(session, say)
    accuracy: Mapping[float, Accuracy] | Missing = Missing("no eval result was given (--accuracy)")
    if options.accuracy is not None:
        accuracy = options.accuracy.rows
    ratios, reference = options.ratios, max(options.ratios)
    return Findings(
        machine=described,
        request=request,
        load_ms=load_ms,
        timings=timings,
        cautions=cautions,
        energy=energy,
        sweeps=sweeps,
        memory=_memory(session, options, say),
        costs=predict_costs(manifest, ratios, reference, request, options.roofline),
        accuracy=accuracy,
    )


class Watch:
    """Looks at the machine's condition while a measurement runs.

    Args:
        gpu: The GPU that runs the graphs, or why there is none to ask.
        load_before: One-minute load average before the run.
        root: Of the file system.
    """

    def __init__(self, gpu: Gpu | Missing, load_before: float, root: Path = machine.ROOT) -> None:
        self._gpu = None if isinstance(gpu, Missing) else gpu
        self._root, self._load = root, load_before
        self._throttled = conditions.throttle_count(root)
        self._clocks: tuple[float | None, float | None] = (None, None)
        self._phase = ""

    def note(self, phase: str, say: Say) -> None:
        """Called after every request; reads the GPU's clock when the warm-up is over."""
        if phase != self._phase:
            self._phase = phase
            say(phase)
            if phase == "measuring" and self._gpu is not None:
                self._clocks = _clocks(self._gpu)

    def cautions(self) -> list[Caution]:
        """What was found, when the run is over."""
        hot = ["the GPU's clock"] if self._gpu is not None and _too_hot(self._gpu) else []
        active = [*conditions.throttled_devices(self._root), *hot]
        after = conditions.throttle_count(self._root)
        return [
            *conditions.unlocked_clocks(self._root),
            *conditions.unknown_clocks(self._root),
            *conditions.other_load(self._load, machine.cores()),
            *conditions.thermal(self._throttled, after, active),
            *conditions.idle_desktop(*self._clocks),
        ]


def _clocks(gpu: Gpu) -> tuple[float | None, float | None]:
    try:
        return gpu.clocks_mhz()
    except NoGpuError:
        return None, None


def _too_hot(gpu: Gpu) -> bool:
    try:
        return gpu.too_hot()
    except NoGpuError:
        return False


def _energy(
    session: Session, options: ProfileOptions, meter: Meter | Missing, say: Say
) -> dict[float, Energy | Missing]:
    if isinstance(meter, Missing):
        return dict.fromkeys(options.ratios, meter)
    energy, tokens = {}, options.answer_tokens
    for ratio in options.ratios:
        say(f"energy at {ratio:g}")
        energy[ratio] = count_energy(
            meter, partial(time_request, session, options, ratio, tokens), tokens
        )
    return energy


def count_energy(
    meter: Meter, request: Callable[[], object], answer_tokens: int
) -> Energy | Missing:
    """Ask one request after the other while the meter counts, and wait once before it.

    Args:
        meter: Counts.
        request: Asks once.
        answer_tokens: Tokens of its answer.
    """
    try:
        with meter:
            time.sleep(IDLE_S)
        idle = meter.joules / meter.seconds
        count, end = 0, time.perf_counter() + ENERGY_S
        with meter:
            while count < ENERGY_REQUESTS or time.perf_counter() < end:
                request()
                count += 1
        temperature = meter.temperature_c()
    except (OSError, NoGpuError, KeyError) as error:
        return Missing(f"{meter.source} stopped answering ({error})")
    each = meter.joules / count
    return Energy(
        source=meter.source,
        scope=meter.scope,
        requests=count,
        seconds=meter.seconds,
        joules_per_request=each,
        joules_per_token=each / answer_tokens,
        mean_watts=meter.joules / meter.seconds,
        idle_watts=idle,
        temperature_c=temperature,
    )


def _memory(session: Session, options: ProfileOptions, say: Say) -> dict[float, Readings | Missing]:
    memory = {}
    for ratio in options.ratios:
        say(f"memory: a process of its own at {ratio:g}")
        memory[ratio] = read_memory(_job(session, options, ratio))
    return memory


def _job(session: Session, options: ProfileOptions, ratio: float) -> Job:
    """With paths that hold in any working directory, and what ``auto`` stood for."""
    backend = session.chain.backend
    return Job(
        bundle=str(session.bundle.directory.resolve()),
        backend=backend.name,
        device=backend.device,
        threads=options.threads,
        prompt=options.prompt,
        images=[str(image.resolve()) for image in options.images or ()],
        synthetic=1 if options.images is None else 0,
        ratio=ratio,
        answer_tokens=options.answer_tokens,
    )
