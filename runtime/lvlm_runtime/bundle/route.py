"""The way through the chain: which graph runs after which, and on how many visual tokens.

pixels site -> vision subgraphs, each with its site -> projector -> packer -> projected site ->
assemble -> decoder subgraphs, each with its site -> lm_head. Integers from the manifest, nothing
runs here. Chain, engine plan, engine check, cost model's bridge, session and summaries all read
this one description; the PyTorch reference and the cost model have their own, as a check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lvlm_runtime.bundle.manifest import (
    SIZE_BIAS,
    Budget,
    LayoutBudget,
    Manifest,
    Reduction,
    Subgraph,
)

Kind = Literal["vision", "projector", "packer", "assemble", "decoder", "lm_head", "reducer"]
Phase = Literal["vision", "prefill"]
Per = Literal["tile", "image"]
# The site before the first vision subgraph, on the picture itself.
PIXELS = "pixels@0"


@dataclass(frozen=True)
class Step:
    """One graph call of a request, up to its first token.

    Attributes:
        kind: What runs.
        name: As reports and recordings call it: ``vision.0``, ``vision@5``, ``projector``,
            ``packer``, ``projected@0``, ``assemble``, ``decoder.1``, ``decoder@8``, ``lm_head``.
        graphs: Its file; several for a head that is split along the vocabulary.
        phase: ``vision`` up to the features, ``prefill`` behind them.
        per: What the tokens are counted for: a ``tile``, or a whole ``image`` once its tiles are
            put together.
        tokens_in: Visual tokens that enter; 0 for a request of text alone.
        tokens_out: Visual tokens that leave.
        inputs: What the graph takes, by name, where the manifest says it.
        subgraph: The manifest's record of a vision or decoder subgraph; of a reducer in the decoder,
            that of the subgraph before it, whose last layer's query and keys it reads.
        reduction: That of a reducer.
    """

    kind: Kind
    name: str
    graphs: tuple[str, ...]
    phase: Phase
    per: Per
    tokens_in: int
    tokens_out: int
    inputs: tuple[str, ...] = ()
    subgraph: Subgraph | None = None
    reduction: Reduction | None = None

    @property
    def graph(self) -> str:
        """The file of a step that has one."""
        (name,) = self.graphs
        return name

    @property
    def stage(self) -> str:
        """Of a reducer, the stage of its site: pixels, vision, features, projected or decoder."""
        return self.name.partition("@")[0]


def route(manifest: Manifest, budget: Budget, part: LayoutBudget) -> tuple[Step, ...]:
    """Every graph call of a request with pictures, in order.

    Args:
        manifest: The bundle's.
        budget: One of its budgets.
        part: That budget's part for the request's tile layout.

    Example:
        >>> from lvlm_runtime.bundle.bundle import Bundle
        >>> manifest = Bundle.open("bundle").manifest
        >>> budget = manifest.budgets[0]
        >>> steps = route(manifest, budget, budget.layouts[0])
        >>> [step.name for step in steps][:3]
        ['vision.0', 'vision@2', 'vision.1']
        >>> [(step.name, step.tokens_in) for step in steps if step.kind == "decoder"]
        [('decoder.0', 100), ('decoder.1', 81), ('decoder.2', 65)]
    """
    return vision_steps(manifest, budget, part) + prompt_steps(manifest, part)


def vision_steps(manifest: Manifest, budget: Budget, part: LayoutBudget) -> tuple[Step, ...]:
    """From pixels to an image's visual tokens."""
    reductions = {cut.site: cut for cut in budget.vision}
    steps: list[Step] = []
    tokens = manifest.vision_tokens

    def reduce_at(site: str | None) -> None:
        nonlocal tokens
        cut = reductions.get(site or "")
        if cut is not None:
            steps.append(_reducer(cut, "vision", "tile"))
            tokens = cut.tokens_out

    reduce_at(PIXELS)
    for stage in manifest.vision:
        graphs = (stage.graph,)
        same = (tokens, tokens, stage.inputs, stage)
        steps.append(Step("vision", stage.name, graphs, "vision", "tile", *same))
        reduce_at(stage.site)
    projector = manifest.projector
    if projector is not None:
        counts = (tokens, projector.tokens, projector.inputs)
        graphs = (projector.graph,)
        steps.append(Step("projector", "projector", graphs, "vision", "tile", *counts))
        tokens = projector.tokens
    if part.packer is not None:
        inputs = ("features", "sizes") if manifest.sized else ("features",)
        counts = (tokens, part.tokens_projected, inputs)
        steps.append(Step("packer", "packer", (part.packer,), "vision", "tile", *counts))
    return tuple(steps)


