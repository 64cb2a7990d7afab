"""This runtime against PyTorch and against onnxruntime-genai, interleaved in one run.

    python benchmarks/peers.py [--shapes llava-0.5b|llava-7b-cut] [--genai-python PATH]

Every side runs in a process of its own with two threads, on the same weights in float32, and gets
the same requests by turns, A B C A B C …, after one round of warm-up. The picture and question go
to this runtime at 1.0 and 0.33 and to ``transformers``; a text prompt of the same length goes to
this runtime and to onnxruntime-genai, whose model its own builder makes of the same text weights.
onnxruntime-genai brings its own onnxruntime, so it needs an environment of its own (``make
bench-peers``); left out, the result notes it. Aims are beside the results; a missed one ends the
run with 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, cast

from first_token import ensure_bundle
from peer_workers import ANSWER_TOKENS
from report import WORK, environment, print_environment, print_table, save

WORKER = Path(__file__).with_name("peer_workers.py")
TEXT_TOKENS = 760
# Roughly what the question and its template take with the benchmark's small vocabulary.
TEXT_OF_QUESTION = 60
Answers = dict[str, list[dict[str, Any]]]


class Side:
    """A worker process."""

    def __init__(self, python: Path | str, side: str, directory: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(WORKER), side, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.loaded = self._read()["ready"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side died with {self._process.wait()}; see its output above")
        return cast("dict[str, Any]", json.loads(line))


def main() -> int:
    """Measure, print, save; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=WORK, help="directory of checkpoints and bundles"
    )
    parser.add_argument("--shapes", choices=("llava-0.5b", "llava-7b-cut"), default="llava-0.5b")
    parser.add_argument("--genai-python", type=Path, help="interpreter that has onnxruntime-genai")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    layout = {"llava-0.5b": "llava", "llava-7b-cut": "llava-7b-cut"}[options.shapes]
    bundle = ensure_bundle(options.work, layout)
    sides = {
        "ours": Side(sys.executable, "ours", bundle),
        "pytorch": Side(sys.executable, "pytorch", options.work / layout),
    }
    if options.genai_python is not None:
        model = ensure_genai(options.work, layout, options.genai_python)
        sides["genai"] = Side(options.genai_python, "genai", model)
    where = environment()
    answers = measure(sides, options.rounds)
    content = {
        "environment": where,
        "shapes": options.shapes,
        "rounds": options.rounds,
        "text_tokens": TEXT_TOKENS,
        "onnxruntime_genai": _version(options.genai_python),
        "weights_bytes": (bundle / "weights.bin").stat().st_size,
        "flops_speedup": flops_speedup(bundle),
        "answers": answers,
    }
    for side in sides.values():
        side.close()
    return report(content)


