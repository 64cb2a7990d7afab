"""``lvlm-export``: the command line. Each command is one module, imported when it is called.

Every mistake of a user ends here as one line on stderr: exit 2 for usage, 1 for the rest, 130 for
Ctrl-C. ``LVLM_EXPORT_DEBUG=1`` shows the traceback behind the line.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

import click

from lvlm_export import __version__
from lvlm_export.cli.console import say
from lvlm_export.cli.guide import EXAMPLES, GROUPS, OTHERS
from lvlm_export.signals import Stops
from lvlm_profiles.registry import resolve, unknown_name
from lvlm_runtime.errors import LvlmError, UsageError

COMMANDS: dict[str, str] = {
    "plan": "lvlm_export.cli.commands.plan:plan",
    "choose": "lvlm_export.cli.commands.choose:choose",
    "tune": "lvlm_export.cli.commands.tune:tune",
    "build": "lvlm_export.cli.commands.build:build",
    "run": "lvlm_export.cli.commands.run:run",
    "chat": "lvlm_export.cli.commands.chat:chat",
    "serve": "lvlm_export.cli.commands.serve:serve",
    "verify": "lvlm_export.cli.commands.verify:verify",
    "inspect": "lvlm_export.cli.commands.inspect:inspect",
    "eval": "lvlm_export.cli.commands.eval:eval_",
    "profile": "lvlm_export.cli.commands.profile:profile",
    "compare": "lvlm_export.cli.commands.compare:compare",
    "visualize": "lvlm_export.cli.commands.visualize:visualize",
    "check": "lvlm_export.cli.commands.check:check",
    "engines": "lvlm_export.cli.commands.engines:engines",
    "sign": "lvlm_export.cli.commands.sign:sign",
    "verify-signature": "lvlm_export.cli.commands.verify_signature:verify_signature",
    "list": "lvlm_export.cli.commands.list:list_",
    "env": "lvlm_export.cli.commands.env:env",
}
DEBUG = "LVLM_EXPORT_DEBUG"
# Packages of the extra ``export``, and what reads a recipe on a Python that is too old for it; a
# device that only runs bundles does not need them.
EXPORT_PACKAGES = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
    "tomli",
}
HINTS = {
    errno.ENOSPC: "the disk is full; free some space and type the same command again, a build"
    " continues where it stopped",
    errno.EDQUOT: "the disk quota is used up; free some space and type the same command again, a"
    " build continues where it stopped",
    errno.EACCES: "permission denied; change its rights or name another path",
    errno.EPERM: "not permitted; change its rights or name another path",
    errno.EROFS: "the file system is read-only; name another path",
}


class Cli(click.Group):
    """The group of all commands, and the one place where errors become lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = resolve(COMMANDS, cmd_name, "command")
        example = EXAMPLES.get(cmd_name)
        if example is not None and example not in (command.epilog or ""):
            # click keeps the lines of a paragraph that begins so.
            command.epilog = f"\b\nExample:\n  {example}\n\n{command.epilog or ''}"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; an unknown one is told what was probably meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(unknown_name("command", args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands by what they are for."""
        left = {name: command for name in COMMANDS if (command := self.get_command(ctx, name))}
        for title, names in (*GROUPS.items(), (OTHERS, tuple(COMMANDS))):
            rows = [
                (name, left.pop(name).get_short_help_str(formatter.width))
                for name in names
                if name in left
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a signal that stops it says nothing by itself."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None

    def main(self, *args: Any, stops: Stops | None = None, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        """Run a command line and exit with its status.

        Args:
            *args: As of ``click``.
            stops: Signals that were taken over before; None to take them here.
            **kwargs: As of ``click``.
        """
        kwargs["standalone_mode"] = False
        # A terminal that cannot show a character gets a replacement, not a crash.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        line, status = None, 0
        stops, block = (Stops(), True) if stops is None else (stops, False)
        try:
            with stops.taken() if block else nullcontext():
                given = super().main(*args, **kwargs)
                status = given if isinstance(given, int) else 0
                stops.leaving = True
        except SystemExit as left:  # click's answer to a pipe that nobody reads any more
            status = left.code if isinstance(left.code, int) else 1
        except Exception as error:
            # A library that is interrupted may raise an error of its own.
            line, status = stops.line() if stops.seen else explain(error)
            if line is None:
                raise
            if os.environ.get(DEBUG):
                import traceback

                traceback.print_exc()
        finish(line, status)


def finish(line: str | None, status: int) -> NoReturn:
    """Bring everything out, say the line and exit.

    What cannot be written is found out here and not when Python ends, which would print several lines
    and exit with a status of its own.
    """
    lost = flush(sys.stdout)
    if lost is not None and line is None and not status:
        status = 1
        if lost.errno != errno.EPIPE:
            line, _ = explain(lost)
    if line is not None:
        with suppress(OSError):
            say(line, err=True)
    flush(sys.stderr)
    sys.exit(status)


def flush(stream: Any) -> OSError | None:
    """Flush a stream; where that fails the rest of it leads nowhere, and the error is returned."""
    try:
        stream.flush()
    except OSError as error:
        with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


def explain(error: Exception) -> tuple[str | None, int]:
    """The line for an error and the exit status; None for a bug of this program."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message(), 2
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context is not None else ""
        return f"error: {one_line(error.format_message()).rstrip('.')}{hint}", error.exit_code
    if isinstance(error, click.Abort):  # Ctrl-D at a prompt, or Ctrl-C where no signal was seen
        return "interrupted; type the same command to continue", 130
    if isinstance(error, LvlmError):
        return f"error: {one_line(str(error))}", 2 if isinstance(error, UsageError) else 1
    if isinstance(error, ModuleNotFoundError) and error.name in EXPORT_PACKAGES:
        return (
            f"error: this command needs {error.name}, which is not installed here; build and verify"
            " on a machine with `pip install 'lvlm-export[cpu,export]'` (Python 3.11 or newer) and copy"
            " the bundle",
            1,
        )
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"error: {where}{HINTS.get(error.errno or 0, reason)}", 1
    if isinstance(error, MemoryError):
        return "error: out of memory; close other programs, or use a smaller model", 1
    return None, 1


def one_line(text: str) -> str:
    r"""A message without line breaks, and with nothing in it that moves a terminal's cursor.

    Example:
        >>> one_line("no \x1b[2J\n bundle")
        'no \\x1b[2J bundle'
    """
    words = " ".join(text.split())
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in words
    )


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lvlm-export", message="%(prog)s %(version)s")
def cli() -> None:
    """Take a LLaVA-like model to a device: fewer visual tokens, no PyTorch.

    A ratio is the share of visual tokens KEPT: --ratio 0.33 keeps a third.
    """


def main() -> None:
    """The command line for a script of your own, which may have added to the tables before."""
    cli.main(prog_name="lvlm-export")
