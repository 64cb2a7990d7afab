"""``lvlm-export build``: checkpoint to bundle, resumable, published in one step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lvlm_export.bundle.budgets import (
    Beginning,
    changed_ratios,
    check_same_cuts,
    check_same_version,
    manifest_to_change,
)
from lvlm_export.bundle.construction import Construction
from lvlm_export.bundle.manifest import Exported, write_manifest
from lvlm_export.bundle.present import present_key
from lvlm_export.bundle.publish import make_bundle, real_target
from lvlm_export.bundle.weights import WeightStore
from lvlm_export.bundle.workspace import Workspace, file_ref
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.generation import read_rules
from lvlm_export.checkpoint.preflight import preflight
from lvlm_export.graphs.attention import NAME as ATTENTION
from lvlm_export.graphs.element_types import torch_dtype
from lvlm_export.graphs.export import export_graph, full_names
from lvlm_export.graphs.jobs import graph_jobs
from lvlm_export.graphs.passes import rewrites
from lvlm_export.graphs.quantise import quantised_weights
from lvlm_export.graphs.weight_use import WeightUse
from lvlm_export.plan.plan import BuildOptions, Plan, make_plan, options_of
from lvlm_export.plan.targets import TARGETS
from lvlm_runtime.bundle.bundle import TOKENIZER, Bundle
from lvlm_runtime.bundle.generation import FILE as GENERATION
from lvlm_runtime.bundle.generation import write_generation
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.golden import FILE as GOLDEN
from lvlm_runtime.golden import Golden, make_golden, write_golden
from lvlm_runtime.graphs.gate import check_graph, find_parser
from lvlm_runtime.progress import Progress
from lvlm_runtime.session import Session

# Answer tokens that the parity gate compares per sample.
GATE_TOKENS = 16


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
    begin: Beginning | None = None,
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
        begin: The bundle at ``output`` whose files are taken over, as of ``change_ratios``.

    Raises:
        LvlmError: The checkpoint is not supported, ``output`` holds something else, or the
            exported chain does not agree with PyTorch.
    """
    preflight(checkpoint, options.image_size)
    output = output.absolute()
    # What is something else is refused at once, and not after the checkpoint was hashed.
    present_key(real_target(output))
    plan = make_plan(checkpoint, options)

    def make(construction: Construction, workspace: Workspace) -> Manifest:
        write_tokenizer(checkpoint, workspace)
        rules = read_rules(checkpoint.directory, plan.shape.text.vocab_size)
        # Before the export, since it needs none of it.
        compared = compare_processor(checkpoint, plan, verify_samples)
        exported = export_graphs(checkpoint, plan, workspace, progress, begin)
        manifest = write_manifest(checkpoint, model_name, plan, workspace, exported, progress)
        write_generation(workspace.directory, rules)
        manifest = with_file(manifest, workspace, GENERATION)
        if not verify_samples:
            return manifest
        built = Bundle(workspace.directory, manifest)
        with runnable(checkpoint, plan, built, construction, progress) as tested:
            part = plan if begin is None else begin.unchecked(plan)
            golden = check_parity(checkpoint, part, tested, verify_samples, progress)
        write_golden(workspace.directory, replace(golden, processor=compared))
        return with_file(manifest, workspace, GOLDEN)

    def complete(manifest: Manifest) -> bool:
        return not verify_samples or GOLDEN in manifest.files

    manifest, reused = make_bundle(output, plan.key, make, force, complete)
    return BuildResult(output, manifest, reused)


def change_ratios(
    checkpoint: Checkpoint,
    output: Path,
    added: Sequence[float],
    removed: Sequence[float],
    progress: Progress,
    verify_samples: int = 1,
) -> BuildResult:
    """Add budgets to a finished bundle, or take some from it, and leave its other files as they are.

    Everything but the ratios is as the bundle's manifest says. The parity gate compares the budgets
    that are new.

    Args:
        checkpoint: What the bundle was built from.
        output: The bundle.
        added: Ratios that it shall have.
        removed: Ratios that it shall not have.
        progress: Told about every graph.
        verify_samples: As of ``build``.

    Raises:
        UsageError: Ratios that do not fit, or that cut the model elsewhere.
        LvlmError: No whole bundle, one of another checkpoint or version, or as of ``build``.
    """
    directory = real_target(output.absolute())
    manifest = manifest_to_change(directory, checkpoint)
    before = make_plan(checkpoint, options_of(manifest))
    check_same_version(directory, manifest, before)
    present = before.options.ratios
    ratios = changed_ratios(present, added, removed)
    options = replace(before.options, ratios=ratios)
    check_same_cuts(before, make_plan(checkpoint, options))
    begin = Beginning(directory, manifest)
    name, samples = manifest.model, verify_samples
    return build(checkpoint, name, options, output, progress, samples, force=True, begin=begin)


def with_file(manifest: Manifest, workspace: Workspace, name: str) -> Manifest:
    """The manifest with one more file that is finished."""
    files = {**manifest.files, name: file_ref(workspace.path(name))}
    return replace(manifest, files=files)


