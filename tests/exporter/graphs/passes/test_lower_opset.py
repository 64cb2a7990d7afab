"""The graph as one of opset 20, on graphs built by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from hand_built import INT64, HandBuilt, random, run, same_numbers
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.graphs.passes.lower_opset import IR_VERSION, OPSET, lower_opset


def model(op: str, domain: str = "", **attributes: Any) -> ir.Model:
    g = HandBuilt("selector")
    x = g.input("x", [4], ir.DataType.FLOAT16)
    return g.model(infer=False, y=g.node(op, x, domain=domain, **attributes))


def refused(wrong: ir.Model, op: str, found: str) -> None:
    message = (
        rf"lower_opset: node selector/{op} \({op}\): expected an operator of opset 20, found {found};"
        " write it in operators of opset 20 or build with --dialect opset24$"
    )
    with pytest.raises(PassError, match=message):
        lower_opset(wrong)
    assert wrong.opset_imports[""] == 24


def test_rule_1_another_domain_is_refused() -> None:
    refused(model("FastGelu", "com.microsoft"), "FastGelu", r"one of com\.microsoft")


def test_rule_2_an_operator_that_came_later_is_refused() -> None:
    refused(model("RMSNormalization"), "RMSNormalization", "one that does not exist there")


def test_rule_3_a_version_that_is_not_known_to_mean_the_same_is_refused() -> None:
    found = "version 22, which is not known to mean the same there"
    refused(model("Softplus"), "Softplus", found)


def test_rule_4_an_attribute_that_came_later_is_refused() -> None:
    found = "attribute round_mode, which does not exist there"
    refused(model("Cast", to=1, round_mode="up"), "Cast", found)


def test_rule_3_more_element_types_are_no_change() -> None:
    g = HandBuilt("selector")
    x = g.input("x", [2, "n"])
    wide = g.node("Transpose", g.node("Identity", x), perm=[1, 0])
    same = g.model(y=g.node("Reshape", wide, g.constant([-1])))
    feeds = {"x": random(1, 2, 3)}
    before = run(same, feeds)
    assert lower_opset(same)
    assert (same.opset_imports, same.ir_version) == ({"": OPSET}, IR_VERSION)
    same_numbers(before, run(same, feeds))


def test_rule_3_an_operator_with_a_subgraph_is_refused() -> None:
    inner = HandBuilt()
    branch = inner.model(infer=False, z=inner.node("Neg", inner.constant([1.0], np.float32))).graph
    g = HandBuilt("selector")
    condition = g.node("Equal", g.input("n", [1], INT64), g.constant([1]))
    branches = g.node("If", condition, then_branch=branch, else_branch=branch)
    found = "version 24, which is not known to mean the same there"
    refused(g.model(infer=False, y=branches), "If", found)
