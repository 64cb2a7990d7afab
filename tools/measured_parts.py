"""Parts of the pages that measurements say, from the JSON files that the ``make`` targets write."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from lvlm_export.demo.curve import stage_text
from lvlm_export.demo.train.mosaics import few_tokens as few
from lvlm_export.demo.train.table import (
    BASELINE,
    RESULT,
    SHOWN,
    UNREDUCED,
    accuracy_by_ratio,
    as_markdown,
    best_first,
    changes,
    kinds_as_markdown,
    point_at,
    points_text,
)
from lvlm_export.reduction import DEFAULT_METHOD, METHODS

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks" / "results"
# Methods of the short table beside the default, the best and random tokens.
ALSO_KEPT = ("tome", "visionzip", "fastv", "illava")


def speed() -> str:
    """The short table of times: the first token at 1.0 and reduced, and what each side costs."""
    first = json.loads((BENCHMARKS / "first_token.onevision.json").read_text(encoding="utf-8"))
    where = first["environment"]
    return "\n".join(
        [
            *first_token_rows(first),
            "",
            f"LLaVA-OneVision-0.5B's shapes, fp32, one picture, on {where['cores']} cores of"
            f" {where['processor']} (`make bench`, {where['date'][:10]}): the first token takes"
            f" {first['first_token_ratio']:.2f} of the time.",
        ]
    )


def first_token_rows(first: dict[str, Any]) -> list[str]:
    """The table of ``first_token.onevision.json``."""
    rows = [
        (
            f"| {ratio} | {stage_text([tuple(s) for s in point['visual_tokens']])} |"
            f" {statistics.median(point['time_to_first_token_ms']) / 1e3:.2f} s |"
            f" {statistics.median(point['decode_tokens_per_s']):.1f} |"
        )
        for ratio, point in ((ratio, first["ratios"][ratio]) for ratio in ("1.0", "0.33"))
    ]
    return [
        "| ratio kept | visual tokens | time to first token | decode tokens/s |",
        "|---:|---|---:|---:|",
        *rows,
    ]


def kept() -> str:
    """The short table of accuracy: the default method, some well-known ones, random tokens."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    curves = {name: accuracy_by_ratio(points) for name, points in result["curves"].items()}
    full = curves.pop(UNREDUCED)[1.0]
    ratios = list(curves[BASELINE])
    shown = {DEFAULT_METHOD, BASELINE, *ALSO_KEPT}
    rows = [f"| unreduced | {' | '.join([f'{full:.1%}'] * len(ratios))} | | 1 |"]
    for name in (each for each in best_first(curves) if each in shown):
        cells = [f"{curves[name][ratio]:.1%}" for ratio in ratios]
        lost, _ = changes(result, name, SHOWN)
        time = point_at(result, name, SHOWN)["first_token_share"]
        label = f"**`{name}`**" if name == DEFAULT_METHOD else f"`{name}`"
        rows.append(f"| {label} | {' | '.join(cells)} | {points_text(lost, -1)} | {time:.2f} |")
    head = [f"{ratio:g}" for ratio in ratios]
    return "\n".join(
        [
            f"| method, at ratio | {' | '.join(head)} | points lost at {SHOWN:g} | first token |",
            f"|---|{'---:|' * (len(ratios) + 2)}",
            *rows,
            "",
            f"Right answers of the demo model to {result['questions']:,} questions, `{DEFAULT_METHOD}` being"
            f" the default; *first token* is its time at {SHOWN:g} over the unreduced one's (`make"
            " demo-table`). A small model that knows pictures of one kind: it ranks methods for itself,"
            " not for yours.",
        ]
    )


