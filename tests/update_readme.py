"""Fill the README's generated parts: ``make readme``. A test holds that they are up to date.

Commands come from the command line itself, numbers from the JSON files that `make demo-table` and
`make bench` write; nobody types either.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import click

from lvlm_export.cli import COMMANDS, cli
from lvlm_export.demo.table import RESULT, as_markdown, stage_text

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BENCHMARKS = ROOT / "tests" / "benchmarks" / "results"


def commands() -> str:
    """Every command with its options."""
    lines = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.help is not None
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        words = " ".join(
            f"[{(p.name or '').upper()}]"
            if not p.required
            else (p.metavar or (p.name or "").upper())
            for p in arguments
        )
        summary = " ".join(command.help.split("\n\n")[0].split())
        options = [opt for p in command.params if isinstance(p, click.Option) for opt in flags(p)]
        typed = f"lvlm-export {name} {words}".strip()
        lines.append(f"- `{typed}`: {summary}")
        lines.append(f"  Options: {', '.join(f'`{option}`' for option in options)}.")
    return "\n".join(lines)


def flags(option: click.Option) -> list[str]:
    """An option's long names."""
    return [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]


def methods() -> str:
    """What ``lvlm-export list methods`` says."""
    from lvlm_export.commands.list import methods as listed

    rows = [
        f"| `{name}` | {row['summary']} | {row['acts in']} | {row['fits']} | {row['source']} |"
        for name, row in listed().items()
    ]
    return "\n".join(
        ["| method | what it does | acts in | fits | source |", "|---|---|---|---|---|", *rows]
    )


def accuracy() -> str:
    """The demo model's curve."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    wins = losses(result)
    note = (
        f"illava is below random at {', '.join(wins)}."
        if wins
        else "illava beats random at every ratio."
    )
    machine = result["machine"]
    return (
        f"{as_markdown(result)}\n\n"
        f"Exact answers on {result['questions']:,} questions about mosaics of tiles the model never saw"
        f" (`make demo-table`; ONNX Runtime {result['onnxruntime']} on {machine['processor']})."
        f" The model was trained with all its tokens. {note}"
    )


def benchmark() -> str:
    """Time to first token and export memory on the 0.5B-shaped checkpoint."""
    first = json.loads((BENCHMARKS / "first_token.onevision.json").read_text(encoding="utf-8"))
    memory = json.loads((BENCHMARKS / "export_memory.fp32.json").read_text(encoding="utf-8"))
    full, third = (first["ratios"][ratio] for ratio in ("1.0", "0.33"))
    rows = [
        (
            f"| {ratio} | {stage_text([tuple(s) for s in point['visual_tokens']])} |"
            f" {statistics.median(point['time_to_first_token_ms']) / 1e3:.2f} s |"
            f" {statistics.median(point['decode_tokens_per_s']):.1f} |"
        )
        for ratio, point in (("1.0", full), ("0.33", third))
    ]
    where = first["environment"]
    held = memory["peak_bytes"] / memory["checkpoint_bytes"]
    return "\n".join(
        [
            "| ratio kept | visual tokens | time to first token | decode tokens/s |",
            "|---:|---|---:|---:|",
            *rows,
            "",
            "A random checkpoint of LLaVA-OneVision-0.5B's shapes (SigLIP-so400m/14-384, Qwen2-0.5B),"
            f" fp32, base view and one tile, {first['rounds']} interleaved rounds, medians (`make bench`;"
            f" {where['cores']} cores of {where['processor']}, ONNX Runtime"
            f" {where['versions']['onnxruntime']}, {where['date'][:10]}). The first token at 0.33 takes"
            f" {first['first_token_ratio']:.2f} of the time at 1.0; {first['own_time_share']:.2%} of it is"
            " the runtime's own, outside the graphs. Machines like this one are noisy: the ratio is the"
            f" result, the seconds are not. Export of that checkpoint"
            f" ({memory['checkpoint_bytes'] / 1e9:.2f} GB) held {memory['peak_bytes'] / 1e9:.2f} GB at its"
            f" peak, {held:.2f} of the checkpoint.",
        ]
    )


def losses(result: dict[str, Any]) -> list[str]:
    """Ratios at which illava has fewer right answers than random."""
    right = {
        method: {point["ratio"]: point["accuracy"]["all"][0] for point in points}
        for method, points in result["curves"].items()
    }
    return [
        f"{ratio:g}" for ratio in right["illava"] if right["illava"][ratio] < right["random"][ratio]
    ]


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of a part."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no <!-- {name} --> … <!-- /{name} --> part")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def render(text: str) -> str:
    """The README with every generated part as it should be now."""
    for name, make in (
        ("commands", commands),
        ("methods", methods),
        ("accuracy", accuracy),
        ("benchmark", benchmark),
    ):
        text = fill(text, name, make())
    return text


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    new = render(old)
    README.write_text(new, encoding="utf-8")
    sys.stdout.write("README.md is up to date\n" if old == new else "README.md updated\n")
