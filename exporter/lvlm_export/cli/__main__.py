"""``python -m lvlm_export.cli``."""

from lvlm_export.cli import main

main()
