"""The command line as a user types it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import PICTURE, QUESTION, error_line, process, typed
from helpers import IN_BOTH
from lvlm_export import __version__
from lvlm_export.cli import COMMANDS, explain
from lvlm_runtime.bundle.bundle import read_manifest
from lvlm_runtime.errors import LvlmError, UsageError


def test_version_and_help_name_every_command() -> None:
    assert typed("--version").stdout == f"lvlm-export {__version__}\n"
    text = typed("-h").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
        assert typed(name, "--help").exit_code == 0


def test_build_reports_every_ratio_and_the_next_command(demo_bundle: Path) -> None:
    ratios = ("--ratio", "0.33", "--ratio", "0.5", "--ratio", "1")
    again = typed("build", *ratios, "--method", IN_BOTH, "-o", demo_bundle)
    assert again.exit_code == 0
    assert again.stdout.startswith(f"Already built, nothing to do: {demo_bundle}\n")
    assert f"lvlm-export run {demo_bundle} --image " in again.stdout


def test_build_tables_show_tokens_at_each_stage(demo_bundle: Path) -> None:
    from lvlm_export.cli.commands.build import budget_table, next_command
    from lvlm_export.cli.console import show_table

    manifest = read_manifest(demo_bundle)
    table = budget_table(manifest)
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["0.33", "0.5", "1"]
    assert cells[2] == ["196 → 157 → 125 → 100", "196 → 170 → 148 → 129", "196"]
    assert cells[4] == ["65 of 196 = 0.332", "98 of 196 = 0.500", "196 of 196 = 1.000"]
    show_table(table)
    assert next_command(Path("my dir"), False).startswith("lvlm-export run 'my dir' --image")


def test_build_says_what_is_left_of_a_replaced_bundle(
    damaged_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lvlm_export.bundle.build import BuildResult
    from lvlm_export.bundle.construction import JOURNAL, directory_of
    from lvlm_export.cli.commands.build import report

    result = BuildResult(damaged_bundle, read_manifest(damaged_bundle), True)
    left = directory_of(damaged_bundle) / "bundle" / ".nfs00000000000a1b2c00000001"
    left.parent.mkdir(parents=True)
    left.touch()
    report(result, damaged_bundle, False)
    assert "note" not in capsys.readouterr().err, "it may be anything's"
    directory = directory_of(damaged_bundle)
    (directory / JOURNAL).write_text('{"manifest": "0123"}', encoding="utf-8")
    report(result, damaged_bundle, False)
    note = f"note    {directory} holds files of a replaced bundle that a program has open; the next"
    assert note in capsys.readouterr().err


def test_a_bundle_of_other_options_needs_force(demo_bundle: Path) -> None:
    line = error_line(typed("build", "--ratio", "0.25", "-o", demo_bundle), 1)
    assert "--force" in line


def test_run_streams_the_answer_and_puts_the_numbers_on_stderr(demo_bundle: Path) -> None:
    result = typed("run", demo_bundle, "--image", PICTURE, QUESTION, "--max-new-tokens", "4")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith("\n")
    [line] = result.stderr.splitlines()
    assert line.startswith(
        "ratio 0.33; visual tokens vision 196 → vision@2 157 → vision@3 125 → vision@4 100 →"
        " decoder 100 → decoder@4 81 → decoder@5 65; first token "
    )


def test_run_json_is_one_object_and_nothing_else(demo_bundle: Path) -> None:
    result = typed("run", demo_bundle, "--image", PICTURE, "--ratio", "1", "--json", stdin=QUESTION)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert answer["ratio"] == 1.0
    assert answer["visual_tokens"] == [
        {"stage": "vision", "tokens": 196},
        {"stage": "decoder", "tokens": 196},
    ]
    assert answer["time_to_first_token_ms"] > 0
    assert answer["device"] == "cpu"


def test_run_gives_the_same_answer_from_argument_pipe_and_dash(demo_bundle: Path) -> None:
    words = ("run", demo_bundle, "--image", PICTURE, "--max-new-tokens", "6")
    answers = {
        typed(*words, QUESTION).stdout,
        typed(*words, stdin=QUESTION + "\n").stdout,
        typed(*words, "-", stdin=QUESTION).stdout,
    }
    assert len(answers) == 1


def test_run_draws_the_same_tokens_from_the_same_seed(demo_bundle: Path) -> None:
    words = ("run", demo_bundle, "--image", PICTURE, QUESTION, "--json", "--max-new-tokens", "8")
    # The demo model is confident; at this temperature a second best token is drawn as well.
    drawn = (*words, "--temperature", "8", "--top-k", "50", "--top-p", "0.99", "--seed")
    ids = [
        json.loads(typed(*drawn, seed).stdout)["token_ids"] for seed in ("1", "1", "2", "3", "4")
    ]
    assert ids[0] == ids[1]
    assert len({tuple(each) for each in ids}) > 1


def test_run_takes_several_images_in_order(demo_bundle: Path) -> None:
    other = PICTURE.with_name("scene_1.png")
    result = typed("run", demo_bundle, "--image", PICTURE, "--image", other, QUESTION, "--json")
    assert json.loads(result.stdout)["visual_tokens"][0] == {"stage": "vision", "tokens": 392}


def test_verify_passes_and_ends_with_the_worst_error(demo_bundle: Path) -> None:
    words = ("verify", demo_bundle, "--samples", "1", "--max-new-tokens", "4")
    result = typed(*words, "--image", PICTURE, "--prompt", QUESTION)
    assert result.exit_code == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    # Two samples at three ratios against the reference, and at 1.0 against transformers, too.
    assert re.fullmatch(
        r"PASS  worst error \S+ \(limit 0\.001\) at \S+, ratio \S+; 8 answers equal", last
    )
    assert "decoder@4" in result.stdout
    assert "transformers.generate" in result.stdout
    assert "Loading weights" not in result.stderr


def test_verify_fails_on_a_bundle_that_says_something_else(damaged_bundle: Path) -> None:
    from lvlm_export.bundle.workspace import file_ref
    from lvlm_runtime.bundle.bundle import MANIFEST, WEIGHTS, manifest_text
    from lvlm_runtime.bundle.manifest import FileRef

    # Another model under the same names: weights changed, hashes computed again.
    weights = damaged_bundle / WEIGHTS
    data = bytearray(weights.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 40000] = bytes(40000)
    weights.write_bytes(data)
    manifest = read_manifest(damaged_bundle)
    ref: FileRef = file_ref(weights)
    manifest.files[WEIGHTS] = ref
    (damaged_bundle / MANIFEST).write_text(manifest_text(manifest))
    result = typed("verify", damaged_bundle, "--samples", "1", "--max-new-tokens", "2", "--json")
    assert result.exit_code == 1, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert report["verdict"].startswith("FAIL  ")
    assert any(not row["passed"] for row in report["stages"])


def test_verify_refuses_a_bundle_whose_method_reduced_elsewhere(damaged_bundle: Path) -> None:
    """As ``illava`` did before it became its authors' current form."""
    from lvlm_runtime.bundle.bundle import MANIFEST, manifest_text

    manifest = replace(read_manifest(damaged_bundle), method="illava_v1")
    (damaged_bundle / MANIFEST).write_text(manifest_text(manifest))
    result = typed("verify", damaged_bundle, "--samples", "1")
    assert result.exit_code == 1
    assert re.search(
        r"at ratio 0.33 the bundle does not reduce as method illava_v1 of this version does, so it"
        r" was built by another version: .* \(verify --golden\) or build it again",
        result.stderr,
    )


