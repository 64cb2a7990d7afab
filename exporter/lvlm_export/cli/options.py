"""Types and options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_profiles.registry import unknown_name
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.checkpoint.files import Located
    from lvlm_export.plan.weight_formats import BuildPrecision

DEMO = "demo"
# In ``click.Context.meta``: tables keep all their columns.
WIDE = "lvlm_export.wide"


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


class ImageSizeOrAuto(ImageSize):
    """``WxH`` in pixels, as (height, width), or ``auto``."""

    name = "WxH|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check and convert."""
        if value == "auto":
            return value
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}, or auto", param, ctx)


class Milliseconds(click.ParamType):  # type: ignore[type-arg]
    """A time, ``300ms``, ``0.3s`` or ``300``, in milliseconds."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Check and convert."""
        from lvlm_runtime.profiled import milliseconds

        try:
            return milliseconds(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Points(click.ParamType):  # type: ignore[type-arg]
    """Points of accuracy, ``1%`` or ``1``, as a share."""

    name = "points"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Check and convert."""
        match = re.fullmatch(r"(\d{1,3}(?:\.\d*)?|\.\d+)\s*%?", str(value).strip())
        found = -1.0 if match is None else float(match[1]) / 100
        if not 0 <= found <= 1:
            self.fail(f"{value!r} is no number of points; write 1% or 0.5%", param, ctx)
        return found


class MethodName(click.ParamType):  # type: ignore[type-arg]
    """A reduction method, or one before the decoder and one in it with a plus between."""

    name = "method"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check; parts come in the order tokens pass them."""
        from lvlm_export.reduction import load_method

        try:
            return load_method(str(value)).name
        except UsageError as error:
            self.fail(str(error), param, ctx)


class SiteNames(click.ParamType):  # type: ignore[type-arg]
    """``vision@5,decoder@8`` as a tuple of names."""

    name = "sites"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Check; whether a model has them is known when it is read."""
        from lvlm_export.reduction.compose import parse_site

        try:
            return tuple(parse_site(name).name for name in str(value).split(","))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class PrecisionWords(click.ParamType):  # type: ignore[type-arg]
    """``fp16``, ``int4`` or ``vision=int8,decoder=int4`` as a ``BuildPrecision``."""

    name = "precision"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> BuildPrecision:
        """Check; whether a target takes it is known when there is one."""
        from lvlm_export.plan.weight_formats import parse_precision

        try:
            return parse_precision(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Speculation(click.ParamType):  # type: ignore[type-arg]
    """``ngram:K`` as K; 0 is none."""

    name = "ngram:K"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Check and convert."""
        from lvlm_runtime.prompt.drafts import parse_speculation

        try:
            return value if isinstance(value, int) else parse_speculation(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class BuildTarget(click.ParamType):  # type: ignore[type-arg]
    """A target, or a device profile, which names one."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check, and turn a device's name into its target."""
        from lvlm_export.plan.targets import TARGETS
        from lvlm_profiles.devices.device import device_names, load_device

        if value in TARGETS:
            return str(value)
        if value not in device_names():
            known = (*TARGETS, *device_names())
            self.fail(unknown_name("target", str(value), known), param, ctx)
        return load_device(value).target


class BackendName(click.ParamType):  # type: ignore[type-arg]
    """A key of the backend table, which is read only when the option is used."""

    name = "backend"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check."""
        from lvlm_runtime.backends import BACKENDS

        known = ("auto", *sorted(BACKENDS))
        if value not in known:
            self.fail(unknown_name("backend", str(value), known), param, ctx)
        return str(value)


# Existence is checked where the bundle is opened: its message says more than click's.
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Directory of the pictures [the data file's own].",
)
image_size_option = click.option(
    "--image-size",
    type=ImageSize(),
    metavar="WxH",
    help="Picture size in pixels that the tile layout is made for (families with tiles).",
)
image_sizes_option = click.option(
    "--image-size",
    type=ImageSizeOrAuto(),
    multiple=True,
    metavar="WxH|auto",
    help="Picture size in pixels that a tile layout is made for (families with tiles); repeatable, auto for"
    " 1:1, 4:3, 3:4, 16:9 and 9:16. A picture takes the layout that suits it best.",
)
ratio_option = click.option(
    "--ratio", type=Ratio(), help="Share of visual tokens KEPT, one of the bundle's [its first]."
)
ratios_option = click.option(
    "--ratio",
    "ratios",
    type=Ratio(),
    multiple=True,
    help="Share of visual tokens KEPT; repeatable [all of the bundle's].",
)
revision_option = click.option(
    "--revision",
    metavar="REV",
    help="Branch, tag or commit of a hub id [main]; the bundle keeps the commit. owner/name is taken for"
    " a path where something called owner lies here, unless this is given.",
)
chunk_option = click.option(
    "--prefill-chunk",
    type=int,
    metavar="N",
    help="Most rows of a prompt in one call of a graph: less memory for activations [all at once].",
)
speculate_option = click.option(
    "--speculate",
    type=Speculation(),
    metavar="ngram:K",
    default=0,
    help="Draft up to K tokens from what was said and verify them in one call; the answer is the same"
    " [none].",
)
wide_option = click.option(
    "--wide",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, _param, given: ctx.meta.__setitem__(WIDE, given),
    help="Show every column of a table, however narrow the terminal is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Length of the request that times and memory are counted for."""
    for option in (
        click.option(
            "--answer-tokens",
            type=click.IntRange(1),
            metavar="N",
            default=128,
            show_default=True,
            help="Tokens of the answer that costs are counted for.",
        ),
        click.option(
            "--text-tokens",
            "--prompt-tokens",  # its name in plan before 0.1
            "text_tokens",
            type=click.IntRange(1),
            metavar="N",
            default=64,
            show_default=True,
            help="Text tokens of the prompt that costs are counted for, template and question.",
        ),
    ):
        command = option(command)
    return command


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
            type=click.Choice(["auto", "cpu", "cuda", "gpu"]),
            default="auto",
            show_default=True,
            help="auto takes an NVIDIA GPU where there is one; gpu is Intel's, for openvino.",
        ),
        click.option(
            "--backend",
            type=BackendName(),
            default="auto",
            show_default=True,
            help="What runs the graphs; auto takes TensorRT where the bundle has engines and there"
            " is a GPU, else ONNX Runtime.",
        ),
    ):
        command = option(command)
    return command


def find_checkpoint(model: str, revision: str | None = None) -> Located:
    """Where the checkpoint of a model name lies; ``demo`` is the one that is shipped.

    Raises:
        UsageError: A revision of something that is not on the hub.
        LvlmError: There is none of this name.
    """
    from lvlm_export.checkpoint.files import Located, locate

    if model != DEMO:
        return locate(model, revision)
    if revision is not None:
        raise UsageError("--revision is for hub ids and the demo model is shipped; leave it out")
    from lvlm_export.demo import CHECKPOINT

    return Located(CHECKPOINT, DEMO)
