"""Many trials on questions about pictures, in PyTorch, with everything shared that can be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lvlm_export.check.chain_run import ParitySample
from lvlm_export.check.layers import decoder_layers
from lvlm_export.check.parity import request_of
from lvlm_export.check.reference_io import ReferenceRequest, load_eager
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.generation import read_rules
from lvlm_export.study.evaluation import Question
from lvlm_export.tune.answering import AnswerCheck
from lvlm_export.tune.branches import Branching, Effort, Group
from lvlm_export.tune.language import Language
from lvlm_export.tune.prompts import Ask
from lvlm_export.tune.space import TrialPlan
from lvlm_export.tune.tower import Encoded, Tower
from lvlm_runtime.bundle.manifest import CAUSAL
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.picture import Picture, load_image
from lvlm_runtime.prompt.rules import AnswerLimits
from lvlm_runtime.prompt.sequence import Origins

# Elements of the attention weights of one layer that are in memory at once, at most, unless a single
# question has more.
MOST_WEIGHTS = 1 << 25


@dataclass(frozen=True, eq=False)
class PictureQuestions:
    """A picture and what is asked about it.

    Attributes:
        picture: File or pixels.
        questions: At least one.
    """

    picture: Picture
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class AskOptions:
    """What all questions have in common.

    Attributes:
        max_new_tokens: Longest answer.
        image_size: As of ``build``, for families with tiles.
        seed: For methods that draw numbers.
    """

    max_new_tokens: int
    image_size: tuple[int, int] | None
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of trials and questions.

    Attributes:
        right: ``[trials][questions]``, in the order given.
        effort: What it took.
    """

    right: tuple[tuple[bool, ...], ...]
    effort: Effort


