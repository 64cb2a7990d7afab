"""What ``lvlm-export tune`` finds for the demo model: ``make demo-tune``.

    python -m lvlm_export.demo.train.tuned build/tune/result.json

Keeps the finalists of a search and how it went as JSON beside the demo, from which ``make readme``
fills the README.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvlm_export.demo import DEMO_DIR
from lvlm_profiles.files import write_whole

RESULT = DEMO_DIR / "tuned.json"


def keep_finalists(result: dict[str, Any]) -> dict[str, Any]:
    """A search's result without the trials that left it before its end, and how many there were."""
    finalists = [trial for trial in result["trials"] if trial["held_out"] is not None]
    return {**result, "trials": finalists, "asked": len(result["trials"])}


def as_markdown() -> str:
    """The finalists, and what was found, from the file beside the demo."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    trials = {trial["name"]: trial for trial in (result["unreduced"], *result["trials"])}
    ordered = sorted(trials.values(), key=lambda trial: trial["cost"])
    rows = [_row(trial, trial["name"] == result["chosen"]) for trial in ordered]
    return "\n".join(
        [
            "| trial | first token by FLOPs | held out | change | p |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            f"{_story(result, trials)} `make demo-tune`, {result['created'][:10]}: {result['machine']},"
            f" PyTorch {result['versions']['torch']}. {result.get('continued', '')}".rstrip(),
        ]
    )


def _row(trial: dict[str, Any], chosen: bool) -> str:
    held = trial["held_out"]
    change = held["against_unreduced"]
    name = f"**`{trial['name']}`**" if chosen else f"`{trial['name']}`"
    return (
        f"| {name} | {trial['cost']:.2f} | {held['accuracy']:.1%} |"
        f" {100 * change['change']:+.1f} ({change['lost']} lost, {change['won']} won) |"
        f" {change['p']:.2g} |"
    )


def _story(result: dict[str, Any], trials: dict[str, Any]) -> str:
    """What was searched and found."""
    single, change = result["single"], result["against_single"]
    story = (
        f"{result['asked']} trials on {result['search_questions']:,} questions, the finalists on"
        f" {result['held_questions']:,} others about other pictures; changes are to the unreduced model,"
        " p is McNemar's. Looked for was the cheapest that is within a standard error of the most"
        f" accurate and no dearer than the best single method at {result['against']:g}, `{single}`"
    )
    if single == result["chosen"]:
        story += ", and that is what was found"
        if result["refuted"] is not None:
            story += (
                f": `{result['refuted']}` was better by the first half, and is {_points(change)} to it"
                " by the other"
            )
    else:
        story += f": **`{result['chosen']}`** is {_points(change)} to it at"
        story += f" {trials[result['chosen']]['cost'] / trials[single]['cost']:.2f} of its cost"
    if result["next_best"] is not None:
        story += (
            f". To the next best, `{result['next_best']}`, it is {_points(result['against_next'])}"
        )
    return story + "."


def _points(change: dict[str, Any]) -> str:
    low, high = 100 * change["low"], 100 * change["high"]
    return f"{100 * change['change']:+.1f} points (95 % {low:+.1f} to {high:+.1f}, p {change['p']:.2g})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a search's result, write what is kept of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="result.json of lvlm-export tune")
    result = json.loads(parser.parse_args(arguments).result.read_text(encoding="utf-8"))
    write_whole(RESULT, json.dumps(keep_finalists(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
