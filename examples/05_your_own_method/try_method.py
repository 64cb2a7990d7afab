"""Types an ``lvlm-export`` command with the method ``centre`` in the table of this process."""

from __future__ import annotations

from lvlm_export.cli import main
from lvlm_export.reduction import METHODS

# The module is found beside this script; in the package it is lvlm_export.reduction.methods.centre.
METHODS["centre"] = "centre:METHOD"
main()
