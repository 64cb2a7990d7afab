"""Draw docs/strip.png: a picture, the patches that stay at falling ratios, the answers and their times.

``make picture-strip`` runs it, again whenever the demo's checkpoint or the default method is another.
The times are of the machine that the strip names.
"""

from __future__ import annotations

import statistics
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lvlm_export.cli.commands.visualize import run_picture
from lvlm_export.demo.scenes import make_scene
from lvlm_export.study.pictures import PANEL, draw_view
from lvlm_profiles.devices.machine import processor
from lvlm_profiles.processes import python_command
from lvlm_runtime import Session

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "strip"
OUTPUT = ROOT / "docs" / "strip.png"
RATIOS = ("0.33", "0.2", "0.1")
SCENE, QUESTION = 6, "What is there from left to right?"
THREADS = 1  # of a model so small two make nothing faster
ROUNDS = 40  # times are medians; the ratios take turns
MARGIN, HEAD, LINE, SMALL = 20, 70, 34, 24
LINES = 5  # below a picture: ratio, two of the answer, time, and air


@dataclass(frozen=True)
class Column:
    """What one ratio gives.

    Attributes:
        ratio: Share of visual tokens kept.
        tokens: Visual tokens that the decoder's first layer sees.
        image: The picture with what stays of it.
        answer: To the question.
        first_token_ms: Median time to the first token.
    """

    ratio: float
    tokens: int
    image: Image.Image
    answer: str
    first_token_ms: float


def main() -> None:
    """Build the demo's bundle, ask at every ratio and draw."""
    WORK.mkdir(parents=True, exist_ok=True)
    scene = WORK / "scene.png"
    make_scene(SCENE, "test").image.save(scene)
    ratios = [word for ratio in RATIOS for word in ("--ratio", ratio)]
    build = ("build", *ratios, "-o", str(WORK / "bundle"), "--force")
    subprocess.run(python_command("lvlm_export", *build), check=True)
    session = Session.open(WORK / "bundle", device="cpu", threads=THREADS)
    columns = [ask(session, scene, ratio, ms) for ratio, ms in times(session, scene).items()]
    draw(columns, session.bundle.manifest.method).quantize(256).save(OUTPUT, optimize=True)


def times(session: Session, scene: Path) -> dict[float, float]:
    """Median time to the first token in milliseconds, by ratio from 1.0 down."""
    ratios = sorted(session.ratios, reverse=True)
    taken: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for ratio in ratios:
            answer = session.generate(QUESTION, scene, ratio, max_new_tokens=1)
            taken[ratio].append(answer.time_to_first_token_ms)
    return {ratio: statistics.median(each[1:]) for ratio, each in taken.items()}


def ask(session: Session, scene: Path, ratio: float, first_token_ms: float) -> Column:
    """The question at one ratio."""
    answer = session.generate(QUESTION, scene, ratio, max_new_tokens=40)
    if ratio == 1.0:
        with Image.open(scene) as opened:
            image = opened.convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    else:
        seen, panels = run_picture(session, scene, QUESTION, ratio)
        image = draw_view(panels[-1], seen)
    return Column(ratio, answer.visual_tokens[-1][1], image, answer.text, first_token_ms)


def draw(columns: Sequence[Column], method: str) -> Image.Image:
    """The strip: pictures side by side, and below each what it says and how long that takes."""
    width = len(columns) * (PANEL + MARGIN) + MARGIN
    height = HEAD + PANEL + LINES * LINE + MARGIN + LINE
    strip = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(strip)
    large, small = ImageFont.load_default(SMALL + 4), ImageFont.load_default(SMALL)
    pen.text((MARGIN, MARGIN), f'"{QUESTION}"', fill="black", font=large)
    whole = columns[0]
    for number, column in enumerate(columns):
        left, top = MARGIN + number * (PANEL + MARGIN), HEAD
        strip.paste(column.image, (left, top))
        top += PANEL + 10
        share = column.first_token_ms / whole.first_token_ms
        title = f"ratio {column.ratio:g}: {column.tokens} visual tokens"
        time = f"first token {column.first_token_ms:.1f} ms" + (
            "" if column is whole else f", {share:.2f} of that at ratio 1"
        )
        color = "black" if column.answer == whole.answer else (190, 20, 25)
        pen.text((left, top), title, fill="black", font=large)
        for line in textwrap.wrap(column.answer, 38):
            top += LINE
            pen.text((left, top), line, fill=color, font=small)
        pen.text((left, HEAD + PANEL + 10 + 3 * LINE), time, fill=(70, 70, 70), font=small)
    note = (
        f"demo model, {method}; ONNX Runtime, one core of {processor()}, medians of {ROUNDS}"
        " interleaved requests; red: another answer than at ratio 1"
    )
    pen.text((MARGIN, height - LINE - 6), note, fill=(110, 110, 110), font=small)
    return strip


if __name__ == "__main__":
    main()
