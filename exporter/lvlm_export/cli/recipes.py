"""``build --recipe``: a file's entries stand for flags that were not typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lvlm_export.plan.recipe import Recipe, read_recipe
from lvlm_runtime.bundle.placement import HandPlacement
from lvlm_runtime.errors import UsageError

EXAMPLE = Path(__file__).with_name("recipe_example.toml")
# Flags about this run and not about the bundle.
NOT_IN_A_RECIPE = {"recipe", "output", "check", "force"}
# click keeps a paragraph's lines after \b.
RECIPE_HELP = "\b\nA recipe (TOML, or YAML with the same entries):\n" + EXAMPLE.read_text(
    encoding="utf-8"
).replace("\n\n", "\n\n\b\n")


def use_recipe(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Recipe:
    """Read the recipe before the flags, so that it gives their defaults."""
    if path is None:
        return Recipe()
    flags = {
        each.name: each
        for each in ctx.command.params
        if each.name is not None and each.name not in NOT_IN_A_RECIPE
    }
    recipe = read_recipe(path, tuple(flags))
    for name, typed in recipe.flags.items():
        _check(ctx, f"{path}: {name}", flags[name], typed)
    ctx.default_map = {
        name: _as_default(flags[name], typed) for name, typed in recipe.flags.items()
    }
    return recipe


def _as_default(flag: click.Parameter, typed: str | list[str]) -> str | list[str]:
    """What a file has, in the form that click takes for a flag's default."""
    if flag.multiple:
        return typed if isinstance(typed, list) else [typed]
    return ",".join(typed) if isinstance(typed, list) else typed


def _check(ctx: click.Context, where: str, flag: click.Parameter, typed: str | list[str]) -> None:
    """Convert as if typed, so that the line names file and entry."""
    words = typed if isinstance(typed, list) else [typed]
    # A size that is the only one needs no list.
    one_or_more = flag.name == "image_size"
    if not one_or_more and isinstance(typed, list) != (flag.multiple or flag.name == "sites"):
        raise UsageError(
            f"{where}: expected {'one value' if isinstance(typed, list) else 'a list'}"
        )
    for word in words:
        try:
            flag.type.convert(word, flag, ctx)
        except click.UsageError as error:
            raise UsageError(f"{where}: {error.message}") from None


recipe_option = click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=use_recipe,
    metavar="FILE",
    help="File of flags, and of sites and counts by hand, see below; a flag that is typed wins over"
    " its entry.",
)


def set_placement(options: dict[str, Any]) -> None:
    """Turn ``sites`` and ``recipe`` of the options into ``placement``, and complete the ratios.

    Raises:
        UsageError: No ratio, sites that the method does not have, or options that contradict.
    """
    recipe: Recipe = options.pop("recipe")
    sites = options.pop("sites") or ()
    source = click.get_current_context().get_parameter_source("ratios")
    if recipe.budgets and source is click.core.ParameterSource.COMMANDLINE:
        raise UsageError(
            f"--ratio and the budgets of {recipe.path} both set how many tokens stay; leave one out"
        )
    by_hand = tuple(budget.ratio for budget in recipe.budgets)
    options["ratios"] = tuple(dict.fromkeys((*options["ratios"], *by_hand)))
    if not options["ratios"]:
        raise UsageError("no ratio given; give the shares of visual tokens to keep, --ratio 0.33")
    options["placement"] = HandPlacement(sites, recipe.share, recipe.budgets)
    from lvlm_export.reduction import load_method

    try:
        load_method(options["method"], options["placement"])
    except UsageError as error:
        prefix = "" if recipe.path is None else f"{recipe.path}: "
        raise UsageError(f"{prefix}{error}") from None
