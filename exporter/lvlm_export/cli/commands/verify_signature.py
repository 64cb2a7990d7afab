"""``lvlm-export verify-signature``: is a bundle from whom it should be, and whole?"""

from __future__ import annotations

from pathlib import Path

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import bundle_argument


@click.command(short_help="Verify who signed a bundle, and every file of it.")
@bundle_argument
@click.option(
    "--key",
    required=True,
    metavar="PUBLIC",
    help="Public key of minisign: its .pub file, or its one line of base64.",
)
@click.option(
    "--without-engines",
    is_flag=True,
    help="Leave the engines out: those that a device built for itself are signed by nobody.",
)
def verify_signature(bundle: Path, key: str, without_engines: bool) -> None:
    """Verify the signature of a bundle's manifest and hash every file, engines included.

    The signature comes first: of a bundle that is not from the key's owner nothing is read. Engines
    that are not signed by the same key are an error.
    """
    from lvlm_runtime.bundle.bundle import MANIFEST, Bundle
    from lvlm_runtime.bundle.signature import comment_of, has_signature
    from lvlm_runtime.engines.record import check_engines, engine_targets, record_path
    from lvlm_runtime.errors import LvlmError

    opened = Bundle.open(bundle, require_signature=key)
    assert opened.key is not None
    comment = comment_of(opened.path(MANIFEST), opened.key)
    listed = "every file that its manifest lists"
    lines = [f"PASS  {bundle} is what the owner of {opened.key} signed, {listed}", comment]
    for target in engine_targets(opened.directory):
        if without_engines:
            lines.append(f"engines for {target} were not verified")
        elif not has_signature(record_path(opened.directory, target)):
            raise LvlmError(
                f"the engines for {target} in {bundle} are not signed; sign them with `lvlm-export"
                " sign`, or give --without-engines: those that a device built are signed by nobody"
            )
        else:
            check_engines(opened.directory, target, opened.key)
            lines.append(f"PASS  engines for {target}")
    for line in lines:
        say(line)
