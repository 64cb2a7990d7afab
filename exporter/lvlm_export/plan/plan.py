"""What to build, decided before anything heavy happens: options, shapes, budgets, cuts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from lvlm_export.plan.cuts import DecoderCut, VisionCut, cut_decoder, cut_vision
from lvlm_export.plan.fit import check_fit, check_rank, geometry_of
from lvlm_export.plan.targets import BFLOAT16_TARGETS, TARGETS
from lvlm_export.plan.weight_formats import FORMATS, UNROUNDED, PartFormats
from lvlm_export.reduction import DEFAULT_METHOD, load_method
from lvlm_export.reduction.budget import BudgetPlan
from lvlm_export.reduction.method import STAGES, Method, Site
from lvlm_export.reduction.schedule import plan_budget
from lvlm_profiles.cost.units import precision_of
from lvlm_runtime.bundle.manifest import CAUSAL
from lvlm_runtime.bundle.placement import AS_PUBLISHED, HandPlacement
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.families import ModelShape
    from lvlm_runtime.bundle.manifest import Manifest


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build.

    Attributes:
        ratios: Shares of visual tokens kept; the first is the bundle's default.
        baseline: Add ratio 1.0, so that every bundle can be compared with the unreduced model.
        method: Key in ``METHODS``, or two of them with a plus between.
        target: Key in ``TARGETS``.
        precision: Of activations, one of ``FLOATS``, or None for the target's own.
        weights: What is stored in fewer bits.
        dialect: Key in ``DIALECTS``, or None for the target's own.
        lm_head_splits: Graphs that the LM head is split into, along the vocabulary.
        seed: For methods that draw numbers.
        image_size: Height and width of the picture a static tile layout is made for.
        more_sizes: Of the pictures that further tile layouts are made for.
        context_length: Positions for prompt and answer, or None for the model's own.
        placement: Sites, share and counts by hand.
    """

    ratios: tuple[float, ...]
    baseline: bool = True
    method: str = DEFAULT_METHOD
    target: str = "cpu"
    precision: str | None = None
    weights: PartFormats = UNROUNDED
    dialect: str | None = None
    lm_head_splits: int = 1
    seed: int = 0
    image_size: tuple[int, int] | None = None
    more_sizes: tuple[tuple[int, int], ...] = ()
    context_length: int | None = None
    placement: HandPlacement = AS_PUBLISHED

    @property
    def effective_precision(self) -> str:
        """The precision that was given, or the target's own."""
        return self.precision or TARGETS[self.target].precision

    @property
    def effective_dialect(self) -> str:
        """The dialect that was given, or the target's own."""
        return self.dialect or TARGETS[self.target].dialect


def options_of(manifest: Manifest) -> BuildOptions:
    """The options that give a manifest's plan, and its content key, again."""
    sizes = [
        (layout.image_height, layout.image_width)
        for layout in manifest.layouts
        if layout.image_height
    ]
    return BuildOptions(
        ratios=tuple(budget.ratio for budget in manifest.budgets),
        baseline=False,
        method=manifest.method,
        placement=manifest.placement,
        target=manifest.target,
        precision=precision_of(manifest.precision).name,
        weights=PartFormats(**manifest.quantised),
        dialect=manifest.dialect,
        lm_head_splits=len(manifest.lm_head),
        seed=manifest.seed,
        image_size=sizes[0] if sizes else None,
        more_sizes=tuple(sizes[1:]),
        context_length=manifest.text.context_length,
    )


@dataclass(frozen=True)
class Plan:
    """Everything the build does, in integers.

    Attributes:
        key: Content key of checkpoint, options and library versions.
        checkpoint_key: Content key of the checkpoint alone.
    """

    options: BuildOptions
    shape: ModelShape
    method: Method
    sites: tuple[Site, ...]
    vision: tuple[VisionCut, ...]
    decoder: tuple[DecoderCut, ...]
    budgets: tuple[BudgetPlan, ...]
    key: str
    checkpoint_key: str

    @property
    def sized(self) -> bool:
        """The decoder counts the patches that a token stands for."""
        return self.decoder[0].sized