def accuracy() -> str:
    """The demo model's accuracy by method and ratio."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    below = losses(result)
    note = (
        f"Below random at half of the ratios or more: {', '.join(f'`{name}`' for name in below)}."
        if below
        else "No method is below random at half of the ratios or more."
    )
    processors = sorted({machine["processor"] for machine in result["machines"].values()})
    refused = "".join(f" `{name}` is left out: {why}." for name, why in result["refused"].items())
    missing = sorted(METHODS.keys() - result["curves"].keys() - result["refused"].keys())
    if missing:
        refused += f" Not measured on this model yet: {', '.join(f'`{name}`' for name in missing)}."
    return (
        f"{as_markdown(result)}\n\n"
        f"Exact answers on {result['questions']:,} questions about scenes on photographs the model never saw"
        f" (`make demo-table`; ONNX Runtime {result['onnxruntime']} on {' and '.join(processors)});"
        " columns are the ratio kept, ↓ marks what has fewer right answers than `random`. *Lost* are"
        f" points below the unreduced model at {SHOWN:g}, *to random* points above random tokens, on the"
        " same questions, with half the 95 % interval. FLOPs and time are the first token's at that"
        " ratio over the unreduced one's, by the cost model and measured: what acts in the decoder"
        " alone saves nothing in the tower. Of so small a model much of the time is not arithmetic."
        " The model was trained with all its tokens and knows pictures of one kind, so this says"
        f" which method suits this model, not yours. {note}{refused}"
    )


def few_tokens() -> str:
    """QueCC and training-free methods at 16, 4 and 1 tokens."""
    result = json.loads(few.RESULT.read_text(encoding="utf-8"))
    steps = {
        tokens: sum(
            stage["steps"]
            for stage in result["quecc"][str(tokens)]["training"]
            if stage["name"] == f"quecc_{tokens}"
        )
        for tokens in few.TOKENS
    }
    trained = ", ".join(f"{count:,} steps at {tokens}" for tokens, count in steps.items())
    return (
        f"{few.as_markdown(result)}\n\n"
        f"Exact answers on {result['questions']:,} questions about mosaics, the task of an earlier demo;"
        " columns are the visual tokens that enter the language model. QueCC was trained for this, its language model"
        f" with it ({trained} tokens, 10 pictures a step, each count begun with what the one before it learned; `make"
        " demo-quecc`). It has a tower of 16 x 16 patches because 14 x 14 do not divide into 16 tokens;"
        " the others take the mosaics' own checkpoint down to as many tokens, untrained. `random` and"
        " `uniform` act at the tower's last layer here. A dash is a count that a method does not reach."
    )


def benchmark() -> str:
    """Time to first token and export memory on the 0.5B-shaped checkpoint."""
    first = json.loads((BENCHMARKS / "first_token.onevision.json").read_text(encoding="utf-8"))
    memory = json.loads((BENCHMARKS / "export_memory.fp32.json").read_text(encoding="utf-8"))
    where = first["environment"]
    held = memory["peak_bytes"] / memory["checkpoint_bytes"]
    return "\n".join(
        [
            *first_token_rows(first),
            "",
            "A random checkpoint of LLaVA-OneVision-0.5B's shapes (SigLIP-so400m/14-384, Qwen2-0.5B),"
            f" fp32, base view and one tile, reduced by `illava_v1`, {first['rounds']} interleaved rounds, medians (`make bench`;"
            f" {where['cores']} cores of {where['processor']}, ONNX Runtime"
            f" {where['versions']['onnxruntime']}, {where['date'][:10]}). The first token at 0.33 takes"
            f" {first['first_token_ratio']:.2f} of the time at 1.0; {first['own_time_share']:.2%} of it is"
            " the runtime's own, outside the graphs. Machines like this one are noisy: the ratio is the"
            f" result, the seconds are not. Export of that checkpoint"
            f" ({memory['checkpoint_bytes'] / 1e9:.2f} GB) held {memory['peak_bytes'] / 1e9:.2f} GB at its"
            f" peak, {held:.2f} of the checkpoint.",
        ]
    )


def peers() -> str:
    """This runtime against PyTorch and onnxruntime-genai, one table per shapes."""
    rows, notes = [], []
    for name in ("llava-0.5b", "llava-7b-cut"):
        result = json.loads((BENCHMARKS / f"peers.{name}.json").read_text(encoding="utf-8"))
        for aim in result["aims"]:
            met = "met" if aim["met"] else "**missed**"
            rows.append(f"| {name} | {aim['text']} | {aim['value']:.3f} | {met} |")
        where = result["environment"]
        same = "equal" if all(result["same_tokens"].values()) else "**not equal**"
        notes.append(
            f"{name}: {result['rounds']} rounds, load {where['load_average'][0]:g}, greedy tokens of"
            f" all sides {same}, onnxruntime-genai {result['onnxruntime_genai'].split()[0]}."
        )
    versions = where["versions"]
    return "\n".join(
        [
            "| shapes | aim | reached | |",
            "|---|---|---:|---|",
            *rows,
            "",
            "Same weights, fp32, two threads a side, every side a process of its own, asked in turn"
            f" (`make bench-peers`; {where['cores']} cores of {where['processor']}, ONNX Runtime"
            f" {versions['onnxruntime']}, PyTorch {versions['torch']}, transformers"
            f" {versions['transformers']}, {where['date'][:10]}). {' '.join(notes)} `llava-0.5b` has the"
            " shapes of LLaVA-OneVision-0.5B with one view, `llava-7b-cut` those of LLaVA-1.5-7B with 4"
            " of its 32 decoder layers; what is reduced is reduced by `illava_v1`. " + startup(),
        ]
    )


def startup() -> str:
    """Start of the process to the first letter of an answer."""
    result = json.loads((BENCHMARKS / "startup.json").read_text(encoding="utf-8"))
    return (
        "`lvlm-export run` on the demo bundle gives the first letter of its answer"
        f" {statistics.median(result['first_letter_s']):.2f} s after the process starts"
        f" (`python benchmarks/startup.py`; aim {result['aim_s']:g} s)."
    )


def engines() -> str:
    """Building TensorRT-RTX engines of the 0.5B-shaped checkpoint."""
    result = json.loads((BENCHMARKS / "engine_build.json").read_text(encoding="utf-8"))
    total, where = result["total"], result["after"]
    return (
        f"A random checkpoint of LLaVA-OneVision-0.5B's shapes in fp16 with {len(result['ratios'])}"
        f" budgets of `illava_v1`: {len(result['engines'])} engines in {total['wall_s'] / 60:.1f} minutes"
        f" ({total['processor_s'] / 60:.1f} of processor time), {total['peak_bytes'] / 1e9:.1f} GB at the"
        f" peak, {total['engine_bytes'] / 1e9:.2f} GB of engines for"
        f" {total['weights_bytes'] / 1e9:.2f} GB of weights,"
        f" {total['engine_bytes'] / total['weights_bytes']:.3f} of them (`make bench-engines`;"
        f" {result['library']}, {where['cores']} cores of {where['processor']} shared with other work,"
        f" {where['date'][:10]})."
    )


def serve_load() -> str:
    """A server under load: three ways to ask, and what it adds to a session."""
    result = json.loads((BENCHMARKS / "serve_load.json").read_text(encoding="utf-8"))
    where, lines = result["before"], []
    for load, ways in result["loads"].items():
        for name, row in ways.items():
            ratio = "" if row["mean_ratio"] is None else f"{row['mean_ratio']:.2f}"
            late = "" if row["p90_ms"] is None else f"{row['p90_ms']:.0f} ms"
            lines.append(
                f"| {load} | {name} | {row['requests']} | {row['in_time']:.0%} | {row['refused']:.0%} |"
                f" {late} | {ratio} |"
            )
    beside = {name: statistics.median(times) for name, times in result["beside_ms"].items()}
    added = beside["server"] / beside["session"] - 1
    return "\n".join(
        [
            "| load | every request asks for | requests | in time | refused | p90 of the answered |"
            " mean ratio of those in time |",
            "|---:|---|---:|---:|---:|---:|---:|",
            *lines,
            "",
            f"A small random checkpoint with 576 tokens a picture, fp32, on {where['cores']} cores of"
            f" {where['processor']} (`make bench-serve`, {where['date'][:10]}, onnxruntime"
            f" {where['versions']['onnxruntime']}; load average {where['load_average'][0]:g} before, so other"
            f" programs took their part of the cores from all three alike). The goal is {result['goal_ms']:.0f} ms; alone, the first"
            f" token takes {result['alone_ms']['1']:.0f} ms at ratio 1.0 and"
            f" {result['alone_ms']['0.2']:.0f} ms at 0.2. A load of 1 is as many requests as ratio 1.0 could"
            " answer. They arrive as a Poisson process, the same for the three, whether earlier ones were"
            " answered or not.",
            "",
            f"Alone and by turns, a session's own first token took {beside['session']:.0f} ms, one over HTTP"
            f" {beside['server']:.0f} ms ({added:+.1%}), and asking again about the same picture"
            f" {beside['again']:.0f} ms.",
        ]
    )


def losses(result: dict[str, Any]) -> list[str]:
    """Methods with fewer right answers than random at half of the ratios or more."""
    curves = {name: accuracy_by_ratio(points) for name, points in result["curves"].items()}
    random = curves[BASELINE]
    return [
        name
        for name, curve in curves.items()
        if name != UNREDUCED
        and 2 * sum(curve[ratio] < random[ratio] for ratio in random) >= len(random)
    ]


def kinds() -> str:
    """The demo model's accuracy by method and kind of question."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    return kinds_as_markdown(result)
