"""What every method's reducers cost at 576 -> 192 tokens, beside the first token they serve.

    python benchmarks/reducer_cost.py [--method fastv --method tome] [--rounds 9]

Exports the reducers of each method for the shapes of LLaVA-1.5-7B (CLIP-L/336, Llama-7B, 60 text
tokens) and runs them through onnxruntime in fp32, on random values, on the CPU. No machine that runs
the tests holds the model itself in fp32, so its first token is an estimate: the arithmetic of tower,
projector and decoder at the method's own token counts, over the rate that one product of the
decoder's MLP reaches here, measured between the rounds. Every number is the least of the rounds. A
run ends with 1 when a method misses the aim.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import torch
from transformers import LlavaConfig

from lvlm_export.families import ModelShape, load_family
from lvlm_export.graphs.export import export_graph
from lvlm_export.graphs.reducers import Reducer, make_reducer, reducer_inputs
from lvlm_export.plan.plan import Plan
from lvlm_export.reduction import METHODS, load_method
from lvlm_export.reduction.budget import BudgetPlan, Geometry, SiteCount
from lvlm_export.reduction.reducers import DecoderReducer
from lvlm_export.reduction.schedule import plan_budget
from lvlm_runtime.prompt.sequence import place_tokens
from report import RESULTS, environment, print_environment, print_table, save
from shapes import CLIP_L_336, LLAMA_7B_CUT, llava_7b_cut_config

TOKENS, KEPT, TEXT, DECODER_LAYERS = 576, 192, 60, 32
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": CLIP_L_336["image_size"]},
    "crop_size": {"height": CLIP_L_336["image_size"], "width": CLIP_L_336["image_size"]},
    "do_center_crop": True,
}
# Of the first token's time.
AIM = 0.05


def main() -> int:
    """Measure, print, save; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", action="append", choices=sorted(METHODS))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    shape = model_shape()
    before = environment()
    rows: dict[str, dict[str, Any]] = {}
    rates: list[float] = []
    for name in options.method or sorted(set(METHODS) - {"none"}):
        print(f"{name} …", flush=True)
        rates.append(product_rate())
        rows[name] = measure(name, shape, options.rounds)
    rate = max([*rates, product_rate()])
    missed = report(rows, rate, before)
    return int(bool(missed))


def model_shape() -> ModelShape:
    """LLaVA-1.5-7B: the cut configuration with all its decoder layers."""
    fields = {key: value for key, value in llava_7b_cut_config().items() if key != "model_type"}
    fields["text_config"] = {**LLAMA_7B_CUT, "num_hidden_layers": DECODER_LAYERS}
    return load_family("llava").shape(LlavaConfig(**fields), PREPROCESSOR, None)


def measure(name: str, shape: ModelShape, rounds: int) -> dict[str, Any]:
    """Milliseconds and nodes of a method's reducers, and the arithmetic of its first token."""
    method = load_method(name)
    geometry = Geometry(
        shape.vision.layers,
        shape.vision.tokens,
        shape.text.layers,
        shape.layouts,
        shape.square_tiles,
        shape.visual_tokens,
    )
    budget = plan_budget(KEPT / TOKENS, method, geometry)
    plan = cast(
        "Plan", SimpleNamespace(shape=shape, method=method, options=SimpleNamespace(seed=0))
    )
    sites = {}
    for count in (*budget.vision, *budget.layouts[0].counts):
        sites[count.site.name] = {
            "tokens": [count.tokens_in, count.tokens_out],
            **measure_site(plan, count, rounds),
        }
    return {"sites": sites, "first_token_gflop": first_token_flops(budget) / 1e9}


def measure_site(plan: Plan, count: SiteCount, rounds: int) -> dict[str, Any]:
    """One reducer: least milliseconds, nodes, seconds to export."""
    reducer = make_reducer(plan, count)
    example, signature = reducer_inputs(plan, reducer, torch.float32)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "reducer.onnx"
        start = time.perf_counter()
        export_graph(reducer, example, signature, path, {}, None)
        exported = time.perf_counter() - start
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        nodes = len(onnx.load(path).graph.node)
        feeds = feeds_for(reducer, example)
        times = [run_ms(session, feeds) for _ in range(rounds + 1)][1:]
    return {
        "ms": round(min(times), 3),
        "median_ms": round(float(np.median(times)), 3),
        "nodes": nodes,
        "export_s": round(exported, 1),
    }


def run_ms(session: ort.InferenceSession, feeds: dict[str, Any]) -> float:
    start = time.perf_counter()
    session.run(None, feeds)
    return (time.perf_counter() - start) * 1e3