def ensure_genai(work: Path, layout: str, python: Path) -> Path:
    """The float32 text model that onnxruntime-genai's builder makes, unless it is there."""
    import shapes

    source, model = work / f"{layout}-text", work / f"{layout}-genai"
    if not (model / "genai_config.json").exists():
        print("building onnxruntime-genai's model …", flush=True)
        shapes.write_text_model(source, work / layout)
        builder = [python, "-I", "-m", "onnxruntime_genai.models.builder"]
        subprocess.run(
            [*builder, "-i", source, "-o", model, "-p", "fp32", "-e", "cpu", "-c", work / "cache"],
            check=True,
        )
        config = json.loads((model / "genai_config.json").read_text(encoding="utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 2
        (model / "genai_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return model


def measure(sides: dict[str, Side], rounds: int) -> Answers:
    """The requests by turns; round 0 is not kept."""
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("ours 1.0", "ours", {"do": "ask", "ratio": 1.0}),
        ("pytorch 1.0", "pytorch", {"do": "ask", "ratio": 1.0}),
        ("ours 0.33", "ours", {"do": "ask", "ratio": 0.33}),
        ("ours text", "ours", {"do": "text", "tokens": TEXT_TOKENS}),
        ("genai text", "genai", {"do": "text", "tokens": TEXT_TOKENS}),
    ]
    answers: Answers = {name: [] for name, side, _ in requests if side in sides}
    for number in range(rounds + 1):
        for name, side, request in requests:
            if side not in sides:
                continue
            time.sleep(0.5)  # the side before lets its threads rest
            answer = sides[side].ask(**request)
            if number:
                answers[name].append(answer)
            print(f"round {number}/{rounds} {name}: {answer['first_ms']:.0f} ms", flush=True)
    return answers


def flops_speedup(bundle: Path) -> float:
    """How much less the first token costs at 0.33 than at 1.0, by the cost model."""
    from lvlm_profiles.cost.request import prefill_works, total
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.bundle.token_path import token_path

    manifest = Bundle.open(bundle).manifest
    assert manifest.dims is not None
    flops = {}
    for budget in manifest.budgets:
        layout = budget.layout(manifest.layouts[0].name)
        path = token_path(manifest, budget, layout, TEXT_OF_QUESTION, ANSWER_TOKENS)
        flops[budget.ratio] = total(prefill_works(manifest.dims, path)).flops
    return flops[1.0] / flops[0.33]


def report(content: dict[str, Any]) -> int:
    """Print and save; 1 when an aim is missed."""
    answers: Answers = content["answers"]
    rows = [
        [
            name,
            f"{_median(answers, name, 'first_ms'):.0f}",
            f"{_median(answers, name, 'token_ms'):.1f}",
            f"{max(each['resident']['VmHWM'] for each in answers[name]):.0f}",
        ]
        for name in answers
    ]
    columns = ("", "first token, ms", "per token, ms", "peak resident, MB")
    print_table(f"{content['shapes']}: medians", columns, rows)
    content["aims"] = aims(content)
    for aim in content["aims"]:
        print(f"{'met   ' if aim['met'] else 'MISSED'} {aim['text']}: {aim['value']:.3f}")
    content["same_tokens"] = {
        "pytorch": answers["ours 1.0"][0]["ids"] == answers["pytorch 1.0"][0]["ids"],
        **(
            {"genai": answers["ours text"][0]["ids"] == answers["genai text"][0]["ids"]}
            if "genai text" in answers
            else {}
        ),
    }
    print(f"same greedy tokens: {content['same_tokens']}")
    print_environment(content["environment"])
    save(f"peers.{content['shapes']}", content)
    return 0 if all(aim["met"] for aim in content["aims"]) else 1


def aims(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Each aim with its ratio; below 1 is better than the peer."""
    answers: Answers = content["answers"]

    def ratio(one: str, other: str, what: str) -> float:
        return _median(answers, one, what) / _median(answers, other, what)

    results = [
        _aim("first token at 1.0 / PyTorch's", ratio("ours 1.0", "pytorch 1.0", "first_ms"), 1.0),
        _aim("first token at 0.33 / at 1.0", ratio("ours 0.33", "ours 1.0", "first_ms"), 1 / 1.9),
        _aim(
            "speed-up by FLOPs / speed-up measured at 0.33",
            content["flops_speedup"] * ratio("ours 0.33", "ours 1.0", "first_ms"),
            1 / 0.9,
        ),
        _aim("time per token / PyTorch's", ratio("ours 1.0", "pytorch 1.0", "token_ms"), 1 / 1.2),
        _aim(
            "own time between graphs / first token at 1.0",
            _median(answers, "ours 1.0", "own_ms") / _median(answers, "ours 1.0", "first_ms"),
            0.01,
        ),
    ]
    if "genai text" in answers:
        results += [
            _aim(
                "first token of a text / onnxruntime-genai's",
                ratio("ours text", "genai text", "first_ms"),
                1.0,
            ),
            _aim(
                "time per token / onnxruntime-genai's",
                ratio("ours text", "genai text", "token_ms"),
                1 / 0.95,
            ),
        ]
    peak = max(
        each["resident"]["VmHWM"] for name in answers for each in answers[name] if "ours" in name
    )
    allowed = content["weights_bytes"] / 1e6 * 1.15 + 200
    results.append(
        _aim("peak resident / (weights x 1.15 + 200 MB), KV included", peak / allowed, 1.0)
    )
    return results


def _aim(text: str, value: float, limit: float) -> dict[str, Any]:
    return {"text": f"{text}, at most {limit:.3f}", "value": value, "met": value <= limit}


def _median(answers: Answers, name: str, what: str) -> float:
    return median(each[what] for each in answers[name])


def _version(python: Path | None) -> str | None:
    if python is None:
        return None
    code = "from importlib.metadata import version as v; print(v('onnxruntime-genai'), v('onnxruntime'))"
    done = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
