"""A bundle that is served: its sessions, the line in front of them, and the budget of a request."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from lvlm_runtime.answering import Generation
from lvlm_runtime.asking import AskKeywords
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.serve.chances import TokenChances
from lvlm_runtime.serve.job import Begun, BudgetWish, Finished, Said, ServedRequest
from lvlm_runtime.serve.line import FairLine, LineFullError
from lvlm_runtime.serve.patches import KeptPatches, patch_grid
from lvlm_runtime.serve.refusal import RefusedError
from lvlm_runtime.serve.size import AskedSize
from lvlm_runtime.serve.times import MeasuredTimes
from lvlm_runtime.serve.warming import first_requests
from lvlm_runtime.session import Session


class Watcher(Protocol):
    """What is told of every request, from the thread that answers it."""

    def answered(self, bundle: str, generation: Generation, waited_ms: float) -> None:
        """A request was answered, to its end or until nobody waited."""

    def failed(self, bundle: str, error: BaseException) -> None:
        """A request that could be answered was not; the error is not told to who asked."""


@dataclass
class ServedBundle:
    """A bundle under its name.

    Attributes:
        name: Its id.
        sessions: Each is asked by a thread of its own; they map one weight file.
        line: What waits for any of them.
        watcher: Is told of every request.
        degrade_to: Ratio of requests that name neither a ratio nor a goal while half of the line's
            places are taken; None to leave them their own.
        times: Of the last requests.
        warm: Every ratio was asked for once.
        failed: It could not be warmed up; the log says why.
        created: Seconds since 1970.
    """

    name: str
    sessions: Sequence[Session]
    line: FairLine[ServedRequest]
    watcher: Watcher
    degrade_to: float | None = None
    times: MeasuredTimes = field(default_factory=MeasuredTimes)
    warm: threading.Event = field(default_factory=threading.Event)
    failed: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    running: set[ServedRequest] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)
    _answer_s: float = 0.0
    _cold: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def session(self) -> Session:
        """One of them, for what all have in common."""
        return self.sessions[0]

    @property
    def ratios(self) -> tuple[float, ...]:
        """That a request may name; the first is the default."""
        return self.session.ratios

    def start(self) -> None:
        """Let a thread warm up and answer with each session."""
        self._cold = len(self.sessions)
        for number, session in enumerate(self.sessions):
            thread = threading.Thread(
                target=self._work, args=(session,), name=f"{self.name}-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Answer what waits, then end the threads and free the sessions."""
        self.line.close()
        for thread in self._threads:
            thread.join()
        for session in self.sessions:
            session.close()

    def put(self, job: ServedRequest) -> None:
        """A request joins the line.

        Raises:
            RefusedError: No ratio meets its goal, or the line is full.
        """
        self.check_goal(job.wish, job.size)
        try:
            lost = self.line.put(job.client, job)
        except LineFullError:
            raise self._full() from None
        if lost is not None:
            lost.tell(self._full())

    def leave(self, job: ServedRequest) -> None:
        """Nobody waits for a request any more."""
        job.cancel()
        self.line.leave(job.client, job)

    def check_goal(self, wish: BudgetWish, size: AskedSize) -> None:
        """Refuse a goal that no ratio meets, even where nobody waits.

        Raises:
            RefusedError: Says what the fastest ratio takes.
        """
        goal = wish.ttft_ms
        if goal is None or not self.warm.is_set() or self._largest(goal, size) is not None:
            return
        ratio, least = self._fastest(size)
        raise RefusedError(
            f"no ratio of {self.name} meets {goal:g} ms: the fastest is {ratio:g} with {least:.0f} ms"
            " (90th percentile) for such a request; ask for more time, or for a ratio",
            422,
            "ttft_goal_not_met",
            "ttft_ms",
        )

    def running_kv_bytes(self) -> int:
        """Of the caches of the requests in their turn."""
        with self._lock:
            running = [(job.size, job.ratio) for job in self.running if job.ratio is not None]
        return sum(size.kv_bytes(self.session.bundle, ratio) for size, ratio in running)

    def memory_bytes(self) -> int:
        """What is kept of pictures."""
        kept = [each.memory for each in self.sessions]
        return sum(memory.held_bytes for memory in kept if memory is not None)

    def retry_after_s(self) -> int:
        """Whole seconds until a place is free, by the time of the last answers."""
        return max(1, math.ceil(self._answer_s / len(self.sessions)))

    def _full(self) -> RefusedError:
        return RefusedError(
            f"{self.line.places} requests wait for {self.name} already; ask again later",
            429,
            "queue_full",
            None,
            self.retry_after_s(),
        )

    def _largest(self, goal_ms: float, size: AskedSize) -> float | None:
        for ratio in sorted(self.ratios, reverse=True):
            expected = self._expected(ratio, size)
            if expected is not None and expected <= goal_ms:
                return ratio
        return None

    def _fastest(self, size: AskedSize) -> tuple[float, float]:
        known = [(self._expected(ratio, size), ratio) for ratio in self.ratios]
        expected, ratio = min((ms, ratio) for ms, ratio in known if ms is not None)
        return ratio, expected

    def _expected(self, ratio: float, size: AskedSize) -> float | None:
        flops = size.flops(self.session.bundle, ratio)
        return self.times.predict(ratio, size.images, flops)

    def budget(self, job: ServedRequest) -> tuple[float, float | None]:
        """The ratio of a request whose turn has come, and the one that it has it instead of.

        Raises:
            RefusedError: It waited so long that no ratio meets its goal any more.
        """
        wish, default = job.wish, self.ratios[0]
        if wish.ratio is not None:
            return wish.ratio, None
        if wish.ttft_ms is not None:
            found = self._largest(wish.ttft_ms - job.waited_ms, job.size)
            if found is None:
                raise RefusedError(
                    f"this request waited {job.waited_ms:.0f} ms, so no ratio of {self.name} meets"
                    f" {wish.ttft_ms:g} ms any more; ask again later, or for more time",
                    429,
                    "ttft_goal_not_met",
                    "ttft_ms",
                    self.retry_after_s(),
                )
            return found, None
        busy = 2 * len(self.line) >= self.line.places
        if self.degrade_to is None or not busy or self.degrade_to >= default:
            return default, None
        return self.degrade_to, default

    def _work(self, session: Session) -> None:
        """What the thread of one session does."""
        try:
            self._warm_up(session)
        except Exception as error:  # /ready says so, and requests are tried
            self.failed = True
            self.watcher.failed(self.name, error)
        while (job := self.line.take()) is not None:
            if job.cancelled:
                continue
            with self._lock:
                self.running.add(job)
            began = time.perf_counter()
            try:
                generation = self._answer(session, job)
                self.watcher.answered(self.name, generation, job.began_ms)
                job.tell(Finished(generation, job.patches))
            except RefusedError as error:
                job.tell(error)
            except Exception as error:  # the next request must find this thread
                self.watcher.failed(self.name, error)
                job.tell(failure())
            finally:
                with self._lock:
                    self.running.discard(job)
                    self._answer_s += (time.perf_counter() - began - self._answer_s) / 8

    def _warm_up(self, session: Session) -> None:
        """Ask for every ratio twice, so that no request is a first one and all times are known."""
        session.warmup()
        for asked in first_requests(session):
            self._answer(session, asked)
            if session.memory is not None:
                session.memory.clear()
        with self._lock:
            self._cold -= 1
            if not self._cold:
                self.warm.set()

    def _answer(self, session: Session, job: ServedRequest) -> Generation:
        job.began_ms = job.waited_ms
        ratio, instead_of = self.budget(job)
        job.ratio = ratio
        kept = self._watched(session, job)
        recorder = Recorder(on_reduction=None if kept is None else kept.watch)
        chances = TokenChances(job.top_logprobs)
        asking: AskKeywords = {
            **job.asking,
            "recorder": recorder,
            "logits_processor": chances.processors,
        }
        memory, session.memory = session.memory, None if kept else session.memory
        try:
            answer = session.stream(ratio=ratio, **asking)
            job.begin(answer)
            begun = False
            with closing(iter(answer)) as pieces:
                for piece in pieces:
                    if not begun:
                        job.tell(Begun(ratio, instead_of, job.began_ms))
                        begun = True
                    job.tell(Said(piece, chances.of(piece.token_id)))
        except LvlmError as error:
            # Until a graph runs, what is wrong is the request.
            if any(span.phase != "preprocess" for span in recorder.spans):
                raise
            raise RefusedError(self._without_places(str(error)), 400, "invalid_value") from error
        finally:
            session.memory = memory
        if kept is not None and job.shown is not None:
            job.patches = kept.told(session.bundle, job.shown)
        generation = answer.generation
        looked = any(span.phase == "vision" for span in recorder.spans)
        # What is remembered of a picture makes times that say nothing of the next one.
        if generation.reused_tokens == 0 and looked == bool(job.size.images):
            flops = job.size.flops(session.bundle, ratio)
            self.times.add(ratio, job.size.images, flops, generation.time_to_first_token_ms)
        return generation

    def _watched(self, session: Session, job: ServedRequest) -> KeptPatches | None:
        grid = patch_grid(session.bundle)
        if job.shown is None or grid is None:
            return None
        return KeptPatches(grid, session.chain.backend)

    def _without_places(self, message: str) -> str:
        """A message that names the bundle and not where it lies."""
        return message.replace(str(self.session.bundle.directory), self.name)


def failure() -> RefusedError:
    """What is told where the reason is for the server's log alone."""
    return RefusedError(
        "this server failed to answer; its log says why, and the same request may be answered later",
        500,
        "internal_error",
    )
