"""A whole profile: conditions, rounds, memory, energy and sweeps, in this order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.device import Device
from lvlm_profiles.devices.nvml import Gpu, NoGpuError, find_gpu
from lvlm_profiles.energy import Meter, find_meter
from lvlm_profiles.missing import Missing
from lvlm_profiles.report import Caution, Report, conditions
from lvlm_profiles.report.figures import Accuracy, Energy
from lvlm_runtime.backends import Backend
from lvlm_runtime.profile.build_report import build_report
from lvlm_runtime.profile.memory_run import Job, Readings, read_memory
from lvlm_runtime.profile.rounds import ProfilePlan, ask, measure
from lvlm_runtime.profile.subject import describe_machine, describe_request
from lvlm_runtime.profile.sweep import sweep
from lvlm_runtime.session import Session

# Requests are asked for so long, and so often at least, while energy is counted.
ENERGY_S, ENERGY_REQUESTS, IDLE_S = 3.0, 3, 1.0
# Told what is being done, in words.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a profile is made of.

    Attributes:
        plan: What to measure.
        bundle: Where the bundle lies.
        images: Picture files; empty for one made for the profile.
        threads: CPU threads; None for one per physical core.
        load_ms: Time to load the bundle.
        load_before: One-minute load average before that.
        accuracy: Ratio -> accuracy.
        sweep: Measure latency over token counts too.
        device: Device profile for the roofline; None for none.
        tool: Name and version of the program.
    """

    plan: ProfilePlan
    bundle: Path
    images: tuple[Path, ...]
    threads: int | None
    load_ms: float
    load_before: float
    accuracy: Mapping[float, Accuracy]
    sweep: bool
    device: Device | None
    tool: str


def profile_session(session: Session, options: Options, say: Say) -> Report:
    """Measure everything that was asked for.

    Raises:
        UsageError: A ratio that the bundle does not have.
        LvlmError: The request does not fit.
    """
    plan, execution = options.plan, session.chain.backend.device
    gpu = find_gpu(execution)
    request = describe_request(session, plan)
    described = describe_machine(session, options.threads, gpu)
    watch = Watch(gpu, options.load_before)
    found = measure(session, plan, lambda what, ratio: watch.note(what, ratio, say))
    cautions = watch.cautions()
    meter = find_meter(execution, gpu)
    energy = {ratio: _energy(session, plan, ratio, meter, say) for ratio in plan.ratios}
    sweeps = sweep(session, say) if options.sweep else ()
    memory: dict[float, Readings | Missing] = {}
    for ratio in plan.ratios:
        say(f"memory: a process of its own at {ratio:g}")
        memory[ratio] = read_memory(_job(options, ratio, session.chain.backend))
    return build_report(
        session,
        plan,
        found,
        tool=options.tool,
        machine=described,
        request=request,
        load_ms=options.load_ms,
        memory=memory,
        energy=energy,
        accuracy=options.accuracy,
        sweeps=sweeps,
        device=options.device,
        cautions=cautions,
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

    def note(self, phase: str, ratio: float, say: Say) -> None:
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
    session: Session, plan: ProfilePlan, ratio: float, meter: Meter | Missing, say: Say
) -> Energy | Missing:
    if isinstance(meter, Missing):
        return meter
    say(f"energy at {ratio:g}")
    return count_energy(meter, lambda: ask(session, plan, ratio, plan.answer_tokens), plan)


def count_energy(
    meter: Meter, request: Callable[[], object], plan: ProfilePlan
) -> Energy | Missing:
    """Ask one request after the other while the meter counts, and wait once before it."""
    try:
        with meter:
            time.sleep(IDLE_S)
        idle = meter.joules / meter.seconds
        asked, end = 0, time.perf_counter() + ENERGY_S
        with meter:
            while asked < ENERGY_REQUESTS or time.perf_counter() < end:
                request()
                asked += 1
        temperature = meter.temperature_c()
    except (OSError, NoGpuError, KeyError) as error:
        return Missing(f"{meter.source} stopped answering ({error})")
    each = meter.joules / asked
    return Energy(
        source=meter.source,
        scope=meter.scope,
        requests=asked,
        seconds=meter.seconds,
        joules_per_request=each,
        joules_per_token=each / plan.answer_tokens,
        mean_watts=meter.joules / meter.seconds,
        idle_watts=idle,
        temperature_c=temperature,
    )


def _job(options: Options, ratio: float, backend: Backend) -> Job:
    plan = options.plan
    return Job(
        bundle=str(options.bundle.resolve()),
        backend=backend.name,
        device=backend.device,
        threads=options.threads,
        prompt=plan.prompt,
        images=[str(image.resolve()) for image in options.images],
        synthetic=0 if options.images else len(plan.images),
        ratio=ratio,
        answer_tokens=plan.answer_tokens,
    )
