"""The operator gate on graphs that are wrong on purpose, and on the bundles' own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from command_line import typed
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.graphs.gate import Violation, check_graph
from lvlm_runtime.graphs.operators import PARSERS

FLOAT, HALF, INT64, DOUBLE = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.DOUBLE,
)


def saved(path: Path, nodes: list[Any], inputs: dict[str, Any], **options: Any) -> Path:
    """Write a graph; ``inputs``: name to (element type, shape); outputs are the last node's."""
    infos = [helper.make_tensor_value_info(name, *each) for name, each in inputs.items()]
    kind = next(iter(inputs.values()))[0]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], kind, None)]
    constants = [numpy_helper.from_array(v, n) for n, v in options.get("constants", {}).items()]
    graph = helper.make_graph(nodes, "g", infos, outputs, constants)
    opsets = [
        helper.make_opsetid("", options.get("opset", 20)),
        helper.make_opsetid("com.microsoft", 1),
    ]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def scatter_add(path: Path) -> Path:
    node = helper.make_node(
        "ScatterElements", ["x", "i", "x"], ["y"], name="merge", axis=1, reduction="add"
    )
    return saved(path, [node], {"x": (FLOAT, [2, 8]), "i": (INT64, [2, 8])})


def top_k(path: Path, count: int) -> Path:
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], name="pick")
    return saved(
        path, [node], {"x": (FLOAT, [1, 9000])}, constants={"k": np.array([count], np.int64)}
    )


def attention(path: Path, kind: int, cache: str, length: int | str) -> Path:
    """Causal attention over a cache that is written first."""
    write = helper.make_node("TensorScatter", [cache, "k", "at"], ["kv"], name="write", axis=2)
    attend = helper.make_node(
        "Attention", ["q", "kv", "kv", "", "", "", "n"], ["y"], name="attend", is_causal=1
    )
    rows = (kind, [1, 2, 1, 16])
    inputs = {"q": rows, "k": rows, cache: (kind, [1, 2, length, 16])}
    inputs |= {"at": (INT64, [1]), "n": (INT64, [1])}
    return saved(path, [write, attend], inputs, opset=24)


def only(path: Path, target: str) -> Violation:
    [violation] = check_graph(path, target)
    return violation


@pytest.mark.parametrize("target", PARSERS)
def test_scatter_add_is_refused_with_the_nodes_name(tmp_path: Path, target: str) -> None:
    found = only(scatter_add(tmp_path / "reduce.onnx"), target)
    assert (found.graph, found.node, found.op) == ("reduce.onnx", "merge", "ScatterElements")
    assert "'add'" in found.reason


@pytest.mark.parametrize("target", PARSERS)
def test_top_k_has_a_limit(tmp_path: Path, target: str) -> None:
    assert check_graph(top_k(tmp_path / "a.onnx", 3840), target) == []
    found = only(top_k(tmp_path / "b.onnx", 5000), target)
    assert (found.node, found.reason) == ("pick", "K is 5000, at most 3840 can be built")


@pytest.mark.parametrize("target", PARSERS)
def test_operators_of_other_domains_are_refused(tmp_path: Path, target: str) -> None:
    node = helper.make_node(
        "GroupQueryAttention", ["x"], ["y"], name="gqa", domain="com.microsoft", num_heads=2
    )
    found = only(saved(tmp_path / "g.onnx", [node], {"x": (HALF, [1, 2])}), target)
    assert (found.node, found.op) == ("gqa", "com.microsoft.GroupQueryAttention")
    assert "plugin" in found.reason


def test_a_missing_operator_names_the_version_that_has_it(tmp_path: Path) -> None:
    node = helper.make_node("RMSNormalization", ["x", "w"], ["y"])
    path = saved(tmp_path / "n.onnx", [node], {"x": (HALF, [1, 8]), "w": (HALF, [8])}, opset=23)
    opset, operator = check_graph(path, "trt-10.3")
    assert "opset 23" in opset.reason
    assert (operator.node, operator.first) == ("node of y", "TensorRT 10.15")
    assert str(operator).endswith("has no importer for it; TensorRT 10.15 has it")
    assert check_graph(path, "trt-10.16") == []


def test_attention_over_a_cache(tmp_path: Path) -> None:
    path = attention(tmp_path / "a.onnx", HALF, "past_key.0", "cache")
    assert check_graph(path, "rtx") == []
    assert only(path, "trt-11").first == "TensorRT-RTX 1.7"
    single = attention(tmp_path / "b.onnx", FLOAT, "past_key.0", 64)
    assert "fp16" in only(single, "rtx").reason
    loose = attention(tmp_path / "c.onnx", HALF, "cache", "length")
    assert only(loose, "rtx").reason == "the sequence length of the cache must be static"


def test_element_types_and_sizes_that_must_be_constant(tmp_path: Path) -> None:
    node = helper.make_node("Unsqueeze", ["x", "axes"], ["y"], name="widen")
    path = saved(tmp_path / "u.onnx", [node], {"x": (FLOAT, [2]), "axes": (INT64, [1])})
    assert only(path, "trt-10.3").first == "TensorRT 10.7"
    assert check_graph(path, "trt-10.13") == []
    double = saved(
        tmp_path / "d.onnx", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": (DOUBLE, [2])}
    )
    assert {each.reason for each in check_graph(double, "rtx")} == {"element type float64"}


def test_nodes_inside_a_branch_are_checked(tmp_path: Path) -> None:
    inner = helper.make_node("Unique", ["x"], ["z"], name="inside")
    branch = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("z", FLOAT, None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = {"c": (TensorProto.BOOL, []), "x": (FLOAT, [2])}
    found = check_graph(saved(tmp_path / "i.onnx", [node], inputs), "rtx")
    assert {each.node for each in found} == {"inside"}


def test_bad_questions(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(LvlmError, match="is not an ONNX file"):
        check_graph(path, "rtx")
    with pytest.raises(UsageError, match=r"no operator table for 'trt-9'; known: trt-10\.3"):
        check_graph(path, "trt-9")


def test_check_refuses_the_cpu_bundle_for_tensorrt(demo_bundle: Path) -> None:
    result = typed("check", demo_bundle, "--target", "rtx")
    assert result.exit_code == 1
    assert "com.microsoft.GroupQueryAttention" in result.stdout
    [line] = result.stderr.splitlines()
    assert re.match(r"error: TensorRT-RTX 1\.7 does not take \d+ of \d+ graphs of ", line)
    assert "(built for cpu)" in line
    assert line.endswith("; build a bundle with --target rtx")
    assert typed("check", demo_bundle, "--target", "trt-9").exit_code == 2