def test_verify_refuses_another_checkpoint(demo_bundle: Path, tmp_path: Path) -> None:
    from lvlm_export.demo import CHECKPOINT

    other = Path(shutil.copytree(CHECKPOINT, tmp_path / "other"))
    config = other / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    line = error_line(typed("verify", demo_bundle, "--model", other), 1)
    assert "not built from the checkpoint" in line


def test_a_manifest_gives_its_options_back(demo_bundle: Path) -> None:
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.demo import CHECKPOINT
    from lvlm_export.plan.plan import BuildOptions, make_plan, options_of

    checkpoint = Checkpoint.open(CHECKPOINT)
    again = make_plan(checkpoint, options_of(read_manifest(demo_bundle)))
    first = make_plan(checkpoint, BuildOptions(ratios=(0.33, 0.5, 1.0), method=IN_BOTH))
    assert again.budgets == first.budgets
    assert (again.vision, again.decoder) == (first.vision, first.decoder)


def test_inspect_counts_what_the_runtime_allocates(demo_bundle: Path) -> None:
    from lvlm_runtime.session import Session

    result = typed("inspect", demo_bundle, "--text-tokens", "20", "--answer-tokens", "9", "--json")
    content = json.loads(result.stdout)
    session = Session.open(demo_bundle)
    budget = session.bundle.budget(0.33)
    layout = budget.layouts[0]
    counted = next(row for row in content["budgets"] if row["ratio"] == 0.33)
    allocated = 0
    counts = [layout.tokens_in, *(each.tokens_out for each in layout.decoder)]
    rows = {f"decoder.{number}": 20 + count + 9 for number, count in enumerate(counts)}
    for stage in session.bundle.manifest.decoder:
        group = session.chain.decoder.allocate(stage, rows[stage.name])
        allocated += sum(
            session.chain.backend.fetch(value).nbytes for value in group.buffers.values()
        )
    assert counted["kv_cache_bytes"] == allocated
    assert content["bundle_bytes"] == sum(
        path.stat().st_size
        for path in demo_bundle.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", ".verified.json")
    )


