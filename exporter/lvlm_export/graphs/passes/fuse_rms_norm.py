"""A root mean square norm in one node."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from lvlm_export.graphs.passes._shared import apply, constant, name_after


def fuse_rms_norm(model: ir.Model) -> bool:
    """``w * (x * 1/sqrt(mean(x^2) + eps))`` becomes one ``RMSNormalization``.

    Seven nodes that each walk over ``[S, C]``, and onnxruntime's own fusion stops at the
    ``Reciprocal`` that the tracer emits for ``rsqrt``. Prefill of 800 tokens
    2 % faster, one-token decode 4 %.

    1. The mean is over the last axis, which it keeps; the weight is any value, on the left.
    2. Epsilon is a constant of the graph; a norm that computes it stays as it is.
    3. A norm of another form (in half precision, whose tracer casts to float32 and back, or
       without a weight) stays as it is.

    Returns:
        Whether there was one.
    """
    return apply(_RmsNorm.rule(), model)


class _RmsNorm(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    def pattern(self, op: Any, x: Any, weight: Any, epsilon: Any) -> Any:
        # 1.
        mean = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1, noop_with_empty_axes=0)
        scaled = op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(mean, epsilon))), _outputs=["scaled"])
        return op.Mul(weight, scaled)

    def check(self, context: Any, epsilon: Any, **_: Any) -> bool:
        # 2.
        return constant(epsilon) is not None

    def rewrite(self, op: Any, x: Any, weight: Any, epsilon: Any, scaled: Any) -> Any:
        norm = op.RMSNormalization(x, weight, axis=-1, epsilon=float(constant(epsilon).item()))
        name_after(scaled.producer(), norm)
        return norm
