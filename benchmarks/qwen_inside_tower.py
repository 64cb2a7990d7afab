"""First token of Qwen2.5-VL with tokens reduced inside the tower against behind it, interleaved.

    python benchmarks/qwen_inside_tower.py [--rounds 3]

Builds (once) bundles of a random checkpoint with the shapes of Qwen2.5-VL-3B and a quarter of its layers
for the CPU in fp32, and asks about one picture of 1280x720, which has 1196 tokens, by turns: unreduced;
with 395 tokens chosen behind the whole tower (``divprune`` in front of the decoder); and with the
same 395 in the decoder's last layer, reduced inside the tower (``local``) or inside tower and decoder
(``local+fastv``). So that nobody's reducer decides, the one behind the tower is also taken as free: its
own time is left out. FLOPs are the cost model's, whose count a test compares with PyTorch's. A run ends
with 1 when the aim is missed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_profiles.cost.request import prefill_works, total
from lvlm_runtime.bundle.token_path import token_path
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.session import Session
from report import WORK, environment, print_environment, print_table, save

RATIO = 0.33
SIZE = (720, 1280)
QUESTION = "What is in the picture? Say where it is and what lies beside it."
BEHIND, INSIDE = "divprune", ("local", "local+fastv")
# Reduction inside the tower against behind it, whose reducer is free.
AIM = 1.4


@dataclass
class Contender:
    """A way to answer.

    Attributes:
        name: For people.
        session: Its bundle, loaded.
        ratio: Of the bundle's.
        first_ms: Time to the first token, one per round.
        reducer_ms: That of the reducers among it.
        stages_ms: Of every graph among it.
    """

    name: str
    session: Session
    ratio: float
    first_ms: list[float] = field(default_factory=list)
    reducer_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    visual_tokens: tuple[tuple[str, int], ...] = ()

    def ask(self, image: NDArray[np.uint8], keep: bool) -> float:
        """One request; ``keep`` it as a round."""
        recorder = Recorder()
        answer = self.session.generate(
            QUESTION, [image], self.ratio, max_new_tokens=1, recorder=recorder
        )
        if keep:
            self.visual_tokens = answer.visual_tokens
            self.first_ms.append(answer.time_to_first_token_ms)
            reducers = [span.duration_ms for span in recorder.spans if "@" in span.name]
            self.reducer_ms.append(sum(reducers))
            sums: dict[str, float] = {}
            for span in recorder.spans:
                sums[span.name] = sums.get(span.name, 0.0) + span.duration_ms
            for name, value in sums.items():
                self.stages_ms.setdefault(name, []).append(value)
        return answer.time_to_first_token_ms

    @property
    def flops(self) -> int:
        """Of the request, up to the first token's logits."""
        manifest, text = self.session.bundle.manifest, self.session.encoder.encode(QUESTION, 1)
        budget = self.session.bundle.budget(self.ratio)
        path = token_path(manifest, budget, budget.layouts[0], len(text) - 1, 1)
        return total(prefill_works(manifest.dims, path)).flops


def main() -> int:
    """Measure, print, save; 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, help="directory of what is built")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads; default one per core")
    options = parser.parse_args()
    sessions = {
        method: Session.open(
            ensure_bundle(options.work, method), device="cpu", threads=options.threads
        )
        for method in (BEHIND, *INSIDE)
    }
    contenders = [
        Contender("unreduced", sessions[BEHIND], 1.0),
        Contender(f"behind the tower ({BEHIND})", sessions[BEHIND], RATIO),
        *(Contender(f"inside ({method})", sessions[method], RATIO) for method in INSIDE),
    ]
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    before = environment()
    for number in range(options.rounds + 1):
        for each in contenders:
            first = each.ask(image, keep=number > 0)
            print(f"round {number} of {options.rounds}, {each.name}: {first:.0f} ms", flush=True)
    return report(options.rounds, contenders, before)


def ensure_bundle(work: Path, method: str) -> Path:
    """The bundle of this working tree's exporter, built unless it is there."""
    import shapes
    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_runtime.progress import NoProgress

    checkpoint = work / "qwen2.5-vl-3b-cut"
    if not (checkpoint / "text.safetensors").exists():
        print("writing the checkpoint …", flush=True)
        shapes.write_qwen2_5_vl_3b_cut(checkpoint)
    print(f"building the bundle of {method} unless it is there …", flush=True)
    bundle = work / f"qwen2.5-vl-3b-cut-{method}"
    options = BuildOptions(
        (RATIO,), method=method, image_size=SIZE, baseline=method == BEHIND, precision="fp32"
    )
    opened = Checkpoint.open(checkpoint)
    build(opened, checkpoint.name, options, bundle, NoProgress(), verify_samples=0, force=True)
    return bundle


def report(rounds: int, contenders: list[Contender], where: dict[str, Any]) -> int:
    """Print and save; 1 when the aim is missed."""
    unreduced, behind, *inside = contenders
    kept = {dict(each.visual_tokens)[last_stage(each)] for each in contenders[1:]}
    assert len(kept) == 1, "all contenders end with the same number of tokens"
    free = [first - own for first, own in zip(behind.first_ms, behind.reducer_ms, strict=True)]
    faster = {each.name: median(free) / median(each.first_ms) for each in inside}
    rows = [
        [
            each.name,
            f"{median(each.first_ms):.0f} ({min(each.first_ms):.0f})",
            f"{median(each.reducer_ms):.0f}",
            f"{median(unreduced.first_ms) / median(each.first_ms):.2f}",
            f"{each.flops / 1e12:.3f}",
            f"{unreduced.flops / each.flops:.2f}",
        ]
        for each in contenders
    ]
    columns = ("", "first token, ms", "reducers", "speed-up", "TFLOP", "fewer FLOPs")
    print_table("median (least)", columns, rows)
    for each in inside:
        print(
            f"{each.name}: {faster[each.name]:.2f} times as fast as behind the tower with a free"
            f" reducer, {behind.flops / each.flops:.2f} times fewer FLOPs; aim {AIM}"
        )
    print(f"{rounds} rounds after a warm-up; {kept.pop()} of 1196 tokens in the last layer")
    print_environment(where)
    save(
        "qwen_inside_tower",
        {
            "environment": where,
            "rounds": rounds,
            "faster_than_behind": faster,
            "fewer_flops_than_behind": {each.name: behind.flops / each.flops for each in inside},
            "contenders": {
                each.name: {
                    "visual_tokens": each.visual_tokens,
                    "flops": each.flops,
                    "time_to_first_token_ms": each.first_ms,
                    "reducers_ms": each.reducer_ms,
                    "stages_ms": each.stages_ms,
                }
                for each in contenders
            },
        },
    )
    return 0 if max(faster.values()) >= AIM else 1


def last_stage(each: Contender) -> str:
    """Where a request's last count of visual tokens stands."""
    return each.visual_tokens[-1][0]


if __name__ == "__main__":
    sys.exit(main())