def test_inspect_shows_the_chain_in_order(demo_bundle: Path) -> None:
    text = typed("inspect", demo_bundle).stdout
    assert (
        "vision.0 → vision@2 → vision.1 → vision@3 → vision.2 → vision@4 → vision.3 → assemble →"
        " decoder.0 → decoder@4 → decoder.1 → decoder@5 → decoder.2 → lm_head"
    ) in text
    assert "family llava" in text


@pytest.mark.parametrize("kind", ["families", "methods", "backends", "targets"])
def test_list_shows_every_entry_of_its_table(kind: str) -> None:
    from lvlm_export.families import FAMILIES
    from lvlm_export.plan.targets import TARGETS
    from lvlm_export.reduction import METHODS
    from lvlm_profiles.devices.device import device_names
    from lvlm_runtime.backends import BACKENDS

    targets = [*TARGETS, *device_names()]
    tables = {"families": FAMILIES, "methods": METHODS, "backends": BACKENDS, "targets": targets}
    assert list(json.loads(typed("list", kind, "--json").stdout)) == list(tables[kind])
    for name in tables[kind]:
        assert name in typed("list", kind).stdout


def test_errors_become_one_line_and_a_status() -> None:
    import errno

    import click

    full = OSError(errno.ENOSPC, "No space left on device", "/data/bundle")
    assert explain(LvlmError("a\nb")) == ("error: a b", 1)
    assert explain(UsageError("a")) == ("error: a", 2)
    assert explain(click.Abort()) == ("interrupted; type the same command to continue", 130)
    line, status = explain(full)
    assert status == 1
    assert line is not None
    assert line.startswith("error: /data/bundle: the disk is full; ")
    assert explain(ValueError("a bug")) == (None, 1)


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVLM_EXPORT_DEBUG", "1")
    result = typed("inspect", tmp_path / "absent")
    assert "Traceback" in result.stderr
    assert result.exit_code == 1


def test_a_closed_pipe_is_quiet(demo_bundle: Path) -> None:
    import subprocess
    import sys

    script = f"{sys.executable} -m lvlm_export inspect '{demo_bundle}' --json | head -c 1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == "{"
    assert result.stderr == ""


def test_nothing_typed_shows_the_help() -> None:
    result = process()
    assert result.returncode == 2
    assert "Usage: lvlm-export" in result.stderr


def test_the_line_about_a_run_says_what_was_done_to_a_picture() -> None:
    from lvlm_export.cli.commands.run import answer_line
    from lvlm_runtime.session import Generation

    answer = Generation(
        text="a cat",
        token_ids=(1, 2),
        finish_reason="length",
        ratio=0.5,
        visual_tokens=(("vision", 252), ("decoder", 185), ("decoder@1", 132)),
        prompt_tokens=200,
        time_to_first_token_ms=153.6,
        decode_tokens_per_s=20.04,
        own_time_ms=1.0,
        letterboxed=(1,),
    )
    line = answer_line(answer, (Path("a.jpg"), Path("dir/b.jpg")))
    assert line == (
        "ratio 0.5; visual tokens vision 252 → decoder 185 → decoder@1 132; first token 154 ms;"
        " 20.0 tokens/s; cut at 2 tokens (--max-new-tokens);"
        " b.jpg was letterboxed to the bundle's tile layout"
    )
