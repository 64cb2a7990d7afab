"""Recipe files, and the flags beside them, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from command_line import error_line, typed
from lvlm_export.cli.commands import build as build_command
from lvlm_export.cli.recipes import EXAMPLE
from lvlm_export.plan.plan import BuildOptions
from lvlm_runtime.bundle.bundle import read_manifest
from lvlm_runtime.bundle.placement import HandBudget, HandPlacement
from lvlm_runtime.errors import LvlmError


class StoppedError(LvlmError):
    """The options arrived; nothing needs to be built."""


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that types a build and gives the options it would run with."""
    seen: list[BuildOptions] = []

    def note(_checkpoint: Any, _name: str, wanted: BuildOptions, *_: Any, **__: Any) -> None:
        seen.append(wanted)
        raise StoppedError("seen")

    monkeypatch.setattr("lvlm_export.bundle.build.build", note)

    def run(*words: str | Path) -> BuildOptions:
        result = typed("build", *words)
        assert seen, result.stderr
        return seen.pop()

    return run


def write(directory: Path, text: str, name: str = "recipe.toml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example_is_in_the_help_and_says_what_it_says(options: Any) -> None:
    shown = typed("build", "--help").stdout
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        assert line.strip() in shown
    assert options("--recipe", EXAMPLE) == BuildOptions(
        ratios=(0.5, 0.33, 0.25),
        method="tome+fastv",
        placement=HandPlacement(
            (), 0.75, (HandBudget(0.25, {"vision@4": 98.0, "decoder@3": 0.5}),)
        ),
    )


def test_the_example_fits_the_demo_model(options: Any) -> None:
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.demo import CHECKPOINT
    from lvlm_export.plan.plan import make_plan

    plan = make_plan(Checkpoint.open(CHECKPOINT), options("--recipe", EXAMPLE))
    assert plan.method.name == "tome+fastv"
    budget = next(each for each in plan.budgets if each.ratio == 0.25)
    assert [(each.site.name, each.tokens_out) for each in budget.vision] == [("vision@4", 98)]
    assert budget.layouts[0].tokens_out == 49


@pytest.mark.slow
def test_the_example_builds(tmp_path: Path) -> None:
    result = typed("build", "--recipe", EXAMPLE, "-o", tmp_path / "bundle", "--no-verify")
    assert result.exit_code == 0, result.stderr
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.method == "tome+fastv"
    budget = manifest.budgets[2]
    assert [(each.site, each.tokens_out) for each in budget.vision] == [("vision@4", 98)]
    assert [(each.tokens_out, each.merges) for each in budget.layouts[0].decoder] == [(49, False)]
    assert budget.vision[0].merges
    shown = typed("inspect", tmp_path / "bundle").stdout
    assert "tome+fastv" in shown
    assert "vision@4 → " in shown


def test_yaml_says_the_same(tmp_path: Path, options: Any) -> None:
    pytest.importorskip("yaml")
    text = (
        "method: tome+fastv\nratios: [0.5, 0.33]\nshare: 0.75\nseed: 0\ntarget: cpu\n"
        "budgets:\n  - ratio: 0.25\n    keep: {vision@4: 98, decoder@3: 0.5}\n"
    )
    expected = options("--recipe", EXAMPLE)
    for name in ("recipe.yaml", "recipe.yml"):
        assert options("--recipe", write(tmp_path, text, name)) == expected


def test_every_flag_of_a_bundle_may_stand_in_a_recipe(tmp_path: Path, options: Any) -> None:
    text = (
        'method = "fastv+visionzip"\nratios = [0.4]\nsites = ["features@12", "decoder@3"]\n'
        'seed = 7\ntarget = "cuda"\nprecision = "fp32"\nimage_size = "640x480"\n'
        "context_length = 512\nbaseline = false\n"
    )
    wanted = options("--recipe", write(tmp_path, text))
    assert wanted == BuildOptions(
        ratios=(0.4,),
        baseline=False,
        method="visionzip+fastv",
        target="cuda",
        precision="fp32",
        seed=7,
        image_size=(480, 640),
        context_length=512,
        placement=HandPlacement(("features@12", "decoder@3")),
    )


def test_a_recipe_may_name_several_sizes(tmp_path: Path, options: Any) -> None:
    sized = options(
        "--recipe", write(tmp_path, 'ratios = [0.4]\nimage_size = ["640x480", "3x4"]\n')
    )
    assert (sized.image_size, sized.more_sizes) == ((480, 640), ((4, 3),))
    usual = options("--ratio", "0.4", "--image-size", "auto")
    assert (usual.image_size, len(usual.more_sizes)) == ((224, 224), 4)


def test_a_flag_that_is_typed_wins(tmp_path: Path, options: Any) -> None:
    path = write(tmp_path, 'method = "random"\nratios = [0.4, 0.2]\nseed = 7\nbaseline = false\n')
    assert options("--recipe", path).seed == 7
    flags = ("--ratio", "0.6", "--seed", "9", "--baseline", "--method", "uniform")
    wanted = options(*flags, "--recipe", path)
    assert wanted == BuildOptions(ratios=(0.6,), method="uniform", seed=9)


def test_sites_and_a_composed_method_need_no_recipe(options: Any) -> None:
    wanted = options(
        "--ratio", "0.5", "--method", "fastv+visionzip", "--sites", "features@12, decoder@3"
    )
    assert wanted.method == "visionzip+fastv"
    assert wanted.placement == HandPlacement(("features@12", "decoder@3"))
    assert options("--ratio", "0.5").placement == HandPlacement()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("ratios = [0.5", "is not TOML: "),
        ("ratio = 0.5", "unknown entry 'ratio'; known: model, revision, ratios, "),
        ("ratios = [0.5, 1.5]", "ratios: ratio 1.5 is outside (0, 1]; a ratio is the share"),
        ("ratios = 0.5", "ratios: expected a list"),
        ("seed = [1]", "seed: expected one value"),
        ("seed = 1.5", "seed: '1.5' is not a valid integer range"),
        ("seed = {a = 1}", "seed: expected a word or a number, got {'a': 1}"),
        ('method = "fastv+dart"', "method: method fastv+dart: fastv and dart both act in the"),
        ('method = "magic"', "method: unknown method 'magic'; known: anchors, cdpruner, "),
        ('precision = "int3"', "precision: --precision int3: 'int3' is given twice or not known; "),
        (
            'image_size = "640"',
            "image_size: '640' is not a size; write width x height, 640x480, or auto",
        ),
        ('sites = "decoder@3"', "sites: expected a list"),
        ('sites = ["decoder3"]', "sites: 'decoder3' is no site; write stage@layer"),
        ("share = 1.5", "share: 1.5 is outside 0 to 1"),
        ('share = "half"', "share: expected a number, got 'half'"),
        ("budgets = 3", "budgets: write each as a table, [[budgets]]"),
        ("[[budgets]]\nratio = 0.5", "budgets[0]: a budget has ratio and keep, and nothing else"),
        ("[[budgets]]\nratio = 2\nkeep = {}", "budgets[0].ratio: 2 is outside 0 to 1"),
        ("[[budgets]]\nratio = 0.5\nkeep = {}", "budgets[0].keep: write what stays at every site"),
        (
            '[[budgets]]\nratio = 0.5\nkeep = {"decoder@3" = 1.5}',
            "budgets[0].keep.decoder@3: 1.5 is neither a count from 1 up nor a share",
        ),
        (
            '[[budgets]]\nratio = 0.5\nkeep = {"decoder@3" = true}',
            "budgets[0].keep.decoder@3: expected a number, got True",
        ),
        ('method = "fastv"\nratios = [0.5]\nshare = 0.5', "fastv acts on one side of the decoder"),
        ('method = "fastv"\nratios = [0.5]\nsites = ["vision@3"]', "not at vision@3"),
    ],
)
def test_a_recipe_that_does_not_fit_names_file_and_entry(
    tmp_path: Path, text: str, line: str
) -> None:
    path = write(tmp_path, text)
    message = error_line(typed("build", "--recipe", path), 2)
    assert message.startswith(f"error: {path}")
    assert line in message


