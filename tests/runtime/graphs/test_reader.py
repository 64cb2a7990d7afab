"""Reading and changing ONNX files without ``onnx``, compared with ``onnx`` itself."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from lvlm_runtime.graphs.protobuf import encode_varint, read_varint
from lvlm_runtime.graphs.reader import fix_input_sizes, read_model


def test_a_bundles_graphs_read_as_onnx_reads_them(demo_bundle: Path) -> None:
    for path in sorted(demo_bundle.glob("*.onnx")):
        ours, theirs = read_model(path), onnx.load(path, load_external_data=False)
        assert ours.opsets == {entry.domain: entry.version for entry in theirs.opset_import}
        pairs = list(zip(ours.graph.nodes, theirs.graph.node, strict=True))
        assert all(a.op_type == b.op_type and a.domain == b.domain for a, b in pairs)
        assert all(a.inputs == tuple(b.input) for a, b in pairs)
        assert all(a.outputs == tuple(b.output) for a, b in pairs)
        for a, b in pairs:
            for each in b.attribute:
                value = helper.get_attribute_value(each)
                if isinstance(value, int | float):
                    assert a.attributes[each.name] == value
        for info, other in zip(ours.graph.inputs, theirs.graph.input, strict=True):
            shape = other.type.tensor_type.shape.dim
            assert info.name == other.name
            assert info.dims == tuple(d.dim_value or d.dim_param or None for d in shape)
        names = {each.name for each in theirs.graph.initializer}
        assert names <= set(ours.graph.constants)


def test_only_the_named_sizes_change() -> None:
    kind = TensorProto.FLOAT16
    info = helper.make_tensor_value_info
    inputs = [info("x", kind, [1, "n", "n", 4]), info("y", kind, ["n"])]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "g", inputs, [info("z", kind, None)]
    )
    data = helper.make_model(graph).SerializeToString()
    assert fix_input_sizes(data, {}) == data
    changed = onnx.load_from_string(fix_input_sizes(data, {"x": {2: 70000}}))
    dims = changed.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value or d.dim_param for d in dims] == [1, "n", 70000, 4]
    dims[2].dim_param = "n"
    assert changed.SerializeToString() == data
    with pytest.raises(KeyError, match="no input w"):
        fix_input_sizes(data, {"w": {0: 1}})


@given(st.integers(0, 2**64 - 1))
def test_a_number_survives_the_round_trip(value: int) -> None:
    assert read_varint(encode_varint(value), 0) == (value, len(encode_varint(value)))
