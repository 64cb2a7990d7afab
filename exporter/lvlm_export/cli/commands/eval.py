"""``lvlm-export eval``: accuracy of a bundle at its ratios. Never imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.options import (
    bundle_argument,
    device_options,
    images_option,
    json_option,
    ratios_option,
    wide_option,
)

if TYPE_CHECKING:
    from lvlm_export.study.answers import Answer, AnswerFile
    from lvlm_export.study.evaluation import Question, Row
    from lvlm_runtime.session import Session


@click.command("eval", short_help="Accuracy of a bundle on questions about pictures.")
@bundle_argument
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Questions as JSON lines or one JSON array, plain or .gz: {image, question, answer} with an optional kind,"
    " or POPE's {image, text, label}; repeatable.",
)
@images_option
@ratios_option
@click.option("--limit", type=click.IntRange(1), help="Only the first N questions of every kind.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Every answer as a JSON line; typing the same command again goes on where it stopped.",
)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="The table as CSV.")
@device_options
@wide_option
@json_option
def eval_(
    bundle: Path,
    data: tuple[Path, ...],
    images: Path | None,
    ratios: tuple[float, ...],
    limit: int | None,
    max_new_tokens: int,
    output: Path | None,
    csv_file: Path | None,
    backend: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Accuracy per kind of question and ratio, with 95 % intervals and the change against 1.0.

    Answers are greedy. POPE's count as "no" where "no" or "not" is a word of the first sentence,
    else as "yes"; others must equal the expected text but for case, outer space and a final stop.
    """
    from contextlib import nullcontext

    from lvlm_export.study.answers import AnswerFile
    from lvlm_export.study.evaluation import first_per_kind, read_questions, tabulate
    from lvlm_profiles.files import refuse_other

    if csv_file is not None:
        refuse_other(csv_file, csv_head().encode())
    questions = [question for file in data for question in read_questions(file, images)]
    if limit is not None:
        questions = first_per_kind(questions, limit)
    from lvlm_runtime.remembered import PictureMemory
    from lvlm_runtime.session import Session

    session = Session.open(bundle, backend, device, threads)
    # Questions about one picture follow one another: what they do not change is computed once.
    session.memory = PictureMemory()
    manifest = session.bundle.manifest
    wanted = ratios or tuple(budget.ratio for budget in manifest.budgets)
    wanted = tuple(dict.fromkeys(session.bundle.budget(ratio).ratio for ratio in wanted))
    run = {"content_key": manifest.content_key, "max_new_tokens": max_new_tokens}
    with nullcontext() if output is None else AnswerFile(output, run) as file:
        answers = ask(session, questions, wanted, max_new_tokens, file)
    rows = tabulate(answers)
    if csv_file is not None:
        write_csv(rows, csv_file)
    if as_json:
        from lvlm_export.cli.console import echo_json

        echo_json(
            {
                "bundle": str(bundle),
                "method": manifest.method,
                "model": manifest.model,
                "rows": [dataclasses.asdict(row) for row in rows],
            }
        )
    else:
        show(rows)


def ask(
    session: Session,
    questions: Sequence[Question],
    ratios: Sequence[float],
    max_new_tokens: int,
    file: AnswerFile | None,
) -> list[Answer]:
    """Answers to all questions at all ratios; those that the file holds are not asked again."""
    from lvlm_export.cli.console import open_progress
    from lvlm_export.study.answers import Answer
    from lvlm_export.study.evaluation import is_right

    known = {(a.key, a.ratio): a for a in (file.answers if file is not None else [])}
    todo = [(q, r) for q in questions for r in ratios if (q.key, r) not in known]
    stage: AbstractContextManager[Any] = open_progress().stage("asking", len(todo))
    with stage as advance:
        for question, ratio in todo:
            got = session.generate(
                question.question, [question.image], ratio, max_new_tokens=max_new_tokens
            )
            answer = Answer(
                question.key,
                ratio,
                question.kind,
                question.question,
                question.answer,
                got.text,
                is_right(question, got.text),
            )
            known[question.key, ratio] = answer
            if file is not None:
                file.append(answer)
            advance(f"{question.key} at {ratio:g}")
    return [known[question.key, ratio] for question in questions for ratio in ratios]


def show(rows: Sequence[Row]) -> None:
    """The table for people; shares in percent."""
    from lvlm_export.cli.console import new_table, show_table

    names = ("kind", "ratio", "right", "questions", "accuracy", "95 % interval", "change to 1.0")
    table = new_table(*names, right=names[1:])
    for row in rows:
        change = "-"
        if row.change is not None:
            change = f"{100 * row.change:+.1f} ({row.lost} lost, {row.won} won)"
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        table.add_row(
            row.kind,
            f"{row.ratio:g}",
            str(row.right),
            str(row.questions),
            f"{100 * row.accuracy:.1f} %",
            interval,
            change,
        )
    show_table(table, ("right", "questions"))


def csv_head() -> str:
    """The line of names, by which a table of this command is known again."""
    from lvlm_export.study.evaluation import Row

    return ",".join(field.name for field in dataclasses.fields(Row))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per row, shares in [0, 1]; what was not measured is empty."""
    import csv
    import io

    from lvlm_profiles.files import refuse_other, write_whole

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, csv_head().split(","))
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    refuse_other(path, csv_head().encode())
    write_whole(path, text.getvalue())
