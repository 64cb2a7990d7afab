"""Every message that the command line prints has one form."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from house import PACKAGES, modules, place, python_files

# First words of a message that are written with a capital wherever they stand.
NAMES = {"CUDA", "JetPack", "LLaVA", "NVML", "ONNX", "OpenVINO", "TensorRT"}


def error_classes() -> set[str]:
    """The two classes that the command line prints, and every class derived from them."""
    parents = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    classes = {"LvlmError", "UsageError"}
    while more := {name for name, bases in parents.items() if bases & classes} - classes:
        classes |= more
    return classes


def badly_formed(message: ast.expr) -> bool:
    """A literal message that begins with a capital or ends with a full stop.

    A value in braces may begin or end it; a message that is no literal cannot be judged.
    """
    pieces = message.values if isinstance(message, ast.JoinedStr) else [message]
    first, last = pieces[0], pieces[-1]
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        word = re.match(r"\w*", first.value)
        assert word is not None
        if word[0][:1].isupper() and word[0] not in NAMES:
            return True
    ends_with_text = isinstance(last, ast.Constant) and isinstance(last.value, str)
    return ends_with_text and last.value.rstrip().endswith(".")


def badly_formed_messages(path: Path, classes: set[str]) -> list[str]:
    """Messages of errors in a file that are not in the one form."""
    return [
        f"{place(path)}:{node.lineno}: {ast.unparse(node.args[0])}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) in classes
        and node.args
        and badly_formed(node.args[0])
    ]


def test_messages_have_one_form() -> None:
    """Lower case, what failed, what was given, what to do: no capital in front, no stop behind."""
    classes = error_classes()
    assert classes > {"LvlmError", "UsageError"}
    assert [line for _, path in modules() for line in badly_formed_messages(path, classes)] == []


def test_a_message_of_another_form_is_found(tmp_path: Path) -> None:
    """The test above can fail: a capital, a full stop, and a stop behind a value."""
    path = tmp_path / "wrong.py"
    path.write_text(
        'raise LvlmError("There is no bundle")\n'
        'raise UsageError("no ratio given.")\n'
        'raise LvlmError(f"{path} is damaged. Copy it again.")\n'
        'raise UsageError(f"TensorRT builds for {gpu}")\n'
        'raise LvlmError(f"{path} is no bundle; give {other}")\n'
        'raise ValueError("Not for the command line.")\n',
        encoding="utf-8",
    )
    lines = badly_formed_messages(path, {"LvlmError", "UsageError"})
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3"]


def test_commands_print_through_the_console_alone() -> None:
    """``say``, ``show_table`` and ``echo_json`` write out what would command a terminal."""
    console = PACKAGES["lvlm_export"] / "cli" / "console.py"
    found = [
        f"{place(path)}:{node.lineno}"
        for path in python_files(console.parent)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and path != console and prints(node.func)
    ]
    assert found == []
    assert prints(ast.parse("click.echo", mode="eval").body)
    assert prints(ast.parse("print", mode="eval").body)


def prints(function: ast.expr) -> bool:
    """Whether a call writes to the terminal by itself."""
    name = getattr(function, "attr", None) or getattr(function, "id", None)
    return name in ("echo", "secho", "print")
