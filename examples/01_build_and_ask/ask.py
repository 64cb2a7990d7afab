"""Asks a bundle the same question at every ratio it has: ``python ask.py BUNDLE PICTURE``."""

from __future__ import annotations

import sys

from lvlm_runtime import Session

bundle, picture = sys.argv[1:]
session = Session.open(bundle)
for budget in session.bundle.manifest.budgets:
    answer = session.generate(
        prompt="What color is the circle?", images=[picture], ratio=budget.ratio
    )
    tokens = answer.visual_tokens[-1][1]
    print(f"ratio {budget.ratio:g}: {answer.text} ({tokens} visual tokens at the end)")
