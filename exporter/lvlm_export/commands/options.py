"""Types and options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lvlm_runtime.errors import UsageError

DEMO = "demo"


class Ratio(click.ParamType):  # type: ignore[type-arg]
    """A share of visual tokens kept, in (0, 1]."""

    name = "ratio"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Check and convert."""
        from lvlm_export.reduction.schedule import parse_ratio

        try:
            return parse_ratio(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class ImageSize(click.ParamType):  # type: ignore[type-arg]
    """``WxH`` in pixels, as (height, width)."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Check and convert."""
        match = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size; write width x height, 640x480", param, ctx)
        return int(match[2]), int(match[1])


class Backend(click.ParamType):  # type: ignore[type-arg]
    """A key of the backend table, which is read only when the option is used."""

    name = "backend"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check."""
        from lvlm_runtime.backends import BACKENDS

        if value not in BACKENDS:
            self.fail(f"{value!r} is unknown; known: {', '.join(sorted(BACKENDS))}", param, ctx)
        return str(value)


# Existence is checked where the bundle is opened: its message says more than click's.
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where and with what the graphs run."""
    for option in (
        click.option(
            "--threads",
            type=click.IntRange(1, 1024),
            metavar="N",
            help="CPU threads [one per physical core].",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto takes a GPU where there is one.",
        ),
        click.option(
            "--backend",
            type=Backend(),
            default="onnxruntime",
            show_default=True,
            help="What runs the graphs.",
        ),
    ):
        command = option(command)
    return command


def checkpoint_directory(model: str) -> Path:
    """Where the checkpoint of a model name lies; ``demo`` is the one that is shipped."""
    if model == DEMO:
        from lvlm_export.demo import CHECKPOINT

        return CHECKPOINT
    from lvlm_export.checkpoint import locate

    return locate(model)
