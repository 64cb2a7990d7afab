"""An earlier demo model, of 3x3 mosaics of tiles: what the demo's training begins with.

The demo of QueCC is trained on it too. None of it is in the wheel.
"""

from __future__ import annotations

from pathlib import Path

MOSAICS_DIR: Path = Path(__file__).resolve().parent
"""Folder of the mosaics' files."""

CHECKPOINT: Path = MOSAICS_DIR / "checkpoint"
"""Hugging Face ``LlavaForConditionalGeneration`` directory, float16 weights."""

TILES_ZIP: Path = MOSAICS_DIR / "data" / "easy_vqa.zip"
"""The easy-VQA data set (MIT licence, see the LICENSE beside it)."""
