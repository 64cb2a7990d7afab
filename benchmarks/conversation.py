"""What a chain that remembers saves: a second question, a prompt in chunks, drafts; in one run.

    python benchmarks/conversation.py [--rounds 3] [--chunk 100]

Builds (once, as ``first_token.py`` does) a bundle of a random checkpoint with the shapes of
LLaVA-OneVision-0.5B for the CPU in fp32, and takes turns round by round: a first question about a
picture, a second one in the same conversation, the first question's prefill in chunks and whole; at
ratio 1.0, and at 0.33, whose sites in the decoder read the question. Listings of the demo's pictures are
answered with n-gram drafts and without, on the demo's bundle; tokens must be equal. A run ends with 1
when an aim is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

from first_token import QUESTION, ensure_bundle, picture
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.session import Session
from report import WORK, environment, print_environment, print_table, save

SECOND = "And what is the largest thing in it?"
LISTING = "What is there from left to right?"
RATIOS = (1.0, 0.33)
# Aims at ratio 1.0: second question against first, chunks against whole, tokens per decoder call.
AIM_SECOND, AIM_CHUNKS, AIM_TOKENS = 0.05, 1.05, 1.5


def main() -> int:
    """Measure, print, save; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=WORK, help="directory of checkpoint and bundle"
    )
    parser.add_argument(
        "--bundle", type=Path, help="a bundle that is there, in place of building it"
    )
    parser.add_argument("--demo", type=Path, help="bundle of the demo model; built unless given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=100, help="rows of a chunk")
    parser.add_argument("--drafts", type=int, default=4, help="tokens of a draft")
    parser.add_argument("--threads", type=int, help="CPU threads; default one per core")
    options = parser.parse_args()
    bundle = options.bundle or ensure_bundle(options.work, "onevision")
    before = environment()
    session = Session.open(bundle, device="cpu", threads=options.threads)
    times = turns(session, options.rounds, options.chunk)
    del session
    demo = Session.open(options.demo or build_demo(options.work), device="cpu", threads=1)
    drafts = listings(demo, options.drafts)
    return report(options, times, drafts, before)


def build_demo(work: Path) -> Path:
    """The demo model's bundle, built unless it is there."""
    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.demo import CHECKPOINT
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_runtime.progress import NoProgress

    bundle = work / "demo-bundle"
    built = BuildOptions(ratios=(0.33,))
    checkpoint = Checkpoint.open(CHECKPOINT)
    build(checkpoint, "demo", built, bundle, NoProgress(), verify_samples=0, force=True)
    return bundle


def turns(session: Session, rounds: int, chunk: int) -> dict[float, dict[str, list[float]]]:
    """Milliseconds per ratio and kind, after a warm-up: to first tokens, and of prefills."""
    image = picture()
    times: dict[float, dict[str, list[float]]] = {ratio: {} for ratio in RATIOS}
    for number in range(rounds + 1):
        for ratio in RATIOS:
            found = {}
            chat = session.chat(context=2048)
            chat.memory.budget_bytes = 0
            for name, question, images in (("first", QUESTION, [image]), ("second", SECOND, [])):
                answer = chat.ask(question, images, ratio, max_new_tokens=8)
                found[name] = answer.time_to_first_token_ms
                found[f"{name}, own time"] = answer.own_time_ms
            for name, rows in (("prefill, whole", None), ("prefill, chunks", chunk)):
                recorder = Recorder()
                options: dict[str, Any] = {"prefill_chunk": rows} if rows else {}
                session.generate(
                    QUESTION, [image], ratio, max_new_tokens=1, recorder=recorder, **options
                )
                found[name] = recorder.total_ms("prefill")
            for name, value in found.items():
                if number:
                    times[ratio].setdefault(name, []).append(value)
            print(f"round {number} of {rounds}, ratio {ratio:g}: {found}", flush=True)
    return times


def listings(session: Session, count: int) -> dict[str, Any]:
    """Listings of the demo's pictures, with drafts and without, by turns."""
    from lvlm_export.demo import PICTURES

    found = {"tokens": 0, "calls": 0, "drafted": 0, "accepted": 0}
    seconds = {"plain": 0.0, "drafts": 0.0}
    for image in sorted(PICTURES.glob("*.png")):
        for ratio in RATIOS:
            plain, drafted = (
                session.generate(LISTING, [image], ratio, max_new_tokens=64, speculate=speculate)
                for speculate in (0, count)
            )
            assert drafted.token_ids == plain.token_ids, f"{image.name} at {ratio}: tokens differ"
            found["tokens"] += len(plain.token_ids) - 1
            found["calls"] += drafted.decode_calls
            found["drafted"] += drafted.drafted_tokens
            found["accepted"] += drafted.accepted_tokens
            for name, answer in (("plain", plain), ("drafts", drafted)):
                seconds[name] += (len(plain.token_ids) - 1) / (answer.decode_tokens_per_s or 1)
    return {
        **found,
        "seconds": seconds,
        "tokens_per_call": found["tokens"] / found["calls"],
        "accepted_share": found["accepted"] / found["drafted"],
    }


def report(
    options: argparse.Namespace,
    times: dict[float, dict[str, list[float]]],
    drafts: dict[str, Any],
    where: dict[str, Any],
) -> int:
    """Print and save; 1 when an aim is missed."""
    rows = [
        [
            name,
            *(
                f"{median(times[ratio][name]):.1f} ({min(times[ratio][name]):.1f})"
                for ratio in RATIOS
            ),
        ]
        for name in times[1.0]
    ]
    print_table("median (least), ms", ("", *(f"{ratio:g}" for ratio in RATIOS)), rows)

    def share(ratio: float, one: str, other: str) -> float:
        return median(times[ratio][one]) / median(times[ratio][other])

    shares = {
        ratio: {
            "second_to_first": share(ratio, "second", "first"),
            "chunks_to_whole": share(ratio, "prefill, chunks", "prefill, whole"),
        }
        for ratio in RATIOS
    }
    full = shares[1.0]
    for ratio, each in shares.items():
        print(
            f"ratio {ratio:g}: second question {each['second_to_first']:.4f} of the first;", end=" "
        )
        print(f"prefill in chunks of {options.chunk} rows {each['chunks_to_whole']:.3f} of whole")
    print(f"aims at 1.0: {AIM_SECOND}, {AIM_CHUNKS}")
    print(
        f"listings: {drafts['tokens_per_call']:.2f} tokens per call, {drafts['accepted_share']:.0%} of"
        f" the drafts right, all tokens equal; aim {AIM_TOKENS}"
    )
    print_environment(where)
    content = {str(ratio): {**times[ratio], **shares[ratio]} for ratio in RATIOS}
    setting = {"rounds": options.rounds, "chunk": options.chunk, "drafts": options.drafts}
    save("conversation", {"environment": where, **setting, "ratios": content, "listings": drafts})
    met = full["second_to_first"] <= AIM_SECOND and full["chunks_to_whole"] <= AIM_CHUNKS
    return 0 if met and drafts["tokens_per_call"] >= AIM_TOKENS else 1


if __name__ == "__main__":
    sys.exit(main())
