"""``lvlm-export chat``: a conversation with a bundle about pictures. Never imports torch."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    bundle_argument,
    chunk_option,
    device_options,
    ratio_option,
    speculate_option,
)
from lvlm_runtime.errors import LvlmError, UsageError

if TYPE_CHECKING:
    from lvlm_runtime.answering import Generation
    from lvlm_runtime.conversation import Conversation

HELP = """\
/image FILE  show a picture with the next question; repeatable
/ratio R     share of visual tokens KEPT of the pictures that follow
/stats       tokens, what was not computed again, time to the first token of the last answer
/reset       forget everything that was said
/quit        leave (Ctrl-D does, too); Ctrl-C stops an answer"""
MARK = "> "


@click.command(short_help="Talk with a bundle about pictures.")
@bundle_argument
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Picture of the first question; repeatable. /image FILE shows one later.",
)
@ratio_option
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=128,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--context",
    type=int,
    metavar="N",
    help="Tokens that the whole conversation may have; their memory is taken at its start [the model's"
    " positions, at most 4096].",
)
@chunk_option
@speculate_option
@click.option(
    "--temperature",
    type=float,
    metavar="T",
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option("--seed", type=int, metavar="N", help="Draw the same tokens again.")
@click.option("--system", help="System message, where the model's template knows one.")
@device_options
def chat(
    bundle: Path,
    images: tuple[Path, ...],
    ratio: float | None,
    max_new_tokens: int,
    context: int | None,
    prefill_chunk: int | None,
    speculate: int,
    temperature: float,
    seed: int | None,
    system: str | None,
    backend: str,
    device: str,
    threads: int | None,
) -> None:
    """Answer line after line; what was said before is not computed again.

    On a terminal, /help lists what can be typed beside questions. Piped, every line of stdin is a
    question or such a word, and every answer ends with a line end; the exit status is 1 where a
    line failed.
    """
    from lvlm_runtime.prompt.sampling import SamplingOptions
    from lvlm_runtime.session import Session

    sampling = SamplingOptions(temperature=temperature, seed=seed)
    session = Session.open(bundle, backend, device, threads)
    kept = session.bundle.budget(ratio).ratio
    conversation = session.chat(
        system,
        context=context,
        sampling=sampling,
        prefill_chunk=prefill_chunk,
        speculate=speculate,
    )
    talk = Talk(conversation, kept, max_new_tokens, list(images))
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        say(f"{bundle}; /help lists the commands, Ctrl-D ends", err=True)
    with answers_stopped_by_ctrl_c(terminal):
        for line in lines(terminal):
            if not talk.take(line):
                break
    if talk.failed and not terminal:
        raise LvlmError(f"{talk.failed} of the lines on stdin failed; see above")


@dataclass
class Talk:
    """What is typed, line by line.

    Attributes:
        conversation: It answers.
        ratio: Of the pictures that follow.
        max_new_tokens: Longest answer.
        waiting: Pictures that go with the next question.
        failed: Lines that failed.
        last: The last answer.
    """

    conversation: Conversation
    ratio: float
    max_new_tokens: int
    waiting: list[Path] = field(default_factory=list)
    failed: int = 0
    last: Generation | None = None

    def take(self, line: str) -> bool:
        """One line; an error is one line too, and the conversation goes on. False to leave."""
        text = line.strip()
        if text == "/quit":
            return False
        try:
            if text.startswith("/"):
                self.command(*text.partition(" ")[::2])
            elif text:
                self.ask(text)
        except LvlmError as error:
            self.failed += 1
            say(f"error: {' '.join(str(error).split())}", err=True)
        except KeyboardInterrupt:
            say()
            say("stopped; the question is forgotten", err=True)
        return True

    def ask(self, question: str) -> None:
        """Answer with the pictures that wait, which stay where that fails."""
        from lvlm_export.cli.commands.run import AnswerStream

        self.last = self.conversation.ask(
            question,
            self.waiting,
            self.ratio,
            max_new_tokens=self.max_new_tokens,
            on_text=AnswerStream().write,
        )
        say()
        self.waiting = []

    def command(self, word: str, rest: str) -> None:
        """A line that begins with a slash.

        Raises:
            UsageError: There is no such command, or not with this.
        """
        argument = rest.strip().strip("\"'")
        if word == "/image":
            path = Path(argument).expanduser()
            if not argument or not path.is_file():
                raise UsageError(f"no picture file at {argument!r}; write /image FILE")
            self.waiting.append(path)
        elif word == "/ratio":
            self.ratio = self.budget(argument)
        elif word == "/reset":
            self.conversation.reset()
            self.waiting, self.last = [], None
        elif word == "/stats":
            say(self.stats(), err=True)
        elif word == "/help":
            say(HELP, err=True)
        else:
            raise UsageError(f"there is no command {word}; /help lists them")

    def budget(self, text: str) -> float:
        """One of the bundle's ratios."""
        try:
            ratio = float(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a ratio; write /ratio 0.5") from None
        return self.conversation.loaded.bundle.budget(ratio).ratio

    def stats(self) -> str:
        """One line about the last answer and the room that is left."""
        if self.last is None:
            return "nothing was asked yet"
        last, chat = self.last, self.conversation
        speed = last.decode_tokens_per_s
        return "; ".join(
            (
                f"{last.reused_tokens} of {last.prompt_tokens} tokens of the prompt were not computed"
                " again",
                f"first token {last.time_to_first_token_ms:.0f} ms",
                f"{speed:.1f} tokens/s" if speed is not None else "one token",
                f"{last.prompt_tokens + len(last.token_ids)} of {chat.context} tokens are used",
                f"pictures that follow keep {self.ratio:g}",
            )
        )


def lines(terminal: bool) -> Iterator[str]:
    """What is typed, with the line editing and history of readline; or what is piped."""
    if not terminal:
        if sys.stdin is not None:
            for raw in sys.stdin.buffer:
                try:
                    yield raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UsageError(
                        f"a line on stdin is not UTF-8 text ({error.reason})"
                    ) from None
        return
    with suppress(ImportError):  # Python on Windows
        import readline  # noqa: F401  # input() edits lines and remembers them where it is loaded
    while True:
        try:
            yield input(MARK)
        except KeyboardInterrupt:
            say()
        except EOFError:
            say()
            return


@contextmanager
def answers_stopped_by_ctrl_c(terminal: bool) -> Iterator[None]:
    """On a terminal Ctrl-C stops an answer, again and again; elsewhere it ends the command."""
    before = signal.getsignal(signal.SIGINT)
    if not terminal or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
