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
def verify_signature(bundle: Path, key: str) -> None:
    """Verify the signature of a bundle's manifest and hash every file, engines included.

    The signature comes first: of a bundle that is not from the key's owner nothing is read.
    """
    from lvlm_runtime.bundle.bundle import MANIFEST, Bundle
    from lvlm_runtime.bundle.signature import comment_of, has_signature
    from lvlm_runtime.engines.record import check_engines, engine_targets, record_path

    opened = Bundle.open(bundle, require_signature=key)
    assert opened.key is not None
    comment = comment_of(opened.path(MANIFEST), opened.key)
    lines = [f"PASS  {bundle} is what the owner of {opened.key} signed, every file", comment]
    for target in engine_targets(opened.directory):
        if has_signature(record_path(opened.directory, target)):
            check_engines(opened.directory, target, opened.key)
            lines.append(f"PASS  engines for {target}")
        else:
            lines.append(
                f"engines for {target} are not signed: `run --require-signature` refuses them"
            )
    for line in lines:
        say(line)
