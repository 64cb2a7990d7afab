"""``lvlm-export sign``: say who a bundle is from, in minisign's formats."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import bundle_argument


@click.command(short_help="Sign a bundle with a minisign key.")
@bundle_argument
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    help="Secret key of minisign, as `minisign -G` makes it; its password is asked for.",
)
@click.option("--comment", metavar="TEXT", help="One line that the signature covers too.")
def sign(bundle: Path, key: Path, comment: str | None) -> None:
    """Sign the manifest of a bundle, which holds the SHA-256 of every file, and its engines' records.

    Every file is hashed before. `minisign -V -m BUNDLE/manifest.json -p KEY.pub` verifies it too.
    """
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.bundle.signature import read_secret_key, sign_file
    from lvlm_runtime.engines.record import check_engines, engine_targets, record_path
    from lvlm_runtime.errors import UsageError

    if comment is not None and not comment.isprintable():
        raise UsageError("--comment takes one line of printable text")
    secret = read_secret_key(
        key, lambda: str(click.prompt(f"password of {key}", hide_input=True, err=True))
    )
    opened = Bundle.open(bundle, full=True)
    paths = [opened.path("manifest.json")]
    for target in engine_targets(opened.directory):
        check_engines(opened.directory, target)
        paths.append(record_path(opened.directory, target))
    for path in paths:
        trusted = comment or f"timestamp:{int(time.time())}\tfile:{path.name}\thashed"
        say(f"signed  {sign_file(path, secret, trusted)}")
    say(f"public key  {secret.public}")
