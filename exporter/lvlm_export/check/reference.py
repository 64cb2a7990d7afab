"""The PyTorch reference: the Hugging Face model with the same reducers inside it.

It runs the model's own modules with eager attention, takes scores from the attention weights that
they return (the exported graphs compute them from query and key), and keeps a ``DynamicCache``.
At ratio 1.0 the reference is the ``generate`` of ``transformers``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from lvlm_export.check.clues import decoder_clues, packed_sizes, vision_clues
from lvlm_export.check.decisions import Decisions
from lvlm_export.check.layers import (
    LocalLayers,
    blocks_of,
    decoder_layers,
    grid_of,
    grouped_attention,
    grouped_feed_forward,
    spread,
    vision_attention,
)
from lvlm_export.check.reference_io import (
    DecoderEntry,
    HeldRows,
    ReferenceRequest,
    Trace,
    load_eager,
)
from lvlm_export.families import Family, Parts
from lvlm_export.graphs.element_types import torch_dtype
from lvlm_export.graphs.quantise import quantised_weights, round_weights
from lvlm_export.graphs.reducers import make_reducer
from lvlm_export.plan.plan import Plan
from lvlm_export.reduction.budget import BudgetPlan, LayoutPlan, SiteCount
from lvlm_export.reduction.method import Site
from lvlm_export.reduction.reducers import DecoderReducer, VisionReducer
from lvlm_export.reduction.tensors import gather_rows, join_groups, split_groups
from lvlm_runtime.image.anyres import TILES, TileLayout
from lvlm_runtime.prompt.sequence import Origins, Placed, place_tokens, position_rows


@dataclass(frozen=True)
class EncodedRequest:
    """What the vision encoder gives of a request.

    Attributes:
        tokens: ``[n, V, C]``.
        origins: Where they stood.
        sizes: ``[n, V]``, patches that they stand for; ones where they are not counted.
        planes: ``[n, V, C]``, what each of the first decoder layers adds to them.
    """

    tokens: Tensor
    origins: Origins
    sizes: Tensor
    planes: list[Tensor]


class Reference:
    """A loaded HF model that can be run at any budget of a plan.

    Args:
        directory: The checkpoint.
        family: Its family.
        plan: Sites, budgets and shapes.
    """

    def __init__(self, directory: Path, family: Family, plan: Plan) -> None:
        self.model = load_eager(directory, family)
        formats = quantised_weights(self.model, family, plan.options.weights)
        round_weights(self.model, formats, torch_dtype(plan.options.effective_precision))
        self.family = family
        self.plan = plan
        self.parts: Parts = family.parts(self.model)

    @torch.no_grad()
    def generate_unreduced(
        self, request: ReferenceRequest, stop_ids: Sequence[int], max_new_tokens: int
    ) -> tuple[int, ...]:
        """Greedy answer of ``transformers.generate``."""
        per_image = self.plan.shape.visual_tokens(request.layout, self.plan.shape.vision.tokens)
        image = [self.plan.shape.image_token_id] * per_image
        ids = list(request.runs[0])
        for run in request.runs[1:]:
            ids += [*image, *run]
        input_ids = torch.tensor([ids])
        pixels = torch.from_numpy(request.pixel_values)
        # The cache that generate would make forgets what lies before a sliding_window, in a model
        # that has none too (a left-over of its config.json); the model itself attends to all.
        out = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=DynamicCache(),
            **self.family.generate_inputs(
                self.model,
                pixels,
                request.layout,
                request.image_sizes,
                self._question(request),
                input_ids,
            ),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        )
        return tuple(out[0, len(ids) :].tolist())

    @torch.no_grad()
    def generate(
        self,
        request: ReferenceRequest,
        budget: BudgetPlan,
        stop_ids: Sequence[int],
        max_new_tokens: int,
    ) -> tuple[tuple[int, ...], Trace]:
        """Greedy answer at a budget, and the hidden states at every cut."""
        trace = Trace()
        entry = self.enter(request, budget, trace)
        hidden, cache, held = self._prefill(entry, trace)
        position = entry.next_position
        answer: list[int] = []
        while True:
            logits = self.parts.lm_head(self.parts.norm(hidden[:, -1]))
            if not answer:
                trace.note("lm_head", logits)
            trace.logits.append(logits[0].float().numpy())
            answer.append(int(logits[0].argmax()))
            if answer[-1] in stop_ids or len(answer) == max_new_tokens:
                return tuple(answer), trace
            embedded = self.model.get_input_embeddings()(torch.tensor([[answer[-1]]]))
            rows = self.plan.shape.text.position_rows
            hidden, positions = embedded, torch.tensor([[position]] * rows)
            held = [rows.followed_by(position) for rows in held]
            for cut, rows_held in zip(self.plan.decoder, held, strict=True):
                layers = range(cut.first, cut.last)
                hidden = self.layers(hidden, positions, cache, layers, None, rows_held)
            position += 1

    def enter(self, request: ReferenceRequest, budget: BudgetPlan, trace: Trace) -> DecoderEntry:
        """A request's pictures through the encoder, and its sequence as the decoder takes it."""
        part = next(part for part in budget.layouts if part.layout == request.layout.name)
        pixels, question = torch.from_numpy(request.pixel_values), self._question(request)
        encoded = self.encode(pixels, budget, request.layout, trace, question)
        return self._assemble(request.runs, encoded, part, trace)

    def encode(
        self,
        pixel_values: Tensor,
        budget: BudgetPlan,
        layout: TileLayout,
        trace: Trace,
        query_ids: Tensor | None,
    ) -> EncodedRequest:
        """Visual tokens of pixels ``[tiles, 3, H, W]``."""
        counts = {count.site: count for count in budget.vision}
        cuts = {cut.site: cut for cut in self.plan.vision}
        hidden, origins = self._embed(pixel_values, counts.get(Site("pixels", 0)), trace)
        sizes = torch.ones(hidden.shape[:2])
        levels: dict[int, Tensor] = {}
        planes: list[Tensor] = []

        def reduce_at(site: Site) -> None:
            nonlocal hidden, origins, sizes, planes
            if site in cuts:
                trace.note(cuts[site].name, hidden)
            if site in counts:
                reducer = make_reducer(self.plan, counts[site])
                assert isinstance(reducer, VisionReducer)
                heads = self.plan.shape.vision.heads
                stood = torch.from_numpy(origins.offsets)
                clues = vision_clues(
                    reducer, hidden, weights, projections, heads, sizes, stood, inside
                )
                if clues.scores is not None:
                    trace.scores[site.name] = clues.scores.numpy()
                with Decisions() as decisions:
                    hidden, places, *new_sizes = reducer.reduce(hidden, clues)
                sizes = new_sizes[0] if new_sizes else sizes
                origins = origins.keep(places.numpy())
                planes = [gather_rows(plane, places) for plane in planes]
                trace.note_reduced(site.name, hidden, places, decisions.made)

        vision, inside = self.plan.shape.vision, None
        for index, layer in enumerate(self.parts.vision_layers):
            counted = sizes if self.plan.method.tracks_size else None
            if self.parts.blocks is None:
                hidden, weights, projections = vision_attention(layer, hidden, counted)
            else:
                grid = None if vision.grid is None else grid_of(origins, vision)
                hidden, weights, projections, inside = grouped_attention(
                    self.parts, vision, index, hidden, counted, grid
                )
            reduce_at(Site("vision", index))
            hidden = grouped_feed_forward(self.parts, vision, index, hidden)
            if index + 1 in self.parts.levels:
                levels[index + 1] = hidden
            if index + 1 in vision.planes:
                plane = self.parts.planes[len(planes)](split_groups(hidden, vision.group))
                planes.append(plane.reshape(len(hidden), -1, plane.shape[-1]))
        reduce_at(Site("features", len(self.parts.vision_layers)))
        if self.parts.levels:
            hidden = torch.cat([levels[level] for level in self.parts.levels], dim=-1)
        features: Tensor = self.parts.project(split_groups(hidden, vision.group, vision.prefix))
        trace.note(self.plan.vision[-1].name, features)
        if self.parts.projector is not None:
            features = self.parts.projector(features, self._query(query_ids, trace))
            trace.note("projector", features)
            origins = Origins.whole(*features.shape[:2])
        if self.plan.sized:
            sizes = sizes[:, self.plan.shape.vision.prefix :]
        else:
            sizes = torch.ones(features.shape[:2])
        kept = budget.kept_per_tile(self.plan.shape.vision.tokens)
        packer = self.family.packer(self.model, layout, kept)
        if packer is not None:
            sizes = packed_sizes(packer, features, sizes)
            features = packer(features)
            trace.note("packer", features)
            origins = (
                origins.joined(layout.tiles)
                if layout.kind == TILES
                else Origins.whole(*features.shape[:2])
            )
        return EncodedRequest(features, origins, sizes, planes)

    def _embed(
        self, pixel_values: Tensor, smaller: SiteCount | None, trace: Trace
    ) -> tuple[Tensor, Origins]:
        """Patch embeddings ``[tiles, P+N, C]``; ``smaller`` is a site that reduces the pictures."""
        origins = Origins.whole(len(pixel_values), self.plan.shape.vision.tokens)
        if smaller is None:
            patches = self.parts.vision_embed(pixel_values)
            shape = self.plan.shape.vision
            return join_groups(patches, shape.group, shape.prefix), origins
        with Decisions() as decisions:
            pixel_values, places = make_reducer(self.plan, smaller)(pixel_values)
        trace.note_reduced(smaller.site.name, pixel_values, places, decisions.made)
        return self.parts.embed_any_size(pixel_values), origins.keep(places.numpy())

    def _question(self, request: ReferenceRequest) -> Tensor | None:
        """The question alone ``[1, Q]``, where the projector reads it."""
        projector = self.plan.shape.projector
        reads = projector is not None and projector.reads_text
        return torch.tensor([request.query_ids]) if reads else None

    def _query(self, query_ids: Tensor | None, trace: Trace) -> Tensor | None:
        """The language model's last hidden state ``[1, 1, C]`` on a question."""
        if query_ids is None:
            return None
        positions = torch.arange(query_ids.shape[1])[None]
        embedded = self.model.get_input_embeddings()(query_ids)
        layers = range(len(self.parts.text_layers))
        last = self.layers(embedded, positions, DynamicCache(), layers, None)[:, -1:]
        trace.note("query", last)
        query: Tensor = self.parts.norm(last)
        return query

    def _assemble(
        self,
        runs: Sequence[Sequence[int]],
        encoded: EncodedRequest,
        part: LayoutPlan,
        trace: Trace,
    ) -> DecoderEntry:
        """Text and visual tokens in the order of the prompt, with their positions."""
        visual, origins = encoded.tokens, encoded.origins
        sizes, planes = encoded.sizes, encoded.planes
        text = torch.tensor([token for run in runs for token in run])
        embedded = self.model.get_input_embeddings()(text)
        if part.projected is not None:
            reducer = make_reducer(self.plan, part.projected)
            with Decisions() as decisions:
                visual, places = reducer(visual, embedded[None])
            origins, sizes = origins.keep(places.numpy()), torch.ones(places.shape)
            planes = [gather_rows(plane, places) for plane in planes]
            trace.note_reduced(part.projected.site.name, visual, places, decisions.made)
        lengths = [len(run) for run in runs]
        placed = place_tokens(
            lengths, np.arange(len(text), dtype=np.int64), len(text), part.tokens_in
        )
        rows = torch.cat((embedded, visual.reshape(-1, embedded.shape[-1])))
        hidden = rows[torch.from_numpy(placed.order)][None]
        trace.note("assemble", hidden)
        grid = self.plan.shape.vision.grid
        ids, next_position = position_rows(
            lengths, origins, self.plan.shape.text.position_rows, grid
        )
        positions = torch.from_numpy(ids)
        return DecoderEntry(
            hidden,
            positions,
            placed,
            next_position,
            (embedded, visual),
            lengths,
            part.decoder,
            sizes,
            planes,
        )

    def _prefill(
        self, entry: DecoderEntry, trace: Trace
    ) -> tuple[Tensor, DynamicCache, list[HeldRows]]:
        """Hidden states, caches, and what is known of the rows of every cut's caches."""
        hidden, positions, placed = entry.hidden, entry.positions, entry.placed
        cache, sizes, held = DynamicCache(), entry.sizes, []
        planes = entry.planes
        counts = {count.site.layer: count for count in entry.counts}
        for cut in self.plan.decoder:
            weights: list[Tensor] = []
            bias = torch.zeros(len(placed.order))
            bias[torch.from_numpy(placed.visual)] = sizes.log()
            held.append(HeldRows(bias, positions[0]))
            layers = range(cut.first, cut.last)
            added = {layer: spread(planes[layer], placed) for layer in cut.planes}
            blocks = blocks_of(self.plan.shape.text.attention, placed)
            hidden = self.layers(hidden, positions, cache, layers, weights, held[-1], added, blocks)
            trace.note(cut.name, hidden)
            if cut.last in counts:
                count = counts[cut.last]
                attention = weights[-1], cache.layers[cut.last - 1].keys
                placed, hidden, positions, kept = self._reduce(
                    count, entry.lengths, placed, hidden, attention, positions, entry.parts, trace
                )
                sizes = sizes.gather(1, kept)
                planes = [gather_rows(plane, kept) for plane in planes]
        return hidden, cache, held

    def _reduce(
        self,
        count: SiteCount,
        lengths: Sequence[int],
        placed: Placed,
        hidden: Tensor,
        attention: tuple[Tensor, Tensor],
        positions: Tensor,
        entered: tuple[Tensor, Tensor],
        trace: Trace,
    ) -> tuple[Placed, Tensor, Tensor, Tensor]:
        """Reduce with weights ``[1, H, S, S]`` and keys ``[1, Hkv, S, D]`` of the layer before.

        ``entered``: text ``[T, C]`` and visual tokens ``[n, V, C]`` at the decoder's input. The last
        of what it returns is the places ``[n, K]`` that stay.
        """
        after = place_tokens(lengths, placed.text, hidden.shape[1], count.tokens_out)
        reducer = make_reducer(self.plan, count)
        assert isinstance(reducer, DecoderReducer)
        order, visual = torch.from_numpy(after.order), torch.from_numpy(placed.visual)
        text = torch.from_numpy(placed.text)
        clues = decoder_clues(reducer, hidden, *attention, visual, text)
        if "decoder_input" in reducer.selector.needs:
            clues = replace(clues, text_embeds=entered[0], visual_embeds=entered[1])
        with Decisions() as decisions:
            hidden, positions, *kept = reducer.reduce(hidden, clues, positions, visual, order)
        trace.note_reduced(count.site.name, hidden, kept[0] if kept else None, decisions.made)
        none = torch.zeros((len(visual), 0), dtype=torch.int64)
        return after, hidden, positions, kept[0] if kept else none

    def layers(
        self,
        hidden: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        layers: range,
        weights: list[Tensor] | None,
        held: HeldRows | None = None,
        planes: Mapping[int, Tensor] | None = None,
        blocks: Tensor | None = None,
    ) -> Tensor:
        """Run decoder layers; ``weights`` collects the last one's attention ``[1, H, S, S]``.

        ``held``: of all rows of their caches, the new ones included; None for text alone that has no
        windows. ``planes [1, S, C]`` are added behind their layers; ``blocks [S]`` as of ``decoder_layers``.
        """
        text, local = self.plan.shape.text, None
        if text.window and held is not None:
            local = LocalLayers(text.windowed, text.window, held.positions)
        added = held.bias[None] if self.plan.sized and held is not None else None
        return decoder_layers(
            self.parts, hidden, positions, cache, layers, weights, added, planes, blocks, local
        )
