"""What is attacked: a directory of small valid inputs, and the commands that read each of them."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutations
from lvlm_export.demo import PICTURES
from lvlm_export.study.evaluation import Answer
from lvlm_profiles.report import to_json as report_json
from reports import full_report

QUESTION = "What color is the circle?"
ASK = ("--max-new-tokens", "1", "--threads", "1")
RUN = ("run", "bundle", "--image", "picture.png", QUESTION, *ASK)
PLAN = (
    "plan",
    "--model",
    "checkpoint",
    "--device",
    "agx_orin_64gb",
    "--method",
    "illava",
    "--ratio",
    "0.5",
)
BUILD = ("build", "--model", "checkpoint", "--ratio", "0.5", "-o", "out/bundle")
EVAL = ("--limit", "1", "--ratio", "0.5", "--max-new-tokens", "1", "--threads", "1")
RECIPE = """\
method = "tome+fastv"
ratios = [0.5, 0.33]
share = 0.75
seed = 0
target = "cpu"

[[budgets]]
ratio = 0.278
[budgets.keep]
"vision@2" = 20
"decoder@2" = 0.5
"""
YAML = """\
method: tome+fastv
ratios: [0.5, 0.33]
share: 0.75
seed: 0
target: cpu
budgets:
  - ratio: 0.278
    keep: {"vision@2": 20, "decoder@2": 0.5}
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        kind: In words, for the table.
        reader: What reads it.
        files: The files, one of which an attack changes.
        commands: One of them is typed afterwards.
        mutate: What changes a file's bytes.
        weight: Share of the campaign, in parts.
        no_files: What may lie at a file's place instead.
    """

    kind: str
    reader: str
    files: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    mutate: Callable[[mutations.Draw, bytes], bytes]
    weight: int = 2
    no_files: tuple[str, ...] = mutations.NO_FILES


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TARGETS = (
    Target(
        "checkpoint, configurations",
        "JSON, transformers",
        tuple(
            f"checkpoint/{name}.json"
            for name in ("config", "generation_config", "preprocessor_config")
        ),
        (PLAN, BUILD, BUILD),
        mutations.odd_json,
        3,
    ),
    Target(
        "checkpoint, tokenizer",
        "JSON, tokenizers",
        tuple(f"checkpoint/{name}" for name in TOKENIZER),
        (BUILD,),
        mutations.odd_json,
        1,
    ),
    Target(
        "checkpoint, weights",
        "safetensors",
        ("checkpoint/model.safetensors",),
        (BUILD,),
        mutations.odd_header,
        2,
    ),
    Target(
        "bundle, manifest",
        "JSON, manifest",
        ("bundle/manifest.json",),
        (
            RUN,
            ("inspect", "bundle"),
            ("inspect", "bundle", "--json"),
            ("check", "bundle", "--target", "rtx"),
        ),
        mutations.odd_json,
        8,
    ),
    Target(
        "bundle, golden answers",
        "JSON",
        ("bundle/golden.json",),
        (("verify", "bundle", "--golden", "--threads", "1"),),
        mutations.odd_json,
        4,
    ),
    Target(
        "bundle, tokenizer",
        "JSON, tokenizers",
        tuple(f"bundle/tokenizer/{name}" for name in TOKENIZER),
        (RUN,),
        mutations.odd_json,
        4,
    ),
    Target(
        "bundle, chat template",
        "text, jinja2",
        ("bundle/tokenizer/chat_template.jinja",),
        (RUN,),
        mutations.odd_text,
        4,
    ),
    Target(
        "bundle, graphs",
        "ONNX (protobuf), ONNX Runtime",
        ("bundle/vision.0.onnx", "bundle/assemble.onnx", "bundle/lm_head.onnx"),
        (("check", "bundle", "--target", "trt-10.3"), ("check", "bundle", "--target", "rtx"), RUN),
        mutations.odd_message,
        5,
    ),
    Target(
        "bundle, weights",
        "memory map",
        ("bundle/weights.bin",),
        (RUN,),
        mutations.odd_bytes,
        2,
    ),
    Target(
        "recipe, TOML",
        "TOML",
        ("recipe.toml",),
        ((*BUILD[:3], "--recipe", "recipe.toml", *BUILD[5:]),),
        mutations.odd_text,
        3,
    ),
    Target(
        "recipe, YAML",
        "YAML",
        ("recipe.yaml",),
        ((*BUILD[:3], "--recipe", "recipe.yaml", *BUILD[5:]),),
        mutations.odd_text,
        4,
    ),
    Target(
        "report",
        "JSON, report",
        ("report/report.json",),
        (
            ("compare", "report", "before.json"),
            ("compare", "before.json", "report", "--force", "--all"),
            ("plan", *PLAN[3:], "--model", "shape:llava-1.5-7b", "--calibrate", "report"),
        ),
        mutations.odd_json,
        4,
    ),
    Target(
        "eval result",
        "JSON",
        ("accuracy.json",),
        (("profile", "bundle", "--accuracy", "accuracy.json", "--threads", "1"),),
        mutations.odd_json,
        6,
    ),
    Target(
        "questions, JSON lines",
        "JSON lines",
        ("questions.jsonl",),
        (("eval", "bundle", "--data", "questions.jsonl", *EVAL),),
        mutations.odd_lines,
        4,
    ),
    Target(
        "questions, gzip",
        "gzip, JSON lines",
        ("questions.jsonl.gz",),
        (("eval", "bundle", "--data", "questions.jsonl.gz", *EVAL),),
        mutations.odd_gzip,
        4,
    ),
    Target(
        "answers",
        "JSON lines",
        ("answers.jsonl",),
        (("eval", "bundle", "--data", "questions.jsonl", *EVAL, "-o", "answers.jsonl"),),
        mutations.odd_lines,
        1,
        # Whoever writes to a pipe waits for its reader, as everywhere.
        no_files=tuple(each for each in mutations.NO_FILES if each != "pipe"),
    ),
    Target(
        "picture",
        "Pillow",
        tuple(f"picture.{kind}" for kind in ("png", "jpg", "gif", "bmp", "webp", "tiff")),
        (("run", "bundle", "--image", "{file}", QUESTION, *ASK),),
        mutations.odd_bytes,
        2,
    ),
    Target(
        "question on stdin",
        "text",
        ("stdin",),
        (("run", "bundle", "--image", "picture.png", *ASK),),
        mutations.odd_bytes,
        1,
    ),
)
# Files that a command may change: what it is told to write, and the bundle's own cache.
MAY_CHANGE = ("out", "answers.jsonl", "bundle/.verified.json")


def make_inputs(directory: Path, checkpoint: Path, bundle: Path) -> Path:
    """Write one valid input of every kind.

    Args:
        directory: Where they go; must not exist.
        checkpoint: A tiny checkpoint, which is copied.
        bundle: A bundle of it.
    """
    from PIL import Image

    directory.mkdir(parents=True)
    shutil.copytree(checkpoint, directory / "checkpoint")
    shutil.copytree(bundle, directory / "bundle")
    (directory / "bundle" / ".verified.json").unlink(missing_ok=True)
    (directory / "recipe.toml").write_text(RECIPE)
    (directory / "recipe.yaml").write_text(YAML)
    (directory / "report").mkdir()
    (directory / "report" / "report.json").write_text(report_json(full_report()))
    (directory / "before.json").write_text(report_json(full_report()))
    picture = Image.open(PICTURES / "scene_0.png").convert("RGB").resize((60, 40))
    for kind in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
        picture.save(directory / f"picture.{kind}")
    manifest = json.loads((bundle / "manifest.json").read_text())
    row = {"kind": "a", "ratio": 0.5, "questions": 2, "right": 1, "accuracy": 0.5}
    row |= {"low": 0.1, "high": 0.9, "change": None, "lost": None, "won": None}
    content = {
        "bundle": "b",
        "method": manifest["method"],
        "model": manifest["model"],
        "rows": [row],
    }
    (directory / "accuracy.json").write_text(json.dumps(content))
    questions = [
        {"image": "picture.png", "question": QUESTION, "answer": "red", "kind": "colour"},
        {"image": "picture.png", "text": "Is it red?", "label": "yes", "question_id": 1},
    ]
    lines = "".join(json.dumps(each) + "\n" for each in questions)
    (directory / "questions.jsonl").write_text(lines)
    (directory / "questions.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    run = {"content_key": manifest["content_key"], "max_new_tokens": 1}
    answer = Answer("questions.jsonl:1", 0.5, "colour", QUESTION, "red", "blue", False)
    rows = (run, dataclasses.asdict(answer))
    (directory / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (directory / "stdin").write_text(QUESTION)
    (directory / "out").mkdir()
    add_golden(directory / "bundle")
    for path in (directory / "bundle").rglob("*"):
        os.utime(path, (1, 1))
    return directory


def add_golden(directory: Path) -> None:
    """Golden answers for a bundle that was built without the gate: its own."""
    from PIL import Image

    from lvlm_runtime.golden import FILE, make_golden, write_golden
    from lvlm_runtime.session import Session

    picture = Image.open(PICTURES / "scene_0.png").convert("RGB").resize((60, 40))
    session = Session.open(directory, device="cpu", threads=1)
    ratios = [budget.ratio for budget in session.bundle.manifest.budgets]
    write_golden(directory, make_golden(session, QUESTION, [picture], 2, ratios))
    sign_again(directory.parent, directory / FILE)


def sign_again(directory: Path, changed: Path) -> None:
    """Let the manifest name a changed file's own size and hash, as whoever writes a bundle can."""
    path = directory / "bundle" / "manifest.json"
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 28:
        return
    with contextlib.suppress(
        ValueError, OSError, TypeError, AttributeError, KeyError, RecursionError
    ):
        content: dict[str, Any] = json.loads(path.read_text())
        content.pop("sha256", None)
        if changed != path and not changed.is_symlink() and changed.is_file():
            data = changed.read_bytes() if changed.stat().st_size < 1 << 28 else b""
            name = changed.relative_to(directory / "bundle").as_posix()
            content["files"][name] = {
                "size_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({"sha256": digest, **content}))


def contents(directory: Path) -> dict[str, str]:
    """What lies in a directory, and when it was last written: no write leaves a file's ctime as it was."""
    found = {}
    for root, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = os.path.join(root, name)  # noqa: PTH118
            inside = os.path.relpath(path, directory)
            if not inside.startswith(MAY_CHANGE):
                status = os.lstat(path)
                times = (
                    ()
                    if name in folders
                    else (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                )
                found[inside] = str((status.st_mode, status.st_ino, *times))
    return found


@contextlib.contextmanager
def kept(directory: Path, *names: str) -> Iterator[None]:
    """Put files back behind a block, whatever it made of them."""
    before = {name: (directory / name).read_bytes() for name in names}
    try:
        yield
    finally:
        for name, data in before.items():
            path = directory / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(data)
        shutil.rmtree(directory / "out")
        (directory / "out").mkdir()