class Asker:
    """A checkpoint that answers for many trials at once.

    Args:
        checkpoint: The model; its weights are loaded in float32.
        options: Of all questions.
    """

    def __init__(self, checkpoint: Checkpoint, options: AskOptions) -> None:
        self.options = options
        self.family, self.stop_ids = checkpoint.family, checkpoint.stop_ids
        self.shape = checkpoint.shape(options.image_size)
        self.layout = self.shape.layouts[0]
        self.encoder = replace(checkpoint.encoder, marks=self.layout.marks)
        if self.shape.text.attention != CAUSAL:
            raise UsageError(
                f"tune asks many questions at once and cannot do so with {checkpoint.config.model_type}"
                " yet, whose decoder sees what stands behind; build with --method and compare"
            )
        self.rules = read_rules(checkpoint.directory, self.shape.text.vocab_size).rules
        self.model = load_eager(checkpoint.directory, checkpoint.family)
        self.parts = self.family.parts(self.model)
        # How the model's own answers begin, which drafts of expected ones are made like.
        self._lead = ""
        self._drafts: dict[str, tuple[int, ...]] = {}

    @torch.no_grad()
    def ask(self, plans: Sequence[TrialPlan], pictures: Sequence[PictureQuestions]) -> Outcome:
        """Every trial on every question; which are right, as ``lvlm-export eval`` counts.

        Raises:
            LvlmError: A picture cannot be read.
        """
        branching = Branching(plans, self.shape, self.layout.name, self.options.seed)
        effort, before = Effort(), time.process_time()
        right: list[list[bool]] = [[] for _ in plans]
        for some in self._batches(pictures):
            for sofar, more in zip(right, self._ask_batch(branching, some, effort), strict=True):
                sofar += more
        effort.seconds = time.process_time() - before
        return Outcome(tuple(map(tuple, right)), effort)

    def _batches(self, pictures: Sequence[PictureQuestions]) -> list[list[PictureQuestions]]:
        """Pictures whose questions fit into memory together; too many of one are taken apart."""
        full = self.shape.visual_tokens(self.layout, self.shape.vision.tokens)
        length = full + max(
            len(self.encoder.encode(question.question, 1)) + self.options.max_new_tokens
            for each in pictures
            for question in each.questions
        )
        most = max(1, MOST_WEIGHTS // (self.shape.text.heads * length * length))
        batches: list[list[PictureQuestions]] = [[]]
        room = most
        for each in pictures:
            for first in range(0, len(each.questions), most):
                part = replace(each, questions=each.questions[first : first + most])
                if len(part.questions) > room:
                    batches.append([])
                    room = most
                batches[-1].append(part)
                room -= len(part.questions)
        return [batch for batch in batches if batch]

    def _ask_batch(
        self, branching: Branching, pictures: Sequence[PictureQuestions], effort: Effort
    ) -> list[list[bool]]:
        requests = [self._requests(each) for each in pictures]
        pixels = torch.cat([torch.from_numpy(each[0].pixel_values) for each in requests])
        asks: list[Ask] = []
        checks: list[AnswerCheck] = []
        for number, (each, made) in enumerate(zip(pictures, requests, strict=True)):
            for question, request in zip(each.questions, made, strict=True):
                front, rest = map(tuple, request.runs)
                draft = self._draft(question)
                wanted = frozenset(branching.group)
                asks.append(Ask(len(checks), number, front, rest, draft, wanted))
                checks.append(self._check(question, request))
        queries = {
            ask.number: request.query_ids
            for ask, request in zip(
                asks, (request for made in requests for request in made), strict=True
            )
        }
        found: list[list[bool | None]] = [[None] * len(asks) for _ in branching.plans]
        while asks:
            further: dict[tuple[int, tuple[int, ...]], set[int]] = {}
            by_number = {ask.number: ask for ask in asks}
            for group, ask, answer in self._pass(branching, pixels, asks, checks, queries, effort):
                check = checks[ask.number]
                known = check.right(answer)
                if check.ended(answer) and known is not None:
                    self._learn(check, branching, group, answer)
                for trial in ask.wanted.intersection(group):
                    found[trial][ask.number] = known
                    if known is None:
                        further.setdefault((ask.number, answer), set()).add(trial)
            asks = [
                replace(by_number[number], feed=fed, wanted=frozenset(trials), again=True)
                for (number, fed), trials in further.items()
            ]
        return [[each is True for each in row] for row in found]

    def _pass(
        self,
        branching: Branching,
        pixels: Tensor,
        asks: Sequence[Ask],
        checks: Sequence[AnswerCheck],
        queries: dict[int, list[int]],
        effort: Effort,
    ) -> list[tuple[Group, Ask, tuple[int, ...]]]:
        """Every ask once: for groups of trials, what is known of the answer then."""
        tower = Tower(self.model, self.parts, self.family, self.shape, branching, effort)
        language = Language(
            self.model.get_input_embeddings(), self.parts, self.shape, branching, effort
        )
        group = tuple(sorted({trial for ask in asks for trial in ask.wanted}))
        tiles = self.layout.tiles
        shown = sorted({ask.picture for ask in asks})
        rows = [number * tiles + tile for number in shown for tile in range(tiles)]
        place = {number: index for index, number in enumerate(shown)}
        known = []
        first_time = sum(not ask.again for ask in asks)
        for encoded in tower.encode(pixels[rows], self.layout, first_time, group):
            wanted = [ask for ask in asks if not ask.wanted.isdisjoint(encoded.group)]
            visual, origins, sizes = encoded.features, encoded.origins, encoded.sizes
            owner = [place[ask.picture] for ask in wanted]
            if self.parts.projector is not None:
                visual, owner = self._condense(encoded, wanted, owner, queries)
                origins = Origins.whole(*visual.shape[:2])
            for length in sorted({len(ask.front) for ask in wanted}):
                some = [n for n, ask in enumerate(wanted) if len(ask.front) == length]
                followed = language.follow(
                    visual,
                    origins,
                    sizes,
                    encoded.planes,
                    [owner[n] for n in some],
                    [wanted[n] for n in some],
                    encoded.group,
                )
                for each in followed:
                    logits = each.logits.float().numpy()
                    answer = checks[each.ask.number].accept(each.ask.feed, logits)
                    known.append((each.group, each.ask, answer))
        return known

    def _condense(
        self,
        encoded: Encoded,
        asks: Sequence[Ask],
        owner: Sequence[int],
        queries: dict[int, list[int]],
    ) -> tuple[Tensor, list[int]]:
        """Tokens of a trained projector ``[n, V, D]``, of every question where it reads them."""
        projector, tiles = self.parts.projector, self.layout.tiles
        assert projector is not None
        reads = self.shape.projector is not None and self.shape.projector.reads_text
        if not reads:
            return projector(encoded.features, None), list(owner)
        made = []
        for ask, picture in zip(asks, owner, strict=True):
            query = self._query(queries[ask.number])
            some = encoded.features[picture * tiles : (picture + 1) * tiles]
            made.append(projector(some, query))
        return torch.cat(made), list(range(len(asks)))

    def _query(self, query_ids: Sequence[int]) -> Tensor:
        """The language model's last hidden state ``[1, 1, C]`` on a question."""
        from transformers import DynamicCache

        ids = torch.tensor([list(query_ids)])
        embedded, positions = self.model.get_input_embeddings()(ids), torch.arange(ids.shape[1])
        layers = range(len(self.parts.text_layers))
        last = decoder_layers(self.parts, embedded, positions[None], DynamicCache(), layers, None)
        query: Tensor = self.parts.norm(last[:, -1:])
        return query

    def _requests(self, each: PictureQuestions) -> list[ReferenceRequest]:
        image = load_image(each.picture)
        shape = self.shape
        first = request_of(
            ParitySample((image,), each.questions[0].question),
            self.encoder,
            shape.layouts,
            shape.preprocess,
            shape.image_token_id,
        )
        others = [
            replace(
                first,
                runs=self._runs(each.questions[n].question),
                query_ids=self.encoder.question(each.questions[n].question),
            )
            for n in range(1, len(each.questions))
        ]
        return [first, *others]

    def _runs(self, question: str) -> list[list[int]]:
        from lvlm_runtime.prompt.sequence import text_runs

        return text_runs(self.encoder.encode(question, 1), self.shape.image_token_id)

    def _check(self, question: Question, request: ReferenceRequest) -> AnswerCheck:
        full = self.shape.visual_tokens(self.layout, self.shape.vision.tokens)
        front, rest = request.runs
        history = [*front, *[self.shape.image_token_id] * full, *rest]
        limits = AnswerLimits(len(history), self.options.max_new_tokens, self.stop_ids)
        return AnswerCheck(question, history, self.encoder, self.rules, limits)

    def _draft(self, question: Question) -> tuple[int, ...]:
        """The unreduced model's answer where it is known, else the expected one; no stop token."""
        if question.key in self._drafts:
            return self._drafts[question.key]
        text = self._lead + question.answer.strip()
        ids = self.encoder.tokenizer.encode(text, add_special_tokens=False).ids
        return tuple(ids[: self.options.max_new_tokens - 1])

    def _learn(
        self, check: AnswerCheck, branching: Branching, group: Group, answer: tuple[int, ...]
    ) -> None:
        """Remember what the unreduced model says; it changes how soon an answer is known, not which."""
        if all(branching.plans[number].trial.ratio != 1.0 for number in group):
            return
        kept = answer[:-1] if answer[-1] in self.stop_ids else answer
        self._drafts[check.question.key] = kept[: self.options.max_new_tokens - 1]
        self._lead = " " if check.text(answer).startswith(" ") else ""
