"""``Session``: ask a bundle questions about pictures.

>>> from lvlm_runtime import Session
>>> session = Session.open("bundle")
>>> session.generate(images=["cat.jpg"], prompt="What color is the circle?", ratio=0.33).text
'yellow'
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from lvlm_runtime.answering import AnswerOptions, Generation, Loaded
from lvlm_runtime.asking import AnswerKeywords, AskKeywords, BatchQuestion, Pictures
from lvlm_runtime.backends import open_backend
from lvlm_runtime.backends.choice import AUTO, choose_backend
from lvlm_runtime.behind import Answering, HeldRequest, RememberedPicture, ShownPicture, check_chunk
from lvlm_runtime.bundle.bundle import TOKENIZER, Bundle
from lvlm_runtime.bundle.generation import GenerationRecord, read_generation
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.continued import check_continued
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.conversation import Conversation
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import synthetic
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.pieces import (
    answer_batch,
    answer_pieces,
    asked_each,
    asked_ids,
    asked_of,
    question_ids,
)
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.sampling import SamplingOptions
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.request import layout_for
from lvlm_runtime.streaming import StreamedAnswer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Generation", "Picture", "Session"]

GREEDY = SamplingOptions()
# What a chain is compared by: the largest logit, whatever rules the checkpoint has.
ARGMAX = SamplingOptions(repetition_penalty=1.0, rules=False)


class Session:
    """A bundle loaded into a backend.

    ``memory`` is what it keeps of pictures between requests; None for nothing.

    Threads may share it: it answers one request at a time, in the order in which they came
    (``busy``, ``waiting``). A request that fails, is interrupted or whose ``on_text`` raises leaves
    nothing behind and lets the next one in. ``on_text`` and the recorder's callbacks must not ask
    the same session, nor wait for a thread that does; nor must the loop over a stream.

    Example:
        >>> with Session.open("bundle", device="cpu") as session:
        ...     print(session.ratios, session.generate("What color is the circle?", "cat.jpg").text)
        (0.33, 0.5, 1.0) yellow
    """

    def __init__(
        self,
        bundle: Bundle,
        chain: Chain,
        encoder: PromptEncoder,
        generation: GenerationRecord,
        memory: PictureMemory | None = None,
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.chain = chain
        self.encoder = encoder
        self.generation = generation
        self.memory = memory
        self.threads = threads

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        backend: str = AUTO,
        device: str = "auto",
        threads: int | None = None,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Session:
        """Check and load a bundle.

        Args:
            directory: The bundle.
            backend: Key in ``lvlm_runtime.backends.BACKENDS``; ``auto`` takes TensorRT where the
                bundle has engines and a GPU answers, else ONNX Runtime.
            device: ``auto``, ``cpu`` or ``cuda``.
            threads: CPU threads; None for one per physical core.
            require_signature: Public key of minisign, its file or its line of base64; a bundle
                that its owner did not sign is refused before anything of it is read.

        Raises:
            LvlmError: Not a bundle, damaged, not signed as it must be, or not loadable.
        """
        bundle = Bundle.open(directory, require_signature=require_signature)
        return cls.load(bundle, backend, device, threads)

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        backend: str = AUTO,
        device: str = "auto",
        threads: int | None = None,
        exact: bool = False,
    ) -> Session:
        """As ``open``, for a bundle that is checked already.

        ``exact`` as of ``open_backend``.
        """
        encoder = PromptEncoder.read(bundle.tokenizer_files(), bundle.path(TOKENIZER))
        encoder = replace(encoder, marks=bundle.manifest.layouts[0].marks)
        chosen = choose_backend(bundle.directory, backend, device)
        generation = read_generation(bundle)
        chain = Chain(bundle, open_backend(chosen, device, threads, exact))
        return cls(bundle, chain, encoder, generation, threads=threads)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free graphs and weights, after the requests that came before; harmless a second time."""
        if self.chain.turns.closed:
            return
        with self.chain.turns.turn():
            self.chain.turns.closed = True
            self.memory = None
            self.chain.graphs.close()

    def __repr__(self) -> str:
        """What it is of, what it keeps and where it runs.

        >>> Session.open("bundle", device="cpu")
        <Session of bundle: llava by illava, ratios 0.33, 0.5, 1, float32; onnxruntime on cpu>
        """
        manifest, backend = self.bundle.manifest, self.chain.backend
        ratios = ", ".join(f"{ratio:g}" for ratio in self.ratios)
        return (
            f"<Session of {self.bundle.directory}: {manifest.family} by {manifest.method}, ratios"
            f" {ratios}, {manifest.precision}; "
            + ("closed>" if self.chain.turns.closed else f"{backend.name} on {backend.device}>")
        )

    @property
    def ratios(self) -> tuple[float, ...]:
        """Shares of visual tokens that the bundle can keep; the first is the default."""
        return tuple(budget.ratio for budget in self.bundle.manifest.budgets)

    @property
    def busy(self) -> bool:
        """A request is being answered; another one would wait."""
        return self.chain.turns.busy

    @property
    def waiting(self) -> int:
        """Requests that wait behind it."""
        return self.chain.turns.waiting

    def generate(
        self,
        prompt: str | None = None,
        images: Pictures = (),
        ratio: float | None = None,
        *,
        on_text: Callable[[str], None] | None = None,
        **asking: Unpack[AskKeywords],
    ) -> Generation:
        """Answer a question about pictures.

        Args:
            prompt: The question; None where ``messages`` ask it.
            images: One picture or several, as paths, data URLs, PIL pictures, arrays ``[H, W, 3]``,
                bytes or ``BytesIO``, in the order in which the prompt names them, or what
                ``remember`` gave for them.
            ratio: Share of visual tokens to keep; one of the bundle's, None for its first. A
                picture that is remembered has its own.
            on_text: Called with each new piece of the answer (streaming).
            **asking: ``max_new_tokens``, ``temperature`` and the other fields of ``AskKeywords``.

        Raises:
            UsageError: The bundle has no such ratio, a keyword's value is outside its range, or this
                thread is being answered already.
            LvlmError: A picture cannot be read, or the prompt does not fit.

        Example:
            >>> session = Session.open("bundle")
            >>> picture = {"type": "image_url", "image_url": {"url": "cat.jpg"}}
            >>> question = {"type": "text", "text": "What color is the circle?"}
            >>> chat = [{"role": "user", "content": [picture, question]}]
            >>> session.generate(messages=chat, ratio=0.5, max_new_tokens=8, stop=["."]).text
            'yellow'
        """
        return self.stream(prompt, images, ratio, **asking).finish(on_text)

    def stream(
        self,
        prompt: str | None = None,
        images: Pictures = (),
        ratio: float | None = None,
        **asking: Unpack[AskKeywords],
    ) -> StreamedAnswer:
        """As ``generate``, piece by piece: ``for piece in session.stream(…)``.

        Arguments and errors are those of ``generate``. What can be seen to be wrong without a picture
        or the prompt's length is raised here, the rest where the first piece is asked for.
        """
        asked = asked_of(self._loaded, prompt, images, ratio, asking)
        return StreamedAnswer(lambda reply: answer_pieces(self._loaded, self.memory, asked, reply))

    async def generate_async(
        self,
        prompt: str | None = None,
        images: Pictures = (),
        ratio: float | None = None,
        *,
        on_text: Callable[[str], None] | None = None,
        **asking: Unpack[AskKeywords],
    ) -> Generation:
        """As ``generate``, awaited; ``async for piece in session.stream(…)`` gives it piece by piece.

        A thread computes and the event loop goes on. A task that is cancelled ends its request.
        """
        return await self.stream(prompt, images, ratio, **asking).finish_async(on_text)

    def generate_batch(
        self, questions: Iterable[BatchQuestion], **asking: Unpack[BatchQuestion]
    ) -> Iterator[Generation]:
        """Answer several requests, one after another; pictures of the next are read meanwhile.

        Args:
            questions: What ``generate`` takes, by name, one for each answer.
            **asking: What is the same for all; what a question says counts before it.

        Returns:
            The answers in their order, each when it is there. A request that cannot be answered raises
            in its place; wrong keywords do before the first.

        Example:
            >>> session = Session.open("bundle")
            >>> asked = ["What color is the circle?", "Is there a red circle?"]
            >>> answers = session.generate_batch([{"prompt": each} for each in asked], images="cat.jpg")
            >>> [answer.text for answer in answers]
            ['yellow', 'no']
        """
        requests = asked_each(self._loaded, questions, asking)
        return answer_batch(self._loaded, self.memory, requests)

    def generate_ids(
        self,
        token_ids: Sequence[int],
        images: Sequence[Picture] = (),
        ratio: float | None = None,
        *,
        on_text: Callable[[str], None] | None = None,
        query_ids: Sequence[int] | None = None,
        **asking: Unpack[AnswerKeywords],
    ) -> Generation:
        """As ``generate``, for a prompt that is already tokens, one placeholder id per image.

        ``query_ids`` is the question alone, for a bundle whose projector reads it.
        """
        asked = asked_ids(self._loaded, token_ids, images, ratio, query_ids, asking)
        return StreamedAnswer(
            lambda reply: answer_pieces(self._loaded, self.memory, asked, reply)
        ).finish(on_text)

    def warmup(self, ratios: Sequence[float] | None = None, images: int = 1) -> None:
        """Answer with two tokens at each ratio, so that no later request is a first one.

        Reducers load where a ratio is first asked for, and a backend prepares its kernels and memory.

        Args:
            ratios: Those of the bundle that will be asked for; None for all.
            images: Pictures that a request will have.
        """
        pictures = [synthetic.picture()] * images
        ids, loaded = self.encoder.encode("?", images), self._loaded
        for ratio in self.ratios if ratios is None else ratios:
            self.generate_ids(
                ids,
                pictures,
                ratio,
                max_new_tokens=2,
                ignore_stop=True,
                query_ids=question_ids(loaded, "?"),
            )

    def remember(
        self, image: Picture, ratio: float | None = None, system: str | None = None
    ) -> RememberedPicture:
        """Compute what no question changes of a picture, and keep it for ``generate`` and ``chat``.

        Preprocessing, vision and, in the decoder, everything before the first site that reduces by
        what is asked. ``memory`` keeps it within its byte budget; a session without one gets one. A
        picture that it had to drop is computed again where it is asked about.

        Args:
            image: The picture.
            ratio: Share of visual tokens to keep; one of the bundle's, None for its first.
            system: The system message of the questions that follow.

        Raises:
            UsageError: The bundle has no such ratio.
            LvlmError: The picture cannot be read, or the bundle's projector reads the question.

        Example:
            >>> session = Session.open("bundle")
            >>> memory = session.remember("cat.jpg", 1.0)
            >>> memory.until, memory.tokens
            ('the answer', 196)
            >>> session.generate("What color is the circle?", [memory], 1.0).reused_tokens
            200
        """
        check_continued(self.bundle.manifest)
        if self.memory is None:
            self.memory = PictureMemory()
        projector = self.bundle.manifest.projector
        if projector is not None and projector.reads_text:
            raise LvlmError(
                "this bundle's projector reads the question, so nothing of a picture can be"
                " remembered before there is one; ask about it right away"
            )
        with self.chain.turns.turn():
            shown = ShownPicture.of(image, self.bundle.budget(ratio).ratio)
            ids = self.encoder.encode("?", 1, system=system)
            head = ids[: ids.index(self.bundle.manifest.text.image_token_id) + 1]
            asked = HeldRequest(head, [shown], shown.ratio, AnswerOptions(1, GREEDY), None, None)
            answering = Answering(self._loaded, asked, self.memory, Recorder())
            return answering.remember_alone(shown)

    @property
    def _loaded(self) -> Loaded:
        return Loaded(self.bundle, self.chain, self.encoder, self.generation, self.threads)

    def chat(
        self,
        system: str | None = None,
        *,
        context: int | None = None,
        sampling: SamplingOptions = GREEDY,
        prefill_chunk: int | None = None,
        speculate: int = 0,
    ) -> Conversation:
        """Begin a conversation, whose turns share one cache.

        Args:
            system: A system message, where the template takes one.
            context: Tokens that all turns together may have; None for the model's positions, at most
                4096, or what the engines were built for.
            sampling: How tokens are chosen.
            prefill_chunk: Most rows of a prompt in one call of a graph; None for all at once.
            speculate: As of ``generate``.

        Raises:
            UsageError: A context that the model does not have.
            LvlmError: Engines were built for a shorter one.
        """
        memory = PictureMemory() if self.memory is None else self.memory
        chunk = check_chunk(prefill_chunk)
        return Conversation(self._loaded, memory, system, context, sampling, chunk, speculate)

    def layout(self, images: Sequence[Picture]) -> TileLayout | None:
        """The tile layout of a request with these images, among those that the bundle has."""
        return layout_for(self.bundle.manifest, images)