def prompt_steps(manifest: Manifest, part: LayoutBudget | None) -> tuple[Step, ...]:
    """From an image's visual tokens, or from text alone (``part`` None), to the first logits."""
    steps: list[Step] = []
    tokens = 0
    if part is not None:
        if part.projected is not None:
            steps.append(_reducer(part.projected, "prefill", "image"))
        tokens = part.tokens_in
        steps.append(
            Step("assemble", "assemble", (manifest.assemble,), "prefill", "image", tokens, tokens)
        )
    cuts = {} if part is None else {cut.site: cut for cut in part.decoder}
    for stage in manifest.decoder:
        same = (tokens, tokens, stage.inputs, stage)
        steps.append(Step("decoder", stage.name, (stage.graph,), "prefill", "image", *same))
        cut = cuts.get(stage.site or "")
        if cut is not None:
            steps.append(_reducer(cut, "prefill", "image", stage))
            tokens = cut.tokens_out
    steps.append(Step("lm_head", "lm_head", manifest.lm_head, "prefill", "image", tokens, tokens))
    return tuple(steps)


def _reducer(cut: Reduction, phase: Phase, per: Per, before: Subgraph | None = None) -> Step:
    counts = (cut.tokens_in, cut.tokens_out, cut.inputs)
    return Step("reducer", cut.site, (cut.graph,), phase, per, *counts, before, cut)


def shared_graphs(manifest: Manifest) -> tuple[str, ...]:
    """Files that every budget uses, in the order of the chain; all that hold weights are here.

    A packer holds a newline's embedding, and counts as its budget's.
    """
    budget = manifest.budgets[0]
    steps = route(manifest, budget, budget.layouts[0])
    kept = [step for step in steps if step.kind not in ("reducer", "packer")]
    return tuple(name for step in kept for name in step.graphs)


def budget_graphs(manifest: Manifest, budget: Budget) -> frozenset[str]:
    """Files that this budget alone uses, or shares with one of equal counts."""
    return frozenset(
        step.graph
        for part in budget.layouts
        for step in route(manifest, budget, part)
        if step.kind in ("reducer", "packer")
    )


def step_names(manifest: Manifest) -> tuple[str, ...]:
    """Names of all steps that some request takes, in the order they are passed."""
    names: list[str] = []
    for budget in manifest.budgets:
        for part in budget.layouts:
            place = 0
            for step in route(manifest, budget, part):
                if step.name not in names:
                    names.insert(place, step.name)
                place = names.index(step.name) + 1
    return tuple(names)


def visual_tokens(steps: Sequence[Step]) -> tuple[tuple[str, Per, int], ...]:
    """Visual tokens where their number changes: stage or site, what they are counted for, tokens.

    ``vision`` and ``decoder`` are what enters the first subgraph of each, ``projected`` what a
    projector and packer give where a reducer stands before the decoder.
    """
    counts: list[tuple[str, Per, int]] = []
    seen: set[str] = set()
    for step in steps:
        if step.kind == "reducer" and step.stage == "projected":
            # What leaves it is what enters the decoder.
            counts.append(("projected", step.per, step.tokens_in))
            continue
        if step.kind == "reducer":
            if step.name == PIXELS:
                seen.add("vision")
                counts.append(("vision", step.per, step.tokens_in))
            counts.append((step.name, step.per, step.tokens_out))
        elif step.kind in ("vision", "decoder") and step.kind not in seen:
            seen.add(step.kind)
            counts.append((step.kind, step.per, step.tokens_in))
    return tuple(counts)


def cache_rows(
    manifest: Manifest,
    part: LayoutBudget | None,
    images: int,
    text_tokens: int,
    answer_tokens: int,
) -> dict[str, int]:
    """Rows of each decoder subgraph's key-value caches: its prompt and the answer.

    Args:
        manifest: The bundle's.
        part: The budget's part for the tile layout; None for text alone.
        images: Pictures of the request.
        text_tokens: Text of the prompt.
        answer_tokens: Room for the answer.

    Returns:
        Name of the subgraph -> rows.
    """
    return {
        step.name: text_tokens + images * step.tokens_in + answer_tokens
        for step in prompt_steps(manifest, part)
        if step.kind == "decoder"
    }


def cache_bytes(manifest: Manifest, rows: Mapping[str, int], element_bytes: int) -> int:
    """Size of the key-value caches with so many ``rows`` per decoder subgraph."""
    text = manifest.text
    row = 2 * text.kv_heads * text.head_dim
    return sum(
        # Keys and values of every layer, and one row of sizes for all of them.
        ((stage.last_layer - stage.first_layer) * row + (SIZE_BIAS in stage.inputs))
        * rows[stage.name]
        * element_bytes
        for stage in manifest.decoder
    )
