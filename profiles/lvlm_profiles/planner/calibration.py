"""A plan's speed from a measured profile: shares of the roofline, fitted to its stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lvlm_profiles.cost.fit import Fit, Measured, best_seen, fit_shares
from lvlm_profiles.cost.request import Amount, Work, decode_works, prefill_works
from lvlm_profiles.cost.roofline import COPY, PUBLISHED, RatesError, kind_of, rates_of
from lvlm_profiles.cost.units import precision_of
from lvlm_profiles.devices.device import Device
from lvlm_profiles.errors import LvlmError
from lvlm_profiles.planner.judge import Speed
from lvlm_profiles.records import read
from lvlm_profiles.report import REMEDY, Report
from lvlm_profiles.report.figures import BudgetFigures, StageTime
from lvlm_profiles.shapes.dims import ModelDims, TokenPath

DECODE = "decode"


@dataclass(frozen=True)
class Calibration:
    """A fit and what it was made from.

    Attributes:
        fit: Shares and errors.
        speed: For the planner.
        stages: Timed stages that the fit used.
        source: Model, machine and day of the report.
    """

    fit: Fit
    speed: Speed
    stages: int
    source: str


def calibrate(report: Report, dims: ModelDims, device: Device) -> Calibration:
    """Fit to a report's stage medians, over all its budgets.

    Args:
        report: Of a bundle of this model, measured on this kind of device.
        dims: The model that is planned for.
        device: The device that is planned for.

    Raises:
        LvlmError: Another model or kind of device, a report without or with damaged shapes, or one
            that has no stage to fit to.
    """
    _check_model(report, dims)
    _check_device(report, device)
    precision = precision_of(report.model.precision).name
    measured = [each for budget in report.budgets for each in measured_stages(dims, budget)]
    try:
        rates, published = rates_of(device, precision), True
    except RatesError:
        rates, published = best_seen(measured, precision), False
    where = report.machine.board or report.machine.accelerator or report.machine.processor
    source = f"{report.model.name} on {where}, {report.created[:10]}"
    fit = fit_shares(measured, precision, rates, f"measured: {source}", PUBLISHED)
    speed = Speed(fit.shares) if published else Speed(fit.shares, rates, precision)
    return Calibration(fit, speed, len(measured), source)


def measured_stages(dims: ModelDims, budget: BudgetFigures) -> Iterator[Measured]:
    """The stages of a report's budget that the cost model knows; others are left out.

    Raises:
        LvlmError: The budget's token counts are damaged.
    """
    where = f"the report's path at ratio {budget.ratio:g}"
    path = read(TokenPath, budget.path, where, REMEDY)
    half = max(0, path.answer_tokens - 2) // 2
    known = _by_name(prefill_works(dims, path)), _by_name(decode_works(dims, path, half))
    for stage in budget.stages:
        found = known[stage.phase == DECODE].get(stage.name)
        if found is not None and found[0] != COPY:
            yield Measured(found[0], _label(budget, stage), found[1], stage.summary.median)


def _by_name(works: Iterable[Work]) -> dict[str, tuple[str, Amount]]:
    """Graph -> kind and amount; the parts of one graph are of one kind."""
    found: dict[str, tuple[str, Amount]] = {}
    for work in works:
        kind, amount = found.get(work.graph, (kind_of(work), Amount()))
        found[work.graph] = kind, amount + work.amount
    return found


def _label(budget: BudgetFigures, stage: StageTime) -> str:
    return f"{stage.name} ({stage.phase}) at ratio {budget.ratio:g}"


def _check_model(report: Report, dims: ModelDims) -> None:
    if report.model.dims is None or any(budget.path is None for budget in report.budgets):
        raise LvlmError(
            "the report has no shapes: its bundle was built by an older version; build and profile"
            " it again"
        )
    measured = dict(_flat(report.model.dims))
    for name, value in _flat(asdict(dims)):
        # A checkpoint may tell only by its tensors that its head is the token table.
        if name != "text.tied" and measured.get(name) != value:
            raise LvlmError(
                f"the report is of another model, {report.model.name}: {name} is"
                f" {measured.get(name)} there and {value} here; profile a bundle of this model"
            )


def _check_device(report: Report, device: Device) -> None:
    runs_on_cpu = report.machine.execution == "cpu"
    if runs_on_cpu != (device.target == "cpu"):
        there = f"the CPU ({report.machine.processor})" if runs_on_cpu else "a GPU"
        raise LvlmError(
            f"the report was measured on {there} and {device.title} is another kind of device;"
            f" profile on it, or plan for a device of that kind"
        )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested JSON by dotted name; lists and tuples are one leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, _as_lists(value)


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
