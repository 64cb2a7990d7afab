"""Which modules a command line loads, looked up in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub")
EXPORT = (
    "lvlm_export.families",
    "lvlm_export.bundle",
    "lvlm_export.checkpoint",
    "lvlm_export.plan.plan",
)
# Runs a command line and prints on stderr which of the named modules it left loaded.
RUN_AND_LOOK = """
import json, sys
from lvlm_export.cli import cli
try:
    cli.main(json.loads(sys.argv[1]), prog_name="lvlm-export")
except SystemExit as end:
    status = end.code
names = json.loads(sys.argv[2])
found = [n for n in names if n in sys.modules or any(m.startswith(n + ".") for m in sys.modules)]
print(json.dumps({"status": status, "loaded": found}), file=sys.stderr)
"""


def loaded(words: list[str], names: tuple[str, ...]) -> list[str]:
    """Which of ``names`` a command line leaves in sys.modules of a fresh process."""
    command = [sys.executable, "-c", RUN_AND_LOOK, json.dumps(words), json.dumps(names)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(result.stderr.splitlines()[-1])
    assert report["status"] == 0, result.stderr
    return list(report["loaded"])
