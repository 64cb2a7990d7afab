"""``lvlm-export build``: checkpoint to bundle, resumable, published in one rename."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lvlm_export import lowering
from lvlm_export.checkpoint import TOKENIZER_FILES, Checkpoint
from lvlm_export.graphs import DTYPES, graph_jobs, packer_file, reducer_file
from lvlm_export.onnx_export import export_graph, parameter_names
from lvlm_export.plan import BuildOptions, Plan, make_plan
from lvlm_export.reduction.schedule import BudgetPlan, LayoutPlan, SiteCount
from lvlm_export.versions import versions
from lvlm_export.weights import FILE_NAME, Placement, WeightStore
from lvlm_export.workspace import Workspace, existing_bundle, file_ref, open_workspace
from lvlm_runtime.bundle import TOKENIZER, Bundle, check_files
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.session import Session
from lvlm_runtime.spec import (
    SCHEMA,
    Budget,
    FileRef,
    LayoutBudget,
    Manifest,
    Reduction,
    Stage,
    TensorRef,
    TextSpec,
)

# Answer tokens that the parity gate compares per sample.
GATE_TOKENS = 16
NUMPY_NAMES = {"fp32": "float32", "fp16": "float16"}


class Progress(Protocol):
    """Told what the build is doing; the command line draws bars."""

    def stage(self, title: str, steps: int) -> AbstractContextManager[Advance]:
        """A stage of ``steps`` steps; inside, call the value once per step with its name."""
        ...


class Advance(Protocol):
    """Called once per step."""

    def __call__(self, step: str) -> None: ...


@dataclass(frozen=True)
class BuildResult:
    """What a build left behind.

    Attributes:
        directory: The bundle.
        manifest: What it holds.
        reused: The bundle was complete already and nothing was done.
    """

    directory: Path
    manifest: Manifest
    reused: bool


def build(
    checkpoint: Checkpoint,
    model_name: str,
    options: BuildOptions,
    output: Path,
    progress: Progress,
    verify_samples: int = 1,
    force: bool = False,
) -> BuildResult:
    """Export a checkpoint into a bundle directory, and publish it if it agrees with PyTorch.

    Args:
        checkpoint: The model.
        model_name: What to call it in the manifest.
        options: Ratios, method, target.
        output: Where the bundle goes.
        progress: Told about every graph.
        verify_samples: Synthetic samples per tile layout for the parity gate; 0 leaves it out.
        force: Replace a bundle that was built from something else.

    Raises:
        LvlmError: The checkpoint is not supported, ``output`` holds something else, or the
            exported chain does not agree with PyTorch.
    """
    output = output.absolute()
    present = existing_bundle(output)
    plan = make_plan(checkpoint, options)
    if present is not None and present.content_key == plan.key and _intact(output, present):
        return BuildResult(output, present, True)
    if present is not None and present.content_key != plan.key and not force:
        raise LvlmError(
            f"{output} holds a bundle of other options or another checkpoint; give --force to"
            " replace it, or another --output"
        )
    workspace = open_workspace(output, plan.key)
    copy_tokenizer(checkpoint, workspace)
    embed_tokens = export_graphs(checkpoint, plan, workspace, progress)
    manifest = write_manifest(checkpoint, model_name, plan, workspace, embed_tokens, progress)
    if verify_samples:
        check_parity(
            checkpoint, plan, Bundle(workspace.directory, manifest), verify_samples, progress
        )
    workspace.publish(manifest)
    return BuildResult(output, manifest, False)


def _intact(directory: Path, manifest: Manifest) -> bool:
    """Every file is what the manifest says; a damaged bundle is built again."""
    try:
        check_files(directory, manifest.files)
    except LvlmError:
        return False
    return True


def export_graphs(
    checkpoint: Checkpoint, plan: Plan, workspace: Workspace, progress: Progress
) -> TensorRef:
    """Export every graph that an earlier run did not; returns where the token table lies."""
    dtype = DTYPES[plan.options.effective_precision]
    model = checkpoint.skeleton(dtype)
    names = parameter_names(model)
    source = _TiedSource(checkpoint)
    store = WeightStore(workspace.directory, source, workspace.tensors)
    jobs = list(graph_jobs(plan, checkpoint.family, model))
    with progress.stage("exporting graphs", len(jobs) + 1) as advance:
        for job in jobs:
            if not workspace.is_done(job.file):
                export_graph(
                    job.module,
                    job.arguments,
                    job.signature,
                    workspace.path(job.file),
                    names,
                    store if job.weighted else None,
                    lowering.for_target(plan.options.target),
                )
                workspace.finish(job.file, store.refs)
            advance(job.file)
        table = store.place(Placement(checkpoint.family.parts(model).embed_tokens, dtype))
        workspace.finish(jobs[-1].file, store.refs)
        advance("token table")
    return table


@dataclass(frozen=True)
class _TiedSource:
    """A checkpoint in which a tied output projection is found under the token table's name."""

    checkpoint: Checkpoint

    def tensor(self, name: str):  # type: ignore[no-untyped-def]
        """As ``Checkpoint.tensor``."""
        if name == "lm_head.weight" and self.checkpoint.tied_embeddings:
            name = "model.language_model.embed_tokens.weight"
        return self.checkpoint.tensor(name)


