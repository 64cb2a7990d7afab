"""The first 500 attacks of ``make fuzz``, always the same ones, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from house import ROOT

INVOCATIONS = 500


def test_no_attack_ends_with_a_traceback_or_loses_a_file(tiny_llava: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "attack.py"), str(tmp_path)]
    command += ["--tiny", str(tiny_llava), "--invocations", str(INVOCATIONS), "--seed", "0"]
    paths = (str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    found = re.fullmatch(r"(\d+) invocations, 0 findings", last)
    assert found is not None, done.stdout + done.stderr
    assert int(found[1]) >= INVOCATIONS
    assert done.returncode == 0
