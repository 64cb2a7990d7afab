"""A request behind what the caches hold of an earlier one: checked, filled in, answered."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.answering import AnswerOptions, AnswerPiece, Loaded, Reply, answer_loop
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget
from lvlm_runtime.bundle.route import route, visual_tokens
from lvlm_runtime.chain.held import Held, ImagePrompt, PromptImage, common, rows_of
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.chain.vision import Visual
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image import preprocess
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.prompt.sequence import text_runs
from lvlm_runtime.remembered import PictureMemory, digest, whole
from lvlm_runtime.request import check_tokens, layout_for


@dataclass(frozen=True)
class ShownPicture:
    """A picture of a conversation.

    Attributes:
        content: File or pixels, which stay as they are.
        digest: SHA-256 of it.
        ratio: Of its budget.
    """

    content: Picture
    digest: str
    ratio: float

    @classmethod
    def of(cls, source: Picture, ratio: float) -> ShownPicture:
        """Read once; a file that changes later is the picture that it was."""
        content = whole(source)
        return cls(content, digest(content), ratio)


@dataclass(frozen=True)
class RememberedPicture:
    """A picture of which ``Session.remember`` keeps what no question changes; it stands for it.

    Attributes:
        picture: The picture and its ratio.
        until: What is kept: up to the answer, or up to the site that reads the question.
        tokens: Visual tokens whose rows are kept in the decoder's first caches.
    """

    picture: ShownPicture
    until: str
    tokens: int


@dataclass(frozen=True)
class HeldRequest:
    """What is asked.

    Attributes:
        token_ids: The prompt, one placeholder id per picture.
        pictures: As many.
        ratio: That the answer says of itself.
        options: How the answer is made.
        query_ids: The question alone, for a bundle whose projector reads it.
        chunk: Most rows of the prompt in one call of a graph; None for all.
        capacity: Rows that the caches have; None for as many as the request needs.
    """

    token_ids: Sequence[int]
    pictures: Sequence[ShownPicture]
    ratio: float
    options: AnswerOptions
    query_ids: Sequence[int] | None
    chunk: int | None
    capacity: int | None = None


def shown_picture(image: Picture | RememberedPicture, ratio: float) -> ShownPicture:
    """A picture of a request; one that is remembered has its own ratio."""
    return image.picture if isinstance(image, RememberedPicture) else ShownPicture.of(image, ratio)


def check_chunk(rows: int | None) -> int | None:
    """UsageError for a chunk of no row."""
    if rows is not None and rows < 1:
        raise UsageError(f"a prefill chunk of {rows} rows is below 1; give 1 or more")
    return rows


@dataclass
class Answering:
    """One request, from its check to its answer.

    Attributes:
        loaded: What answers.
        asked: The request.
        memory: Of pictures.
        recorder: Takes the timings.
    """

    loaded: Loaded
    asked: HeldRequest
    memory: PictureMemory
    recorder: Recorder
    layout: TileLayout | None = field(init=False)
    parts: list[LayoutBudget] = field(init=False)
    budgets: list[Budget] = field(init=False)
    prompt: ImagePrompt = field(init=False)
    rows: int = field(init=False)
    letterboxed: set[int] = field(default_factory=set)
    _pixels: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a picture.

        Raises:
            UsageError: A ratio that the bundle does not have.
            LvlmError: The prompt does not fit.
        """
        asked, manifest = self.asked, self.loaded.bundle.manifest
        length = asked.options.max_new_tokens
        runs = text_runs(asked.token_ids, manifest.text.image_token_id)
        assert len(runs) - 1 == len(asked.pictures), "the encoder sets a placeholder per picture"
        check_tokens(runs, manifest.text.vocab_size)
        self.layout = layout_for(manifest, [each.content for each in asked.pictures])
        self.budgets = [self.loaded.bundle.budget(each.ratio) for each in asked.pictures]
        name = "" if self.layout is None else self.layout.name
        self.parts = [budget.layout(name) for budget in self.budgets]
        text, limit = sum(map(len, runs)), manifest.text.context_length
        positions = text + sum(part.span for part in self.parts) + length
        rows = text + sum(part.tokens_in for part in self.parts) + length
        self.rows, room = rows, rows if asked.capacity is None else asked.capacity
        if positions > limit or rows > room:
            taken, room = (positions, limit) if positions > limit else (rows, room)
            raise LvlmError(
                f"it does not fit: with an answer of {length} there are {taken} tokens,"
                f" and room for {room}; begin anew (/reset), show fewer images, ask for a shorter"
                " answer (--max-new-tokens) or give more room (--context)"
            )
        if text == 0:
            raise LvlmError("the prompt is empty; ask a question")
        images = [
            PromptImage(self._key(number), self.parts[number], self._loader(number))
            for number in range(len(asked.pictures))
        ]
        self.prompt = ImagePrompt(runs, images)

    def begin(self, held: Held | None = None) -> Held:
        """Caches that hold as much of the prompt as is known, with as many rows as are needed.

        Args:
            held: Those of a conversation; they stay where nothing that is remembered holds more.
        """
        chain, elements = self.loaded.chain, self.prompt.elements()
        known = self.memory.nearest(elements)
        capacity = self.rows if self.asked.capacity is None else self.asked.capacity
        if known is not None:
            held_rows = 0
            if held is not None:
                held_rows = rows_of(elements[: common(held.stages[0].elements, elements)])
            if known.rows_in(elements) > held_rows:
                return chain.restore(known, capacity)
        return chain.empty(capacity) if held is None else held

    def remember(self, held: Held) -> None:
        """Keep the caches of the prompt up to its last picture."""
        elements = self.prompt.elements()
        pictures = [i for i, (key, _) in enumerate(elements) if not isinstance(key, int)]
        if not self.memory.budget_bytes:
            return
        if pictures and tuple(elements[: pictures[-1] + 1]) not in self.memory:
            self.memory.keep(self.loaded.chain.snapshot(held, pictures[-1] + 1))

    def remember_alone(self, shown: ShownPicture) -> RememberedPicture:
        """Compute the beginning of the prompt, up to its one picture, and keep it."""
        chain, part = self.loaded.chain, self.parts[0]
        elements = self.prompt.elements()
        held = self.begin()
        self._prepare(held)
        projected = part.projected
        reads = projected is not None and "text" in projected.inputs
        chosen = [cut.site for cut in part.decoder if cut.tokens_out]
        if reads:
            assert projected is not None
            self.prompt.images[0].load()
            return RememberedPicture(shown, projected.site, 0)
        chain.begin(self.prompt, held, self.recorder)
        self.memory.keep(chain.snapshot(held, len(elements)))
        return RememberedPicture(shown, chosen[0] if chosen else "the answer", part.tokens_in)

    def answer(self, held: Held, reply: Reply, came: float, start: float) -> Iterator[AnswerPiece]:
        """Prefill what is new, then answer; in a turn of the chain.

        Args:
            held: Of the requests before; it becomes that of this one when the answer has ended, by
                itself or because ``reply.cancelled`` says so.
            reply: What the reader holds.
            came: When the request came, on ``time.perf_counter``.
            start: When its turn did.
        """
        asked, recorder = self.asked, self.recorder
        self._prepare(held)
        history = self._history()
        loop = answer_loop(self.loaded, asked.options, len(history), recorder, reply, start)
        logits, reused = self.loaded.chain.fill(self.prompt, held, recorder, asked.chunk)
        state = held.state
        for piece in loop.run(state, logits, history):
            reply.so_far = lambda: loop.generation(
                came,
                asked.ratio,
                self._visual_tokens(),
                sum(rows for _, rows in self.prompt.elements()),
                tuple(sorted(self.letterboxed)),
                reused,
            )
            yield piece
        held.append(loop.token_ids[: state.position - held.position], state)

    def _key(self, number: int) -> Hashable:
        picture, part = self.asked.pictures[number], self.parts[number]
        projector = self.loaded.bundle.manifest.projector
        reads = projector is not None and projector.reads_text
        question = tuple(self.asked.query_ids or ()) if reads else ()
        return picture.digest, self.budgets[number].ratio, part.layout, question

    def _prepare(self, held: Held) -> None:
        """Read the pictures that will be looked at, so that a bad one stops the request here."""
        elements = self.prompt.elements()
        known = common(held.stages[0].elements, elements)
        places = [i for i, (key, _) in enumerate(elements) if not isinstance(key, int)]
        for number, (place, image) in enumerate(zip(places, self.prompt.images, strict=True)):
            if place >= known and image.key not in self.memory:
                self._pixels[number] = self._read(number)

    def _read(self, number: int) -> NDArray[np.float32]:
        assert self.layout is not None
        settings, picture = self.loaded.bundle.manifest.preprocess, self.asked.pictures[number]
        with self.recorder.span("preprocess", "preprocess", 0):
            prepared = preprocess.preprocess([picture.content], settings, self.layout)
        if prepared.fits and prepared.fits[0].letterboxed:
            self.letterboxed.add(number)
        pixels: NDArray[np.float32] = prepared.pixel_values
        return pixels

    def _loader(self, number: int) -> Callable[[], Visual]:
        chain = self.loaded.chain

        def compute() -> Visual:
            pixels = self._pixels.pop(number, None)
            pixels = self._read(number) if pixels is None else pixels
            visual = chain.encode(
                pixels,
                self.budgets[number],
                self.parts[number],
                self.recorder,
                self.asked.query_ids,
            )
            return visual.carried(chain.backend.fetch)

        def load() -> Visual:
            return self.memory.visual(self._key(number), compute).carried(chain.backend.put)

        return load

    def _history(self) -> list[int]:
        """The prompt as ``generate`` of transformers sees it: all image tokens of ratio 1.0."""
        token = self.loaded.bundle.manifest.text.image_token_id
        ids = list(self.prompt.runs[0])
        for part, run in zip(self.parts, self.prompt.runs[1:], strict=True):
            ids += [token] * part.tokens_full + list(run)
        return ids

    def _visual_tokens(self) -> tuple[tuple[str, int], ...]:
        """At each stage, all pictures together that pass it."""
        counts: dict[str, int] = {}
        for budget, part in zip(self.budgets, self.parts, strict=True):
            assert self.layout is not None
            per = {"tile": self.layout.tiles, "image": 1}
            for name, unit, tokens in visual_tokens(
                route(self.loaded.bundle.manifest, budget, part)
            ):
                counts[name] = counts.get(name, 0) + per[unit] * tokens
        return tuple(counts.items())
