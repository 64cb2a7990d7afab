"""Prompts through the decoder for many trials and questions: what they share is computed once.

A prompt is a front, the text before the picture and the picture, and a rest, the question. In causal
attention the front knows nothing of the rest, so that all questions about a picture share one front
until a site chooses by what the question says; from there on every question has its own. Behind the
question stand tokens of an answer that is to be checked (``feed``); no row before them sees them, and
reducers are given the prompt alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lvlm_export.check.clues import decoder_clues
from lvlm_export.check.layers import decoder_layers
from lvlm_export.families import ModelShape, Parts
from lvlm_export.reduction.method import Site
from lvlm_export.reduction.reducers import TEXT_CLUES, DecoderReducer, ProjectedReducer
from lvlm_export.reduction.selectors import Selector
from lvlm_export.reduction.tensors import gather_rows
from lvlm_export.tune.branches import Act, Branching, Effort, Group
from lvlm_export.tune.prompts import Ask, NextLogits, PromptState, Scored, pick_scored
from lvlm_runtime.prompt.sequence import Origins, place_tokens, position_rows, text_positions


def reads_question(selector: Selector) -> bool:
    """What it keeps depends on the question."""
    return selector.attention is not None or bool(selector.needs & TEXT_CLUES)


def by_row(positions: Tensor) -> Tensor:
    """Positions ``[B, R, S]`` as ``decoder_layers`` takes them: ``[B, S]`` where R is 1."""
    return positions[:, 0] if positions.shape[1] == 1 else positions.transpose(0, 1)


class Language:
    """The language model.

    Args:
        embeddings: The token table.
        parts: The model's modules.
        shape: Its shape.
        branching: The trials.
        effort: Counts what is computed.
    """

    def __init__(
        self,
        embeddings: nn.Module,
        parts: Parts,
        shape: ModelShape,
        branching: Branching,
        effort: Effort,
    ) -> None:
        self.embeddings, self.parts, self.shape = embeddings, parts, shape
        self.branching, self.effort = branching, effort
        self.depth = len(parts.text_layers)

    def follow(
        self,
        visual: Tensor,
        origins: Origins,
        sizes: Tensor | None,
        planes: tuple[Tensor, ...],
        owner: Sequence[int],
        asks: Sequence[Ask],
        group: Group,
    ) -> Iterator[NextLogits]:
        """Logits behind every token that is fed.

        Args:
            visual: ``[G, V, C]``.
            origins: Where its tokens stood, G rows.
            sizes: ``[G, V]``, patches that each stands for; None where the decoder counts none.
            planes: ``[G, V, C]`` each, what the first layers add to them.
            owner: ``[N]``, which of the G each question is about.
            asks: The questions; their fronts have one length.
            group: The trials that have these visual tokens in common.
        """
        embedded = [self._embed((*ask.front, *ask.rest)) for ask in asks]
        for act, same in self.branching.split(group, Site("projected", 0)).items():
            kept, places, whose, counted, added = visual, origins, list(owner), sizes, planes
            if act is not None:
                reducer = self.branching.reducer(act, same)
                assert isinstance(reducer, ProjectedReducer)
                by_question = reads_question(reducer.selector)
                pairs = list(zip(whose, embedded, strict=True))
                if not by_question:
                    pairs = [(number, embedded[0]) for number in range(len(visual))]
                made = [reducer(visual[each : each + 1], text[None]) for each, text in pairs]
                kept = torch.cat([tokens for tokens, _ in made])
                stood = Origins(origins.offsets[[each for each, _ in pairs]], origins.span)
                chosen = torch.cat([where for _, where in made])
                places = stood.keep(chosen.numpy())
                index = torch.tensor([each for each, _ in pairs])
                added = tuple(gather_rows(plane[index], chosen) for plane in planes)
                whose = list(range(len(asks))) if by_question else whose
                counted = None
            state = replace(self._enter(kept, places, counted, whose, asks), planes=added)
            yield from self._layers(state, 0, same, None)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        rows: Tensor = self.embeddings(torch.tensor(ids, dtype=torch.long))
        return rows

    def _enter(
        self,
        visual: Tensor,
        origins: Origins,
        sizes: Tensor | None,
        owner: Sequence[int],
        asks: Sequence[Ask],
    ) -> PromptState:
        before = len(asks[0].front)
        fronts = {number: ask.front for number, ask in zip(owner, asks, strict=True)}
        # A picture that nobody asks about here takes any front; it is left out in ``pick``.
        text = [self._embed(fronts.get(number, asks[0].front)) for number in range(len(visual))]
        front = torch.cat((torch.stack(text), visual), dim=1)
        rows, grid = self.shape.text.position_rows, self.shape.vision.grid
        places = [
            position_rows([before, 0], Origins(origins.offsets[[number]], origins.span), rows, grid)
            for number in range(len(visual))
        ]
        longest = max(len(ask.rest) + len(ask.feed) for ask in asks)
        ids = [(*ask.rest, *ask.feed) for ask in asks]
        filled = [(*each, *[0] * (longest - len(each))) for each in ids]
        behind = torch.from_numpy(text_positions(places[0][1], longest, rows))
        return PromptState(
            front=front,
            front_positions=torch.from_numpy(np.stack([each for each, _ in places])),
            rest=self.embeddings(torch.tensor(filled)),
            rest_positions=behind.expand(len(asks), -1, -1),
            owner=torch.tensor(owner),
            asks=tuple(asks),
            entered=visual,
            entered_owner=torch.tensor(owner),
            bias=None if sizes is None else nn.functional.pad(sizes.log(), (before, 0)),
        )

    def _layers(
        self, state: PromptState, first: int, group: Group, scored: Scored | None
    ) -> Iterator[NextLogits]:
        """The layers from ``first`` on; ``scored`` by the one before where a site stands here."""
        asked = [n for n, ask in enumerate(state.asks) if not ask.wanted.isdisjoint(group)]
        if not asked:
            return
        state, scored = state.pick(asked), pick_scored(scored, state, asked)
        for index in range(first, self.depth):
            if scored is not None:
                for act, same in self.branching.split(group, Site("decoder", index)).items():
                    after = state if act is None else self._reduce(state, act, same, scored)
                    yield from self._layers_from(after, index, same)
                return
            state, scored = self._layer(state, index, group)
        yield from self._answers(state, group)

    def _layers_from(self, state: PromptState, index: int, group: Group) -> Iterator[NextLogits]:
        """As ``_layers``, behind the site at ``index``."""
        asked = [n for n, ask in enumerate(state.asks) if not ask.wanted.isdisjoint(group)]
        if asked:
            state, scored = self._layer(state.pick(asked), index, group)
            if index + 1 == self.depth:
                yield from self._answers(state, group)
            else:
                yield from self._layers(state, index + 1, group, scored)

    def _layer(
        self, state: PromptState, index: int, group: Group
    ) -> tuple[PromptState, Scored | None]:
        """One layer: fronts, and then the rests behind them."""
        wanted = self.branching.any_acts(group, Site("decoder", index + 1))
        weights: list[Tensor] = []
        watch = weights if wanted else None
        cache, layers = DynamicCache(), range(index, index + 1)
        added = {}
        if index < len(state.planes):
            # Nothing is added to text.
            plane, before = state.planes[index], len(state.asks[0].front)
            added[index] = nn.functional.pad(plane, (0, 0, before, 0))
        front = decoder_layers(
            self.parts,
            state.front,
            by_row(state.front_positions),
            cache,
            layers,
            watch,
            state.bias,
            added,
        )
        held, behind = cache.layers[index], DynamicCache()
        rows = held.keys.shape[2]
        behind.update(held.keys[state.owner], held.values[state.owner], index)
        below = None
        if state.bias is not None:
            # A token of text stands for itself, and log 1 is 0.
            below = nn.functional.pad(state.bias[state.owner], (0, state.rest.shape[1]))
        rest = decoder_layers(
            self.parts, state.rest, by_row(state.rest_positions), behind, layers, watch, below
        )
        self._count(state, group)
        scored = None
        if wanted:
            scored = Scored(
                held.keys,
                weights[0].float().mean(dim=1),
                behind.layers[index].keys[:, :, rows:],
                weights[1].float().mean(dim=1),
            )
        return replace(state, front=front, rest=rest), scored

    def _reduce(self, state: PromptState, act: Act, group: Group, scored: Scored) -> PromptState:
        reducer = self.branching.reducer(act, group)
        assert isinstance(reducer, DecoderReducer)
        before = len(state.asks[0].front)
        if act.count.tokens_out and reads_question(reducer.selector):
            cases: list[tuple[int, int | None]] = [
                (int(state.owner[n]), n) for n in range(len(state.asks))
            ]
            owner = torch.arange(len(state.asks))
        else:
            cases, owner = [(g, None) for g in range(len(state.front))], state.owner
        fronts, positions, biases = [], [], []
        planes: list[tuple[Tensor, ...]] = []
        end = before + act.count.tokens_out
        for g, n in cases:
            hidden, places, kept = self._reduce_one(state, act, reducer, scored, g, n)
            fronts.append(hidden[:, :end])
            positions.append(places[:, :end])
            planes.append(tuple(plane[g][kept] for plane in state.planes))
            if state.bias is not None:
                own = state.bias[g, before:].gather(0, kept)
                biases.append(nn.functional.pad(own, (before, 0)))
        return replace(
            state,
            front=torch.cat(fronts),
            front_positions=torch.stack(positions),
            owner=owner,
            planes=tuple(torch.stack(each) for each in zip(*planes, strict=True)),
            bias=torch.stack(biases) if biases else None,
        )

    def _reduce_one(
        self,
        state: PromptState,
        act: Act,
        reducer: DecoderReducer,
        scored: Scored,
        g: int,
        n: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A prompt at a site, exactly as the reference gives it to the reducer.

        The last of what it returns is the places ``[K]`` that stay, of the picture's tokens.

        Args:
            state: All prompts.
            act: What is done.
            reducer: By what.
            scored: By the layer before.
            g: Number of the front.
            n: Number of the question; None where the front alone decides.
        """
        hidden, positions = state.front[g : g + 1], state.front_positions[g]
        weights, keys = scored.front_weights[g : g + 1], scored.front_keys[g : g + 1]
        text = state.asks[0].front
        rows = hidden.shape[1]
        question = 0
        if n is not None:
            ask = state.asks[n]
            text, question = (*ask.front, *ask.rest), len(ask.rest)
            hidden = torch.cat((hidden, state.rest[n : n + 1, :question]), dim=1)
            positions = torch.cat((positions, state.rest_positions[n, :, :question]), dim=1)
            keys = torch.cat((keys, scored.rest_keys[n : n + 1, :, :question]), dim=2)
            above = nn.functional.pad(weights, (0, question))
            own = scored.rest_weights[n : n + 1, :question, : rows + question]
            weights = torch.cat((above, own), dim=1)
        before = len(state.asks[0].front)
        lengths, count = [before, question], act.count
        # What the rows before were made of does not matter for where they stand.
        now = place_tokens(lengths, np.arange(len(text)), 0, count.tokens_in)
        after = place_tokens(lengths, now.text, hidden.shape[1], count.tokens_out)
        visual, order = torch.from_numpy(now.visual), torch.from_numpy(after.order)
        where = torch.from_numpy(now.text)
        clues = decoder_clues(reducer, hidden, weights[:, None], keys, visual, where)
        if "decoder_input" in reducer.selector.needs:
            assert n is not None
            entered = state.entered[int(state.entered_owner[n])][None]
            clues = replace(clues, text_embeds=self._embed(text), visual_embeds=entered)
        reduced, places, *kept = reducer.reduce(hidden, clues, positions, visual, order)
        return reduced, places, kept[0][0] if kept else torch.zeros(0, dtype=torch.int64)

    def _answers(self, state: PromptState, group: Group) -> Iterator[NextLogits]:
        for n, ask in enumerate(state.asks):
            first = len(ask.rest) - 1
            rows = state.rest[n, first : first + 1 + len(ask.feed)]
            yield NextLogits(group, ask, self.parts.lm_head(self.parts.norm(rows)))

    def _count(self, state: PromptState, group: Group) -> None:
        """One layer: linear maps, and attention to every row that is held."""
        front = state.front.shape[1]
        fronts, rest = self._flops(front, front), state.rest.shape[1]
        behind = self._flops(rest, front + rest)
        self.effort.done += fronts * len(state.front) + behind * len(state.asks)
        for ask in state.asks:
            if not ask.again:
                rows = front + len(ask.rest) + len(ask.feed)
                self.effort.alone += self._flops(rows, rows) * len(ask.wanted.intersection(group))

    def _flops(self, rows: int, held: int) -> float:
        text = self.shape.dims.text
        inner, pair = text.heads * text.head_dim, 2 * text.kv_heads * text.head_dim
        maps = text.width * (2 * inner + pair + (3 if text.gated else 2) * text.mlp)
        return 2.0 * rows * (maps + 2 * held * inner)