def check_parity(
    checkpoint: Checkpoint, plan: Plan, bundle: Bundle, samples: int, progress: Progress
) -> None:
    """The gate: LvlmError when the chain and PyTorch differ."""
    from lvlm_export.parity import synthetic_samples, verify

    requests = synthetic_samples(plan.shape.layouts, samples)
    session = Session.load(bundle, device="cpu")
    with progress.stage("checking against PyTorch", len(plan.budgets) * len(requests)) as advance:
        report = verify(session, checkpoint, plan, requests, GATE_TOKENS, advance)
    if not report.passed:
        raise LvlmError(
            f"the exported chain is not the model: {report.failure()}; nothing was published"
        )


def copy_tokenizer(checkpoint: Checkpoint, workspace: Workspace) -> None:
    """Take the tokenizer and chat template along, as they are."""
    if not (checkpoint.directory / "tokenizer.json").exists():
        raise LvlmError(
            f"{checkpoint.directory} has no tokenizer.json; save its fast tokenizer there"
            " (AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    target = workspace.path(TOKENIZER)
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        source = checkpoint.directory / name
        if source.exists():
            shutil.copyfile(source, target / name)


def write_manifest(
    checkpoint: Checkpoint,
    model_name: str,
    plan: Plan,
    workspace: Workspace,
    embed_tokens: TensorRef,
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
        method=plan.options.method,
        seed=plan.options.seed,
        precision=NUMPY_NAMES[plan.options.effective_precision],
        target=plan.options.target,
        vision_tokens=shape.vision.tokens,
        preprocess=shape.preprocess,
        layouts=shape.layouts,
        vision=_vision_stages(plan),
        decoder=_decoder_stages(plan),
        assemble="assemble.onnx",
        lm_head="lm_head.onnx",
        text=TextSpec(
            layers=text.layers,
            hidden_size=text.hidden_size,
            kv_heads=text.kv_heads,
            head_dim=text.head_dim,
            vocab_size=text.vocab_size,
            context_length=text.context_length,
            image_token_id=shape.image_token_id,
            stop_ids=checkpoint.stop_ids,
            embed_tokens=embed_tokens,
        ),
        budgets=tuple(_budget(plan, budget, checkpoint) for budget in plan.budgets),
        weights=workspace.tensors,
        files=_files(workspace, progress),
    )


def _vision_stages(plan: Plan) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            cut.name,
            f"{cut.name}.onnx",
            None if cut.attention_of is None else f"vision@{cut.attention_of}",
            0,
            0,
        )
        for cut in plan.vision
    )


def _decoder_stages(plan: Plan) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            cut.name,
            f"{cut.name}.onnx",
            f"decoder@{cut.last}" if cut.scored else None,
            cut.first,
            cut.last,
        )
        for cut in plan.decoder
    )


def _budget(plan: Plan, budget: BudgetPlan, checkpoint: Checkpoint) -> Budget:
    kept = budget.vision[-1].tokens_out if budget.vision else plan.shape.vision.tokens
    return Budget(
        ratio=budget.ratio,
        vision=tuple(map(_reduction, budget.vision)),
        layouts=tuple(_layout(part, kept, plan) for part in budget.layouts),
    )


def _layout(part: LayoutPlan, kept: int, plan: Plan) -> LayoutBudget:
    return LayoutBudget(
        layout=part.layout,
        packer=packer_file(part.layout, kept) if plan.shape.packed else None,
        tokens_full=part.tokens_full,
        tokens_in=part.tokens_in,
        decoder=tuple(map(_reduction, part.decoder)),
    )


def _reduction(count: SiteCount) -> Reduction:
    return Reduction(count.site.name, count.tokens_in, count.tokens_out, reducer_file(count))


def _files(workspace: Workspace, progress: Progress) -> dict[str, FileRef]:
    names = sorted(workspace.done)
    names += [
        FILE_NAME,
        *(f"{TOKENIZER}/{path.name}" for path in sorted(workspace.path(TOKENIZER).iterdir())),
    ]
    files = {}
    with progress.stage("hashing files", len(names)) as advance:
        for name in names:
            files[name] = file_ref(workspace.path(name))
            advance(name)
    return files
