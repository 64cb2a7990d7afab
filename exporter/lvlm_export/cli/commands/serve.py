"""``lvlm-export serve``: OpenAI's chat API over bundles. Never imports torch."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import Ratio, device_options
from lvlm_runtime.errors import UsageError

KEY_VARIABLE = "LVLM_EXPORT_API_KEY"
MEBIBYTE = 1 << 20


@click.command(short_help="Answer OpenAI's chat API over HTTP.")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 for all of this machine's.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any."
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="Host name that requests may be for beside localhost, as of a proxy on this machine; repeatable.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help=f"File with the key that requests must send [the variable {KEY_VARIABLE}, or none].",
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 64),
    metavar="N",
    default=1,
    show_default=True,
    help="Requests per bundle that are answered at once; they map one weight file.",
)
@click.option(
    "--queue",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=32,
    show_default=True,
    help="Requests per bundle that may wait; one more is refused with 429.",
)
@click.option(
    "--degrade-to",
    type=Ratio(),
    help="Ratio of requests that name none while half of the queue is taken; the answer says so [never].",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=1024,
    show_default=True,
    help="Longest answer that a request may ask for.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1, 4096),
    metavar="MIB",
    default=32,
    show_default=True,
    help="Longest body, pictures included.",
)
@click.option(
    "--max-images",
    type=click.IntRange(0, 1000),
    metavar="N",
    default=8,
    show_default=True,
    help="Most pictures of one request.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    metavar="N",
    default=40_000_000,
    show_default=True,
    help="Largest picture.",
)
@click.option(
    "--max-kv",
    type=click.IntRange(1),
    metavar="MIB",
    help="Largest key-value caches of one request, prompt and longest answer [what the model takes].",
)
@click.option(
    "--picture-cache",
    type=click.IntRange(0),
    metavar="MIB",
    default=256,
    show_default=True,
    help="Most memory per session for pictures that were asked about before; 0 for none.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0.1),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="Longest time from a request to the end of its answer.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="Longest time that answers under way get after SIGTERM.",
)
@click.option(
    "--log",
    "log_form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the log on stderr, which has no words of a request.",
)
@device_options
def serve(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    names: tuple[str, ...],
    api_key_file: Path | None,
    sessions: int,
    queue: int,
    degrade_to: float | None,
    max_tokens: int,
    max_body: int,
    max_images: int,
    max_pixels: int,
    max_kv: int | None,
    picture_cache: int,
    deadline: float,
    drain: float,
    log_form: str,
    backend: str,
    device: str,
    threads: int | None,
) -> None:
    """Answer OpenAI's chat API over HTTP, with a ratio or a latency goal per request.

    Models are the bundles' directory names, and name@ratio. A request may have a field ratio, or ttft_ms:
    the largest ratio that meets this time to the first token. docs/SERVING.md has the rest.
    """
    from lvlm_runtime.serve import server
    from lvlm_runtime.serve.limits import ServingLimits
    from lvlm_runtime.serve.opening import Places, open_desk

    limits = ServingLimits(
        body_bytes=max_body * MEBIBYTE,
        pictures=max_images,
        pixels=max_pixels,
        answer_tokens=max_tokens,
        kv_bytes=None if max_kv is None else max_kv * MEBIBYTE,
        waiting=queue,
        deadline_s=deadline,
    )
    places = Places(sessions, picture_cache * MEBIBYTE, degrade_to, backend, device, threads)
    key = api_key(api_key_file)
    listening = server.bind(host, port)
    desk = open_desk(bundles, places, limits, log_form, key)
    name, number = listening.getsockname()[:2]
    address = f"http://{f'[{name}]' if ':' in name else name}:{number}"
    if key is None and name not in server.LOOPBACK:
        say("warning: whoever reaches this address may ask; give --api-key-file", err=True)
    models = ", ".join(desk.catalogue.bundles)
    line = f"{address} serves {models}"
    server.serve(desk, listening, drain, lambda: say(line, err=True), names)


def api_key(file: Path | None) -> str | None:
    """The key of a file, or of the environment; None where neither says one.

    Raises:
        UsageError: The file has none.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no key can be read from {file} ({error}); write one into it") from None
    if not text or any(each.isspace() for each in text):
        raise UsageError(f"{file} has no key, or several words; write one word into it")
    return text