def make_plan(checkpoint: Checkpoint, options: BuildOptions) -> Plan:
    """Check the options against the checkpoint and count every token.

    Raises:
        UsageError: A ratio, method or size that does not fit the model.
        LvlmError: A checkpoint that is not supported.
    """
    checkpoint_key = checkpoint.content_key()
    shape = checkpoint.shape(options.image_size, options.more_sizes)
    shape = _limit_context(shape, options.context_length)
    _check_splits(options.lm_head_splits, shape)
    check_precision(options)
    method = load_method(options.method, options.placement)
    geometry = geometry_of(shape)
    ratios = _ratios(options)
    if any(ratio < 1 for ratio in ratios):
        check_fit(method, geometry, shape.vision.prefix, shape.packed)
    budgets = tuple(plan_budget(ratio, method, geometry) for ratio in ratios)
    for budget in budgets:
        check_rank(method, budget, shape.text.hidden_size)
    sites = _all_sites(method, shape, ratios)
    return Plan(
        options=options,
        shape=shape,
        method=method,
        sites=sites,
        vision=cut_vision(
            shape.vision.layers,
            sites,
            method.tracks_size,
            shape.vision.side_rows,
            shape.vision.planes,
        ),
        decoder=cut_decoder(
            shape.text.layers,
            sites,
            method.sizes_in_decoder,
            len(shape.vision.planes),
            shape.text.attention != CAUSAL,
            shape.text.windowed,
        ),
        budgets=budgets,
        key=_key(checkpoint_key, options, shape),
        checkpoint_key=checkpoint_key,
    )


def _all_sites(method: Method, shape: ModelShape, ratios: tuple[float, ...]) -> tuple[Site, ...]:
    """Sites of all ratios, each once, in the order tokens pass them.

    Most methods have the same sites for every ratio; a budget uses its own and skips the others.
    """
    sites = {
        site
        for ratio in ratios
        if ratio < 1
        for site in method.sites(shape.vision.layers, shape.text.layers, ratio)
    }
    return tuple(sorted(sites, key=lambda site: (STAGES.index(site.stage), site.layer)))


def _ratios(options: BuildOptions) -> tuple[float, ...]:
    if not options.ratios:
        raise UsageError("no ratio given; give the shares of visual tokens to keep, --ratio 0.33")
    wanted = (*options.ratios, 1.0) if options.baseline else options.ratios
    return tuple(dict.fromkeys(wanted))


def check_precision(options: BuildOptions) -> None:
    """UsageError for a precision that the target does not take."""
    if options.effective_precision == "bf16" and options.target not in BFLOAT16_TARGETS:
        raise UsageError(
            f"--precision bf16 runs in TensorRT ({', '.join(BFLOAT16_TARGETS)}) and not on target"
            f" {options.target}, which is ONNX Runtime; take fp16 or fp32"
        )
    rounded = sorted(set(options.weights.named.values()))
    if not rounded:
        return
    if options.effective_precision == "bf16":
        raise UsageError(
            f"{' and '.join(rounded)} weights go with fp16 or fp32 activations and not with bf16"
        )
    if options.effective_dialect != "opset24" and any(FORMATS[name].block for name in rounded):
        own = " or --dialect opset24" if TARGETS[options.target].dialect == "opset24" else ""
        raise UsageError(
            f"int4 weights have blocks, which came with opset 21, and target {options.target} in"
            f" dialect {options.effective_dialect} takes opset 20; take --precision int8{own}"
        )


def _check_splits(splits: int, shape: ModelShape) -> None:
    if not 1 <= splits <= shape.text.vocab_size:
        raise UsageError(
            f"--lm-head-splits {splits} is outside 1 to {shape.text.vocab_size}, the vocabulary of"
            " the model"
        )


def _limit_context(shape: ModelShape, limit: int | None) -> ModelShape:
    if limit is None:
        return shape
    if not 0 < limit <= shape.text.context_length:
        raise UsageError(
            f"--context-length {limit} is outside 1 to {shape.text.context_length}, what the model"
            " was made for"
        )
    return replace(shape, text=replace(shape.text, context_length=limit))


def _key(checkpoint_key: str, options: BuildOptions, shape: ModelShape) -> str:
    from lvlm_export.plan.versions import source_key, versions

    chosen = asdict(options)
    # Options that say the same are the same bundle: 1.0 by name or as the baseline, a size or length by
    # name or as the model has it.
    del chosen["baseline"], chosen["image_size"], chosen["more_sizes"]
    content = {
        "checkpoint": checkpoint_key,
        "options": {
            **chosen,
            "ratios": _ratios(options),
            "precision": options.effective_precision,
            "dialect": options.effective_dialect,
            "layouts": [asdict(layout) for layout in shape.layouts],
            "context_length": shape.text.context_length,
        },
        "versions": versions(),
        "source": source_key(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