def test_a_recipe_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "there is no such recipe file" in error_line(
        typed("build", "--recipe", "absent.toml"), 2
    )
    path = write(tmp_path, "{}", "recipe.json")
    assert "a recipe is a .toml, .yaml or .yml file" in error_line(
        typed("build", "--recipe", path), 2
    )
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert "is not TOML: it is a directory, not a file" in error_line(
        typed("build", "--recipe", folder), 2
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [", "is not YAML: "), ("- a", "a recipe is a table of names and values")],
)
def test_yaml_that_does_not_fit_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    pytest.importorskip("yaml")
    path = write(tmp_path, text, "recipe.yaml")
    assert line in error_line(typed("build", "--recipe", path), 2)


def test_without_a_yaml_library_toml_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    path = write(tmp_path, "seed: 1", "recipe.yaml")
    line = error_line(typed("build", "--recipe", path), 2)
    assert "YAML recipes need PyYAML, which is not installed; write it as .toml" in line


def test_ratios_typed_beside_counted_budgets_are_refused() -> None:
    line = error_line(typed("build", "--recipe", EXAMPLE, "--ratio", "0.5"), 2)
    assert f"--ratio and the budgets of {EXAMPLE} both set how many tokens stay" in line


def test_no_ratio_anywhere_is_refused(tmp_path: Path) -> None:
    for words in ((), ("--recipe", write(tmp_path, "seed = 1"))):
        assert "no ratio given; give the shares" in error_line(typed("build", *words), 2)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--method", "magic"), "Invalid value for '--method': unknown method 'magic'; known: "),
        (("--method", "illava+fastv"), "illava acts before and in the decoder already; a composed"),
        (("--sites", "decoder"), "Invalid value for '--sites': 'decoder' is no site"),
        (("--method", "fastv", "--sites", "vision@2"), "fastv acts at decoder sites, not at"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(words: tuple[str, ...], line: str) -> None:
    assert line in error_line(typed("build", "--ratio", "0.5", *words), 2)


def test_sites_outside_the_model_are_refused(tmp_path: Path) -> None:
    words = ("build", "--ratio", "0.5", "-o", tmp_path / "bundle", "--sites")
    line = error_line(typed(*words, "vision@99"), 2)
    assert "site vision@99 is not in this model; it has vision@0 to vision@" in line
    assert not (tmp_path / "bundle").exists()


def test_list_says_what_composes() -> None:
    rows = json.loads(typed("list", "methods", "--json").stdout)
    assert rows["visionzip"]["composes"] == "NAME+…"
    assert rows["fastv"]["composes"] == "…+NAME"
    assert rows["illava"]["composes"] == "alone"


def test_a_recipe_knows_every_flag_that_shapes_a_bundle() -> None:
    names = {param.name for param in build_command.build.params if isinstance(param, click.Option)}
    # --precision fills two fields, of activations and of the weights of each part; so does --image-size,
    # with the first size and the others.
    fields = set(BuildOptions.__dataclass_fields__) - {"placement", "weights", "more_sizes"}
    others = {"recipe", "output", "check", "force", "model", "revision", "sites", "wide"}
    changes = {"added", "removed"}  # of a finished bundle, whose recipe stays what it is
    assert names - others - changes == fields


def test_inspect_says_what_was_placed_by_hand() -> None:
    from types import SimpleNamespace

    from lvlm_export.cli.commands.inspect import by_hand

    def summary(placement: HandPlacement) -> str:
        return by_hand(SimpleNamespace(placement=placement))  # type: ignore[arg-type]

    assert summary(HandPlacement()) == ""
    counts = (HandBudget(0.25, {"decoder@3": 49.0}),)
    assert summary(HandPlacement(("decoder@3",), 0.75, counts)) == (
        ", by hand: sites, a share of 0.75, the counts of 0.25"
    )
