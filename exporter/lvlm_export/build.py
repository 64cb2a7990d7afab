"""``lvlm-export build``: checkpoint to bundle, resumable, published in one rename."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from lvlm_export import lowering
from lvlm_export.checkpoint import TOKENIZER_FILES, Checkpoint
from lvlm_export.graphs import DTYPES, graph_jobs
from lvlm_export.manifest import write_manifest
from lvlm_export.onnx_export import export_graph, parameter_names
from lvlm_export.plan import BuildOptions, Plan, make_plan
from lvlm_export.progress import Progress
from lvlm_export.weights import Placement, WeightStore
from lvlm_export.workspace import Workspace, existing_bundle, open_workspace
from lvlm_runtime.bundle import TOKENIZER, Bundle, check_files
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.session import Session
from lvlm_runtime.spec import Manifest, TensorRef

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
    embed_tokens = checkpoint.family.parts(model).embed_tokens
    source = _TiedSource(checkpoint, embed_tokens)
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
        table = store.place(Placement(embed_tokens, dtype))
        workspace.finish(jobs[-1].file, store.refs)
        advance("token table")
    return table


@dataclass(frozen=True)
class _TiedSource:
    """A checkpoint in which a tied output projection is found under the token table's name."""

    checkpoint: Checkpoint
    embed_tokens: str

    def tensor(self, name: str) -> torch.Tensor:
        """As ``Checkpoint.tensor``."""
        if name == "lm_head.weight" and self.checkpoint.tied_embeddings:
            name = self.embed_tokens
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