def feeds_for(reducer: Reducer, example: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """One tile or image, and a prompt of 60 text tokens around it."""
    generator = np.random.default_rng(0)
    shapes = {name: list(value.shape) for name, value in zip(reducer.inputs, example, strict=True)}
    for name in ("pixel_values", "query", "key", "sizes", "visual", "visual_embeds", "hidden"):
        if name in shapes:
            shapes[name][0] = 1
    integers: dict[str, Any] = {}
    if isinstance(reducer, DecoderReducer):
        runs, text = [TEXT // 2, TEXT - TEXT // 2], np.arange(TEXT)
        before = place_tokens(runs, text, TEXT, reducer.shape.tokens_in)
        rows = len(before.order)
        after = place_tokens(runs, before.text, rows, reducer.shape.tokens_out)
        shapes["hidden"][1] = shapes["query"][2] = shapes["key"][2] = rows
        integers = {
            "position_ids": np.arange(rows)[None],
            "visual_index": before.visual,
            "order": after.order,
            "text_index": before.text,
        }
    for name in ("text", "text_embeds"):
        if name in shapes:
            shapes[name][1] = TEXT
    feeds = {
        name: generator.standard_normal(shape, dtype=np.float32)
        for name, shape in shapes.items()
        if name not in integers
    }
    if "sizes" in feeds:
        feeds["sizes"] = np.ones_like(feeds["sizes"])
    return feeds | {name: value for name, value in integers.items() if name in shapes}


def first_token_flops(budget: BudgetPlan) -> float:
    """Tower, projector and decoder at a budget: 8 n d² + 4 n² d, and 4 or 6 n d m for the MLP."""

    def attention(rows: float, config: dict[str, Any]) -> float:
        width = config["hidden_size"]
        return 8 * rows * width**2 + 4 * rows**2 * width

    def mlp(rows: float, config: dict[str, Any], maps: int) -> float:
        return 2 * maps * rows * config["hidden_size"] * config["intermediate_size"]

    tower_layers = CLIP_L_336["num_hidden_layers"] - 1
    after = {count.site: count.tokens_out for count in budget.vision}
    at_layer = {site.layer: kept for site, kept in after.items() if site.stage == "vision"}
    tokens = next((kept for site, kept in after.items() if site.stage == "pixels"), TOKENS)
    total = 0.0
    for layer in range(tower_layers):
        total += attention(1 + tokens, CLIP_L_336)
        tokens = at_layer.get(layer, tokens)
        total += mlp(1 + tokens, CLIP_L_336, 2)
    tokens = budget.kept_per_tile(tokens)
    wide, narrow = LLAMA_7B_CUT["hidden_size"], CLIP_L_336["hidden_size"]
    total += 2 * tokens * (narrow * wide + wide * wide)
    part = budget.layouts[0]
    tokens = part.tokens_in
    cuts = {count.site.layer: count.tokens_out for count in part.decoder}
    for layer in range(DECODER_LAYERS):
        tokens = cuts.get(layer, tokens)
        total += attention(TEXT + tokens, LLAMA_7B_CUT) + mlp(TEXT + tokens, LLAMA_7B_CUT, 3)
    return total + 2 * wide * LLAMA_7B_CUT["vocab_size"]


def product_rate() -> float:
    """Operations per second of one MLP product of the decoder, best of five."""
    rows, wide, narrow = TEXT + KEPT, LLAMA_7B_CUT["intermediate_size"], LLAMA_7B_CUT["hidden_size"]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    kinds = {"x": [rows, narrow], "w": [narrow, wide], "y": [rows, wide]}
    infos = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in kinds.items()
    }
    weight = onnx.numpy_helper.from_array(np.ones((narrow, wide), np.float32) * 1e-3, "w")
    graph = onnx.helper.make_graph([node], "product", [infos["x"]], [infos["y"]], [weight])
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((rows, narrow), np.float32)}
    best = min(run_ms(session, feeds) for _ in range(5))
    return 2 * rows * narrow * wide / best * 1e3


def report(rows: dict[str, dict[str, Any]], rate: float, before: dict[str, Any]) -> list[str]:
    """Print and save beside the methods of earlier runs; those of this run that miss the aim."""
    table, missed = [], []
    for name, row in rows.items():
        sites = row["sites"].values()
        reducers = sum(site["ms"] for site in sites)
        first = row["first_token_gflop"] * 1e9 / rate * 1e3
        row |= {"reducers_ms": round(reducers, 2), "estimated_first_token_ms": round(first, 1)}
        row["share"] = round(reducers / (first + reducers), 5)
        row["product_gflop_per_s"] = round(rate / 1e9, 1)
        row["environment"] = {"before": before, "after": environment()}
        if row["share"] > AIM:
            missed.append(name)
        nodes = "+".join(str(site["nodes"]) for site in sites)
        cells = (f"{reducers:.1f}", f"{first:.0f}", f"{row['share']:.2%}", nodes)
        table.append((name, *cells))
    columns = ("method", "reducers ms", "first token ms (estimate)", "share", "nodes")
    print_environment(before)
    print_table(f"reducers at {TOKENS} -> {KEPT} tokens, LLaVA-1.5-7B's shapes", columns, table)
    print(f"one product: {rate / 1e9:.0f} GFLOP/s; aim: a share of {AIM:.0%} at most")
    if missed:
        print(f"above the aim: {', '.join(missed)}")
    earlier = RESULTS / "reducer_cost.json"
    if earlier.exists():
        rows = json.loads(earlier.read_text(encoding="utf-8"))["methods"] | rows
    content = {"tokens": [TOKENS, KEPT], "text_tokens": TEXT, "methods": rows}
    print(save("reducer_cost", content))
    return missed


if __name__ == "__main__":
    sys.exit(main())