def export_graphs(
    checkpoint: Checkpoint,
    plan: Plan,
    workspace: Workspace,
    progress: Progress,
    begin: Beginning | None = None,
) -> Exported:
    """Export every graph that neither an earlier run nor the bundle to begin with has."""
    dtype = torch_dtype(plan.options.effective_precision)
    model = checkpoint.skeleton(dtype, ATTENTION)
    names = full_names(model)
    formats = quantised_weights(model, checkpoint.family, plan.options.weights)
    jobs = list(graph_jobs(plan, checkpoint.family, model))
    if begin is not None:
        begin.take_over(workspace, [job.file for job in jobs])
    store = WeightStore(workspace.directory, checkpoint, workspace.tensors)
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
                    rewrites(plan.options.target, plan.options.effective_dialect, job.reads_cache),
                    formats,
                )
                check_operators(workspace.path(job.file), plan.options.target)
                workspace.finish(job.file, store.refs)
            advance(job.file)
        name = checkpoint.family.embed_tokens
        use = WeightUse(name, dtype, format=formats.get(name))
        table = store.place(use)
        scales = None if use.format is None else store.place(replace(use, scales=True))
        workspace.note_weights(store.refs)
        advance("token table")
    return Exported(table, scales, {job.file: job.signature.inputs for job in jobs})


def check_operators(path: Path, target: str) -> None:
    """The operator gate: LvlmError for the first node that the target's parser does not take."""
    gate = TARGETS[target].gate
    if gate is None:
        return
    for violation in check_graph(path, gate)[:1]:
        raise LvlmError(
            f"{find_parser(gate).title} does not take {violation}; choose another --target,"
            " --dialect, --precision or --method"
        )


@contextmanager
def runnable(
    checkpoint: Checkpoint,
    plan: Plan,
    bundle: Bundle,
    construction: Construction,
    progress: Progress,
) -> Iterator[Bundle]:
    """The bundle that the parity gate runs: the one that was built, or a stand-in for it.

    ONNX Runtime has no bfloat16 kernels on a CPU, so for such a bundle the same graphs are
    exported again in float32, beside it and for as long as the gate takes. What the gate then says
    holds for the graphs and their order, not for the rounding of bfloat16.
    """
    if plan.options.effective_precision != "bf16":
        yield bundle
        return
    # cuda has no operator gate and no rewrites of its own, so the dialect alone shapes the graphs.
    dialect = plan.options.effective_dialect
    options = replace(plan.options, target="cuda", precision="fp32", dialect=dialect)
    twin = make_plan(checkpoint, options)
    workspace = construction.twin(twin.key)
    try:
        write_tokenizer(checkpoint, workspace)
        exported = export_graphs(checkpoint, twin, workspace, progress)
        name = bundle.manifest.model
        manifest = write_manifest(checkpoint, name, twin, workspace, exported, progress)
        yield Bundle(workspace.directory, manifest)
    finally:
        workspace.discard()


def check_parity(
    checkpoint: Checkpoint, plan: Plan, bundle: Bundle, samples: int, progress: Progress
) -> Golden:
    """The gate: LvlmError when the chain and PyTorch differ at a budget of the plan.

    Returns:
        The bundle's own answers at all its ratios; those that the plan leaves out passed before.
    """
    from lvlm_export.check.parity import synthetic_samples, verify

    requests = synthetic_samples(plan.shape.layouts, samples)
    # What the export did is compared in the arithmetic that both sides share; the bundle's own answers
    # are those that users get.
    session = Session.load(bundle, device="cpu", exact=True)
    steps = len(plan.budgets) * len(requests)
    if steps:
        with progress.stage("checking against PyTorch", steps) as advance:
            report = verify(session, checkpoint, plan, requests, GATE_TOKENS, advance)
        if not report.passed:
            raise LvlmError(
                f"the exported chain is not the model: {report.failure()}; nothing was published"
            )
    ratios = [budget.ratio for budget in bundle.manifest.budgets]
    first = requests[0]
    if bundle.manifest.quantised:
        session = Session.load(bundle, device="cpu")
    return make_golden(session, first.question, first.images, GATE_TOKENS, ratios)


def compare_processor(checkpoint: Checkpoint, plan: Plan, samples: int) -> str:
    """Compare the gate's samples with transformers' processor; the result is ``check_processor``'s."""
    from lvlm_export.check.parity import synthetic_samples
    from lvlm_export.check.processor import check_processor

    requests = synthetic_samples(plan.shape.layouts, min(samples, 1))
    return check_processor(checkpoint, plan, checkpoint.encoder, requests)


def write_tokenizer(checkpoint: Checkpoint, workspace: Workspace) -> None:
    """Take the tokenizer and chat template along, in the runtime's own files."""
    target = workspace.path(TOKENIZER)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name, content in checkpoint.prompt_files.items():
        (target / name).write_bytes(content)
