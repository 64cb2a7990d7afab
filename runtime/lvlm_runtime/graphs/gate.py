"""The operator gate: does a graph use only what a TensorRT version's ONNX parser takes?

It answers without a GPU and without TensorRT, from the table in ``operators``, and names the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.errors import UsageError
from lvlm_runtime.graphs.operators import (
    ACCEPTED,
    ELEMENT_TYPES,
    ELEMENT_TYPES_SINCE,
    PARSERS,
    RTX_LESS,
    RTX_MORE,
    SINCE,
    TOPK_LIMIT,
    Parser,
    Version,
)
from lvlm_runtime.graphs.reader import (
    Constant,
    Graph,
    Node,
    OnnxModel,
    TensorInfo,
    parse_model,
    read_model,
)

# Inputs whose sequence axis the engine builder makes static before the parser sees it.
CACHE_INPUTS = ("past_key.", "past_value.")
STANDARD = ("", "ai.onnx")
REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)


@dataclass(frozen=True)
class Violation:
    """One thing in a graph that a parser does not take.

    Attributes:
        graph: The graph's file.
        node: The node; ``graph`` or a tensor's name where the fault is not a node's.
        op: Its operator, with the domain where it is not the standard one; empty for the graph.
        reason: What is wrong, in a few words.
        first: The first version that has it (``TensorRT 10.15``), or None where none has.
    """

    graph: str
    node: str
    op: str
    reason: str
    first: str | None

    def __str__(self) -> str:
        """One line."""
        where = f"{self.graph}, {self.node}" + (f" ({self.op})" if self.op else "")
        return f"{where}: {self.reason}" + (f"; {self.first} has it" if self.first else "")


@dataclass(frozen=True)
class Context:
    """What the rules need beside the node itself."""

    parser: Parser
    inputs: dict[str, TensorInfo]
    constants: dict[str, Constant]

    def before(self, version: Version) -> bool:
        """The parser is a TensorRT older than ``version``; TensorRT-RTX is newer than all."""
        return not self.parser.rtx and self.parser.version < version


Finding = tuple[str, str | None]
Rule = Callable[[Node, Context], Finding | None]


def find_parser(target: str) -> Parser:
    """The parser of a target; UsageError names those that are known."""
    if target not in PARSERS:
        raise UsageError(f"no operator table for {target!r}; known: {', '.join(PARSERS)}")
    return PARSERS[target]


def parser_of(target: str, version: str) -> str | None:
    """The key in ``PARSERS`` of what is installed; None where it is older than all that are known.

    Args:
        target: ``rtx`` or ``trt``.
        version: Of the library, ``10.13.3.9``; a newer one takes what the last known before it takes.

    Example:
        >>> parser_of("trt", "10.7.0"), parser_of("trt", "12.0"), parser_of("trt", "8.6")
        ('trt-10.3', 'trt-11', None)
    """
    if target == "rtx":
        return target
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    older = [
        (parser.version, name)
        for name, parser in PARSERS.items()
        if not parser.rtx and list(parser.version) <= numbers
    ]
    return max(older)[1] if older else None


def check_bundle(bundle: Bundle, target: str) -> list[Violation]:
    """Every graph of a bundle against a target; an empty list is a pass."""
    parser = find_parser(target)
    violations = []
    for name in sorted(bundle.manifest.files):
        if name.endswith(".onnx"):
            path = bundle.path(name)
            violations += check_model(parse_model(bundle.graph(name), path), path.name, parser)
    return violations


def check_graph(path: Path, target: str) -> list[Violation]:
    """One graph file against a target.

    Args:
        path: The ``.onnx`` file.
        target: Key in ``PARSERS``.

    Raises:
        UsageError: Unknown target.
        LvlmError: Not an ONNX file.
    """
    parser = find_parser(target)
    return check_model(read_model(path), path.name, parser)


def check_model(model: OnnxModel, label: str, parser: Parser) -> list[Violation]:
    """One parsed graph against a parser."""
    violations = [Violation(label, "graph", "", *finding) for finding in _opset(model, parser)]
    for graph in _all_graphs(model.graph):
        for name, kind in _element_types(graph):
            finding = _element_type(kind, parser)
            violations += [] if finding is None else [Violation(label, name, "", *finding)]
        context = Context(parser, {info.name: info for info in model.graph.inputs}, graph.constants)
        for node in graph.nodes:
            op = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
            finding = _operator(node, context)
            findings = [finding] if finding else [rule(node, context) for rule in RULES]
            violations += [Violation(label, node.label, op, *each) for each in findings if each]
    return violations


def _all_graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.nodes:
        for value in node.attributes.values():
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, Graph):
                    yield from _all_graphs(each)


def _opset(model: OnnxModel, parser: Parser) -> Iterator[Finding]:
    lowest, highest = parser.opsets
    for domain, version in model.opsets.items():
        if domain in STANDARD and not lowest <= version <= highest:
            newer = (each for each in PARSERS.values() if version <= each.opsets[1])
            first = next((each.title for each in newer), None) if version > highest else None
            yield f"opset {version}, and {parser.title} takes {lowest} to {highest}", first


def _element_types(graph: Graph) -> Iterator[tuple[str, str]]:
    for info in (*graph.inputs, *graph.outputs):
        yield info.name, info.element_type
    for name, constant in graph.constants.items():
        yield name, constant.element_type


def _element_type(kind: str, parser: Parser) -> Finding | None:
    if kind not in ELEMENT_TYPES:
        return f"element type {kind}", None
    since = ELEMENT_TYPES_SINCE.get(kind)
    if since is not None and not parser.rtx and parser.version < since:
        return f"element type {kind}", _title(since)
    return None


def _operator(node: Node, context: Context) -> Finding | None:
    """Does the parser know the operator?"""
    if node.domain not in STANDARD:
        return f"operators of {node.domain} need a plugin that the parser does not bring", None
    parser, op = context.parser, node.op_type
    if parser.rtx:
        known = op in RTX_MORE or (op in ACCEPTED and op not in RTX_LESS)
        return None if known else (f"{parser.title} has no importer for it", None)
    if op not in ACCEPTED:
        first = PARSERS["rtx"].title if op in RTX_MORE else None
        return f"{parser.title} has no importer for it", first
    since = SINCE.get(op)
    if since is not None and parser.version < since:
        return f"{parser.title} has no importer for it", _title(since)
    return None


def _scatter(node: Node, _context: Context) -> Finding | None:
    reduction = node.attributes.get("reduction", "none")
    if node.op_type in ("ScatterElements", "ScatterND") and reduction != "none":
        # TensorRT 10 imports ScatterElements with a reduction as a plugin, TensorRT-RTX not at all.
        return f"reduction {reduction!r} needs a plugin", None
    return None


def _top_k(node: Node, context: Context) -> Finding | None:
    if node.op_type != "TopK":
        return None
    count = context.constants.get(node.inputs[1])
    if count is not None and count.values and count.values[0] > TOPK_LIMIT:
        return f"K is {count.values[0]}, at most {TOPK_LIMIT} can be built", None
    if node.attributes.get("sorted", 1) != 1:
        return "sorted must be 1", None
    return None


def _tensor_scatter(node: Node, context: Context) -> Finding | None:
    if node.op_type != "TensorScatter":
        return None
    cache = context.inputs.get(node.inputs[0])
    axis = node.attributes.get("axis", -2)
    if axis not in (-2, 2):
        return f"axis {axis}, and only the second last of four can be written", None
    # A value computed inside the graph has no shape in the file; the builder checks it.
    if cache is None or cache.name.startswith(CACHE_INPUTS):
        return None
    if len(cache.dims) != 4:
        return f"the cache has {len(cache.dims)} dimensions instead of 4", None
    if not isinstance(cache.dims[2], int):
        return "the sequence length of the cache must be static", None
    return None


def _attention(node: Node, context: Context) -> Finding | None:
    if node.op_type != "Attention":
        return None
    given = dict(enumerate(node.inputs))
    if given.get(4) or given.get(5):
        return "past_key and past_value are not taken", None
    if any(node.outputs[1:]):
        return "only the first output is supported", None
    if node.attributes.get("softcap", 0) or node.attributes.get("qk_matmul_output_mode", 0):
        return "softcap and qk_matmul_output_mode are not taken", None
    if given.get(6) and not context.parser.rtx:
        # [table] of 10.15, and the same sentence in that of 11.2.
        reason = "nonpad_kv_seqlen is documented as not taken"
        return reason, PARSERS["rtx"].title
    if context.parser.rtx and _has_float32_cache(context):
        return "no kernel for float32; build the bundle with --precision fp16", None
    return None


def _has_float32_cache(context: Context) -> bool:
    """[rtx] float32 ``Attention`` parses, and then finds no kernel."""
    names = ("hidden", "pixel_values", *CACHE_INPUTS)
    return any(
        info.element_type == "float32" and name.startswith(names)
        for name, info in context.inputs.items()
    )


def _constant_inputs(node: Node, context: Context) -> Finding | None:
    """Inputs that must be known when the engine is built."""
    wanted = {"OneHot": (1, "depth", None), "CumSum": (1, "axis", (10, 8))}
    wanted |= dict.fromkeys(REDUCTIONS, (1, "axes", None))
    wanted |= dict.fromkeys(("Squeeze", "Unsqueeze"), (1, "axes", (10, 7)))
    if node.op_type not in wanted:
        return None
    index, name, lifted = wanted[node.op_type]
    value = node.inputs[index] if index < len(node.inputs) else ""
    if not value or value in context.constants or (lifted and not context.before(lifted)):
        return None
    return f"{name} must be a constant", None if lifted is None else _title(lifted)


def _outputs(node: Node, _context: Context) -> Finding | None:
    if node.op_type in ("LayerNormalization", "MaxPool") and any(node.outputs[1:]):
        return "only the first output is supported", None
    return None


RULES: tuple[Rule, ...] = (
    _scatter,
    _top_k,
    _tensor_scatter,
    _attention,
    _constant_inputs,
    _outputs,
)


def _title(version: Version) -> str:
    return f"TensorRT {version[0]}.{version[1]}"
