"""``lvlm-export run``: ask a bundle a question about pictures. Never imports torch."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.commands.options import Ratio, bundle_argument, device_options, json_option
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_runtime.session import Generation


@click.command(short_help="Ask a bundle a question about pictures.")
@bundle_argument
@click.argument("prompt", required=False)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Picture file; repeatable, in the order the question speaks of them.",
)
@click.option(
    "--ratio", type=Ratio(), help="Share of visual tokens KEPT, one of the bundle's [its first]."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=128,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--temperature",
    type=float,
    metavar="T",
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option("--top-k", type=int, metavar="K", help="Draw among the k likeliest tokens.")
@click.option(
    "--top-p", type=float, metavar="P", help="Draw among the fewest tokens of this probability."
)
@click.option(
    "--repetition-penalty",
    type=float,
    metavar="P",
    default=1.0,
    show_default=True,
    help="Above 1 repeats less.",
)
@click.option("--seed", type=int, metavar="N", help="Draw the same tokens again.")
@click.option("--system", help="System message, where the model's template knows one.")
@device_options
@json_option
def run(
    bundle: Path,
    prompt: str | None,
    images: tuple[Path, ...],
    ratio: float | None,
    max_new_tokens: int,
    system: str | None,
    backend: str,
    device: str,
    threads: int | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer PROMPT about the pictures; a missing PROMPT or "-" is read from stdin.

    The answer streams to stdout, one line about tokens and speed goes to stderr.
    """
    question = read_prompt(prompt)
    from lvlm_runtime.sampling import SamplingOptions

    options = SamplingOptions(**sampling)
    from lvlm_runtime.session import Session

    session = Session.open(bundle, backend, device, threads)
    stream = Stream()
    answer = session.generate(
        question,
        images,
        ratio,
        max_new_tokens=max_new_tokens,
        sampling=options,
        system=system,
        on_text=None if as_json else stream.write,
    )
    if as_json:
        from lvlm_export.console import echo_json

        echo_json(record(answer, bundle, session.chain.backend.device))
        return
    click.echo()
    click.echo(summary(answer, images), err=True)


class Stream:
    """Writes an answer as it comes, without the space many models begin with."""

    def __init__(self) -> None:
        self._begun = False

    def write(self, piece: str) -> None:
        """Show a piece at once."""
        piece = piece if self._begun else piece.lstrip()
        if piece:
            self._begun = True
            click.echo(piece, nl=False)
            sys.stdout.flush()


def read_prompt(argument: str | None) -> str:
    """The question, from the command line or from piped stdin."""
    text = argument
    if argument is None or argument == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(
                'no question; give it as an argument ("What is this?") or through a pipe'
            )
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"the question on stdin is not UTF-8 text ({error.reason})") from None
    text = (text or "").strip()
    if not text:
        raise UsageError(
            'the question is empty; give it as an argument ("What is this?") or on stdin'
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError("the question is not UTF-8 text; check the terminal's encoding")
    return text


def summary(answer: Generation, images: tuple[Path, ...]) -> str:
    """One line: tokens at each stage, speed, and what was done to a picture."""
    speed = answer.decode_tokens_per_s
    parts = [
        f"ratio {answer.ratio:g}",
        "visual tokens " + " → ".join(f"{name} {count}" for name, count in answer.visual_tokens)
        if answer.visual_tokens
        else "no picture",
        f"first token {answer.time_to_first_token_ms:.0f} ms",
        f"{speed:.1f} tokens/s" if speed is not None else "one token",
    ]
    if answer.finish_reason == "length":
        parts.append(f"cut at {len(answer.token_ids)} tokens (--max-new-tokens)")
    for index in answer.letterboxed:
        parts.append(f"{images[index].name} was letterboxed to the bundle's tile layout")
    return "; ".join(parts)


def record(answer: Generation, bundle: Path, device: str) -> dict[str, Any]:
    """The answer as plain JSON types."""
    fields = dataclasses.asdict(answer)
    stages = [{"stage": stage, "tokens": tokens} for stage, tokens in answer.visual_tokens]
    return {**fields, "visual_tokens": stages, "bundle": str(bundle), "device": device}
