"""The trials of a search: what they are, and that ``build`` makes of a recipe what was searched."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.cli.commands.build import build
from lvlm_export.plan.fit import geometry_of
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.tune.space import ModelFit, Space, Trial, default_methods, make_space, recipe_text

RATIOS = (0.5, 0.33)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiles") / "model"
    return Checkpoint.open(tiny.onevision(folder))


@pytest.fixture(scope="module")
def space(checkpoint: Checkpoint) -> Space:
    shape = checkpoint.shape(None)
    width = shape.text.hidden_size
    fit = ModelFit(geometry_of(shape), shape.vision.prefix, shape.packed, width)
    return make_space(fit, default_methods(), RATIOS)


def test_all_methods_and_pairs_are_in_it_or_refused(space: Space) -> None:
    tried = {plan.trial.method for plan in space.plans}
    refused = {name.split()[0] for name, _ in space.refused}
    assert tried | refused == set(default_methods())
    assert {"local", "local+fastv", "tome", "fastv"} <= tried
    assert "prumerge" in refused
    assert all(reason for _, reason in space.refused)
    names = [plan.trial.name for plan in space.plans]
    assert len(set(names)) == len(names)
    same = {(plan.trial.method, plan.budget) for plan in space.plans}
    assert len(same) == len(names)


def test_a_recipe_is_what_was_searched(
    space: Space, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Every trial, through the flags of ``build``: the same counts at the same sites."""
    assert any(plan.trial.sites for plan in space.plans)
    assert any(plan.trial.share is not None for plan in space.plans)
    for plan in space.plans[::3]:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe_text(plan.trial, {"seed": 3}, "found"))
        context = click.Context(build)
        with context:
            build.parse_args(context, ["--recipe", str(path), "--image-size", "96x48"])
            from lvlm_export.cli.recipes import set_placement

            options = dict(context.params)
            set_placement(options)
        made = make_plan(
            checkpoint,
            BuildOptions(
                options["ratios"],
                baseline=False,
                method=options["method"],
                placement=options["placement"],
                seed=options["seed"],
            ),
        )
        assert made.budgets == (plan.budget,)
        assert made.options.seed == 3


def test_the_sites_of_local_see_the_whole_grid(space: Space) -> None:
    """Its later sites have no square of tokens, and are no reason to refuse it."""
    plan = next(each for each in space.plans if each.trial == Trial("local", 0.5))
    assert plan.budget.vision[0].tokens_in == 36
    assert len(plan.budget.vision) == 3
