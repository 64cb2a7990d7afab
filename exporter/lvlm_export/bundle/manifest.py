"""From a plan and the finished files to the manifest of a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_export.bundle.workspace import Workspace, file_ref
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.files import PROJECTOR_FILE, lm_head_files, packer_file, reducer_file
from lvlm_export.plan.plan import Plan
from lvlm_export.plan.versions import versions
from lvlm_export.reduction.budget import BudgetPlan, LayoutPlan, SiteCount
from lvlm_profiles.cost.units import precision_of
from lvlm_runtime.bundle.bundle import TOKENIZER, WEIGHTS
from lvlm_runtime.bundle.manifest import (
    HEAD_MAJOR,
    SCHEMA,
    SEQUENCE_MAJOR,
    Budget,
    FileRef,
    LayoutBudget,
    Manifest,
    Projector,
    Reduction,
    Subgraph,
    TensorRef,
    TextSpec,
)
from lvlm_runtime.progress import Progress

KV_LAYOUTS = {"opset24": HEAD_MAJOR, "decomposed": SEQUENCE_MAJOR}


@dataclass(frozen=True)
class Exported:
    """What the export of the graphs leaves beside their files.

    Attributes:
        embed_tokens: Where the token table lies.
        embed_scales: What its rows are multiplied by where they are integers.
        inputs: Graph file -> what it takes, by name.
    """

    embed_tokens: TensorRef
    embed_scales: TensorRef | None
    inputs: dict[str, tuple[str, ...]]


def write_manifest(
    checkpoint: Checkpoint,
    model_name: str,
    plan: Plan,
    workspace: Workspace,
    exported: Exported,
    progress: Progress,
) -> Manifest:
    """Describe what lies in the workspace."""
    shape, text = plan.shape, plan.shape.text
    return Manifest(
        schema=SCHEMA,
        content_key=plan.key,
        checkpoint_key=plan.checkpoint_key,
        versions=versions(),
        model=model_name,
        family=checkpoint.config.model_type,
        method=plan.method.name,
        placement=plan.options.placement,
        seed=plan.options.seed,
        precision=precision_of(plan.options.effective_precision).numpy_name,
        quantised=plan.options.weights.named,
        target=plan.options.target,
        dialect=plan.options.effective_dialect,
        kv_layout=KV_LAYOUTS[plan.options.effective_dialect],
        vision_tokens=shape.vision.tokens,
        preprocess=shape.preprocess,
        layouts=shape.layouts,
        vision=_vision_stages(plan),
        projector=_projector(plan),
        decoder=_decoder_stages(plan),
        assemble="assemble.onnx",
        lm_head=lm_head_files(plan.options.lm_head_splits),
        text=TextSpec(
            layers=text.layers,
            hidden_size=text.hidden_size,
            kv_heads=text.kv_heads,
            head_dim=text.head_dim,
            vocab_size=text.vocab_size,
            context_length=text.context_length,
            position_rows=text.position_rows,
            image_token_id=shape.image_token_id,
            stop_ids=checkpoint.stop_ids,
            embed_tokens=exported.embed_tokens,
            embed_scales=exported.embed_scales,
            attention=text.attention,
            embed_scale=text.embed_scale,
            window=text.window,
        ),
        dims=shape.dims,
        budgets=tuple(_budget(plan, budget, exported) for budget in plan.budgets),
        weights=workspace.tensors,
        files=_files(workspace, progress),
    )


def _vision_stages(plan: Plan) -> tuple[Subgraph, ...]:
    return tuple(
        Subgraph(
            cut.name,
            f"{cut.name}.onnx",
            None if cut.site is None else cut.site.name,
            0,
            0,
            cut.inputs,
        )
        for cut in plan.vision
    )


def _projector(plan: Plan) -> Projector | None:
    shape = plan.shape.projector
    return None if shape is None else Projector(PROJECTOR_FILE, shape.tokens, shape.inputs)


def _decoder_stages(plan: Plan) -> tuple[Subgraph, ...]:
    return tuple(
        Subgraph(
            cut.name,
            f"{cut.name}.onnx",
            f"decoder@{cut.last}" if cut.scored else None,
            cut.first,
            cut.last,
            cut.inputs,
        )
        for cut in plan.decoder
    )


def _budget(plan: Plan, budget: BudgetPlan, exported: Exported) -> Budget:
    kept = budget.kept_per_tile(plan.shape.vision.tokens)
    return Budget(
        ratio=budget.ratio,
        vision=tuple(_reduction(count, plan, exported) for count in budget.vision),
        layouts=tuple(_layout(part, kept, plan, exported) for part in budget.layouts),
    )


def _layout(part: LayoutPlan, kept: int, plan: Plan, exported: Exported) -> LayoutBudget:
    projected, packer = part.projected, packer_file(part.layout, kept)
    return LayoutBudget(
        layout=part.layout,
        # A family may pack the pictures of some layouts alone: one tile is not joined.
        packer=packer if packer in exported.inputs else None,
        tokens_full=part.tokens_full,
        tokens_in=part.tokens_in,
        projected=None if projected is None else _reduction(projected, plan, exported),
        decoder=tuple(_reduction(count, plan, exported) for count in part.decoder),
        achieved=part.achieved,
    )


def _reduction(count: SiteCount, plan: Plan, exported: Exported) -> Reduction:
    return Reduction(
        site=count.site.name,
        tokens_in=count.tokens_in,
        tokens_out=count.tokens_out,
        graph=reducer_file(count),
        inputs=exported.inputs[reducer_file(count)],
        merges=plan.method.merges_at(count.site),
    )


def _files(workspace: Workspace, progress: Progress) -> dict[str, FileRef]:
    names = sorted(workspace.done)
    names += [
        WEIGHTS,
        *(f"{TOKENIZER}/{path.name}" for path in sorted(workspace.path(TOKENIZER).iterdir())),
    ]
    files = {}
    with progress.stage("hashing files", len(names)) as advance:
        for name in names:
            files[name] = file_ref(workspace.path(name))
            advance(name)
    return files
