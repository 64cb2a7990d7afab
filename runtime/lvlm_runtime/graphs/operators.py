"""Which ONNX operators each TensorRT version's parser takes: data, with their sources.

Sources:
    [table] onnx/onnx-tensorrt ``docs/operators.md`` as of TensorRT 10.15 (opset 9 to 24), and of
        10.0 (opset 9 to 20).
    [changes] onnx/onnx-tensorrt ``docs/Changelog.md``, 10.0 to 10.15: what each version added.
    [guide] NVIDIA TensorRT documentation, "ONNX Opset Guide" (11.x: opset up to 25).
    [rtx] the answers of the parser of tensorrt-rtx 1.7.1 itself (``OnnxParser.supports_operator``,
        and small graphs parsed and built on a machine without a GPU).
There is no public table of 10.13; its opset limit here is that of 10.0, which is on the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, int]


@dataclass(frozen=True)
class Parser:
    """One TensorRT version's ONNX parser.

    Attributes:
        title: For messages.
        version: Of TensorRT; TensorRT-RTX has numbers of its own.
        rtx: It is TensorRT-RTX.
        opsets: Lowest and highest version of the standard operators.
        source: Where the opset range comes from.
    """

    title: str
    version: Version
    rtx: bool
    opsets: tuple[int, int]
    source: str


PARSERS: dict[str, Parser] = {
    "trt-10.3": Parser("TensorRT 10.3 (JetPack 6)", (10, 3), False, (9, 20), "[table] of 10.0"),
    "trt-10.13": Parser(
        "TensorRT 10.13 (JetPack 7.0)", (10, 13), False, (9, 20), "[table] of 10.0"
    ),
    "trt-10.16": Parser(
        "TensorRT 10.16 (JetPack 7.2)", (10, 16), False, (9, 24), "[table] of 10.15"
    ),
    "trt-11": Parser("TensorRT 11", (11, 0), False, (9, 25), "[guide]"),
    "rtx": Parser("TensorRT-RTX 1.7", (1, 7), True, (9, 26), "[rtx]"),
}

# [table] every operator with a Y.
_ACCEPTED = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape
    Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum
    Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
    InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish
    Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow PRelu QuantizeLinear RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RMSNormalization RNN RoiAlign
    RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid
    Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan
    Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
ACCEPTED = frozenset(_ACCEPTED.split())
# [changes] the version of TensorRT that brought an operator; all others are older than 10.3.
SINCE: dict[str, Version] = {
    "BlackmanWindow": (10, 4),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "STFT": (10, 5),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
}
# [rtx] where its parser answers differently from [table].
RTX_MORE = frozenset(("CausalConvWithState", "LinearAttention", "Swish"))
RTX_LESS = frozenset(("DeformConv",))

# [table] element types of tensors; [changes] FP4 came in 10.8.
ELEMENT_TYPES = frozenset(
    (
        *("float32", "float16", "bfloat16", "int32", "int64", "int8", "int4", "uint8", "bool"),
        *("float8e4m3fn", "float4e2m1"),
    )
)
ELEMENT_TYPES_SINCE: dict[str, Version] = {"float4e2m1": (10, 8)}
# [table] "Restrictions"; [rtx] 3840 still builds, 3841 does not.
TOPK_LIMIT = 3840
