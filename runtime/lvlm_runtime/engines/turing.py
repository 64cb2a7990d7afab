"""Turing (sm75) has no float32 matrix product in TensorRT-RTX: "FP32 GEMM is not supported".

Weighted subgraphs multiply in half precision anyway (a bundle in float32 is refused for Turing);
reducers compare tokens in float32. Those products, and nothing else, are rounded to half precision:
what they multiply came out of half precision graphs, softmax and sums stay in float32. Tokens whose
scores are within about 0.05 % of each other may rank the other way round than on a newer GPU.
"""

from __future__ import annotations

from typing import Any

TURING = "sm75"


def multiply_in_half(trt: Any, network: Any) -> int:
    """Put half precision products in the place of a parsed network's float32 ones.

    Args:
        trt: ``tensorrt_rtx``.
        network: A strongly typed ``INetworkDefinition``. The old layers stay in it, without anybody
            who takes what they give, and the builder leaves them out.

    Returns:
        How many there were.
    """
    products = [
        layer
        for layer in map(network.get_layer, range(network.num_layers))
        if layer.type == trt.LayerType.MATRIX_MULTIPLY
        and layer.get_input(0).dtype == trt.float32
        and _takers(network, layer.get_output(0).name)
    ]
    for layer in products:
        # The bindings give every layer as its base class.
        layer.__class__ = trt.IMatrixMultiplyLayer
        first, second = (
            network.add_cast(layer.get_input(index), trt.float16).get_output(0)
            for index in range(2)
        )
        product = network.add_matrix_multiply(first, layer.op0, second, layer.op1)
        result = network.add_cast(product.get_output(0), trt.float32).get_output(0)
        for taker, index in _takers(network, layer.get_output(0).name):
            taker.set_input(index, result)
    return len(products)


def _takers(network: Any, name: str) -> list[tuple[Any, int]]:
    """Layers that take a tensor, and which of their inputs it is."""
    found = []
    for layer in map(network.get_layer, range(network.num_layers)):
        for index in range(layer.num_inputs):
            tensor = layer.get_input(index)
            if tensor is not None and tensor.name == name:
                found.append((layer, index))
    return found
