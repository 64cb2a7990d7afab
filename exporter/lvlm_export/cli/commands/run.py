"""``lvlm-export run``: ask a bundle a question about pictures. Never imports torch."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    Milliseconds,
    bundle_argument,
    chunk_option,
    device_options,
    json_option,
    ratio_option,
    speculate_option,
)
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_runtime.profiled import Choice
    from lvlm_runtime.session import Generation, Session


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
@ratio_option
@click.option(
    "--ttft",
    "target_ms",
    type=Milliseconds(),
    help="Take the largest ratio whose first token came within this time, as 300ms or 0.3s, in the"
    " last `lvlm-export profile` on this machine.",
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
    help="Above 1 repeats less [the checkpoint's own, else 1].",
)
@click.option(
    "--model-rules/--no-model-rules",
    "rules",
    default=True,
    show_default=True,
    help="Keep to the rules of the checkpoint's generation_config.json: what is not repeated, banned"
    " tokens, lengths.",
)
@click.option("--seed", type=int, metavar="N", help="Draw the same tokens again.")
@click.option(
    "--require-signature",
    metavar="PUBLIC",
    help="Refuse a bundle that the owner of this minisign key did not sign: its .pub file, or its"
    " one line of base64.",
)
@chunk_option
@speculate_option
@click.option("--system", help="System message, where the model's template knows one.")
@device_options
@json_option
def run(
    bundle: Path,
    prompt: str | None,
    images: tuple[Path, ...],
    ratio: float | None,
    target_ms: float | None,
    max_new_tokens: int,
    require_signature: str | None,
    prefill_chunk: int | None,
    speculate: int,
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
    if ratio is not None and target_ms is not None:
        raise UsageError("--ratio and --ttft exclude each other; give one of them")
    question = read_prompt(prompt)
    from lvlm_runtime.prompt.sampling import SamplingOptions

    options = SamplingOptions(**sampling)
    from lvlm_runtime.session import Session

    session = Session.open(bundle, backend, device, threads, require_signature)
    choice = None
    if target_ms is not None:
        choice = choose_profiled_ratio(session, threads, target_ms, images)
    stream = AnswerStream()
    answer = session.generate(
        question,
        images,
        ratio if choice is None else choice.ratio,
        max_new_tokens=max_new_tokens,
        sampling=options,
        system=system,
        prefill_chunk=prefill_chunk,
        speculate=speculate,
        on_text=None if as_json else stream.write,
    )
    said = session.generation.sentences(options.rules, options.temperature > 0)
    if as_json:
        from lvlm_export.cli.console import echo_json

        executed = session.chain.backend
        content = {**record(answer, bundle, executed.device), "backend": executed.name}
        if said:
            content["generation_config"] = said
        if choice is not None:
            content["ttft"] = {"target_ms": target_ms, "expected_ms": choice.expected_ms}
        echo_json(content)
        return
    say()
    executed = session.chain.backend
    line = f"{answer_line(answer, images)}; {executed.name} on {executed.device}"
    say(line, err=True)
    for sentence in said:
        say(sentence, err=True)
    if choice is not None and target_ms is not None:
        say(ttft_line(choice, target_ms, answer), err=True)


def choose_profiled_ratio(
    session: Session, threads: int | None, target_ms: float, images: tuple[Path, ...]
) -> Choice:
    """The ratio that the last profile on this machine advises."""
    from lvlm_runtime.profiled import Setup, profiled_choice

    backend = session.chain.backend
    setup = Setup(backend.name, backend.device, threads)
    return profiled_choice(session.bundle, setup, target_ms, images)


def ttft_line(choice: Choice, target_ms: float, answer: Generation) -> str:
    """One line: what was expected, what came, and where this request is not the profiled one."""
    came = answer.time_to_first_token_ms
    parts = [
        f"--ttft {target_ms:g} ms took ratio {choice.ratio:g}: {choice.expected_ms:.0f} ms in nine"
        f" of ten profiled requests, {came:.0f} ms now"
        + (" (missed; the first request of a process is slower)" if came > target_ms else "")
    ]
    if answer.prompt_tokens > choice.prompt_tokens:
        parts.append(
            f"the prompt has {answer.prompt_tokens} tokens and the profiled one had"
            f" {choice.prompt_tokens}"
        )
    return "; ".join(parts)


class AnswerStream:
    """Writes an answer as it comes, without the space many models begin with."""

    def __init__(self) -> None:
        self._begun = False

    def write(self, piece: str) -> None:
        """Show a piece at once."""
        piece = piece if self._begun else piece.lstrip()
        if piece:
            self._begun = True
            say(piece, nl=False)
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


def answer_line(answer: Generation, images: tuple[Path, ...]) -> str:
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
    if answer.drafted_tokens:
        parts.append(
            f"{len(answer.token_ids) - 1} tokens in {answer.decode_calls} calls,"
            f" {answer.accepted_tokens} of {answer.drafted_tokens} drafts right"
        )
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
