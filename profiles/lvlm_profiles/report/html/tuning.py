"""``report.html`` of a search: the front of accuracy and cost, and the finalists."""

from __future__ import annotations

from lvlm_profiles.report.html.curves import HEIGHT, ChartPoint, Curve, Scale
from lvlm_profiles.report.html.page import open_templates
from lvlm_profiles.report.terminal import visible
from lvlm_profiles.report.tuning import TunedTrial, TuningResult


def tuning_page(result: TuningResult) -> str:
    """The whole page."""
    template = open_templates().get_template("tuning.html.j2")
    return visible(template.render(result=result, front=front_curve(result)))


def front_curve(result: TuningResult) -> Curve:
    """Finalists by held-out accuracy with its interval, and all other trials by their last one.

    A line goes through the finalists that no other one beats in both.
    """
    shown = (*result.trials, result.unreduced)
    values = [
        value
        for each in shown
        for value in (
            (100 * each.right / each.asked,)
            if each.held_out is None
            else (100 * each.held_out.low, 100 * each.held_out.high)
        )
    ]
    room = max(max(values) - min(values), 1.0) * 0.1
    scale = Scale(
        0.0,
        1.08 * max(each.cost for each in shown),
        max(0.0, min(values) - room),
        min(100.0, max(values) + room),
    )
    ends = [each for each in (*result.finalists, result.unreduced) if each.held_out is not None]
    best = [
        (each.cost, _accuracy(each))
        for each in ends
        if not any(
            other.cost <= each.cost
            and _accuracy(other) >= _accuracy(each)
            and (other.cost, _accuracy(other)) != (each.cost, _accuracy(each))
            for other in ends
        )
    ]
    x_ticks, y_ticks = scale.axes(" %")
    named = {result.chosen, result.unreduced.name}
    return Curve(
        "Accuracy over the cost of the first token",
        f"first token, {result.unit}",
        tuple(_point(each, scale, each.name in named) for each in shown),
        scale.through(sorted(set(best))),
        x_ticks,
        y_ticks,
        HEIGHT,
    )


def _accuracy(trial: TunedTrial) -> float:
    """In percent, on the held-out half where it is known."""
    if trial.held_out is None:
        return 100 * trial.right / trial.asked
    return 100 * trial.held_out.accuracy


def _point(trial: TunedTrial, scale: Scale, named: bool) -> ChartPoint:
    y = _accuracy(trial)
    held = trial.held_out
    low, high = (y, y) if held is None else (100 * held.low, 100 * held.high)
    where = f"{trial.asked} questions of the search half" if held is None else "the held-out half"
    hint = f"{trial.name}: {y:.1f} % of {where} at {trial.cost:.3g}"
    text = trial.name if named else ""
    return ChartPoint(scale.x(trial.cost), scale.y(y), scale.y(low), scale.y(high), text, hint)
