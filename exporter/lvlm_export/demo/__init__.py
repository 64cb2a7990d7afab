"""The demo model: a small LLaVA-layout checkpoint, its pictures, and the code that made both.

Importing this package loads only ``pathlib``; the data modules need numpy and Pillow, the training
modules torch and transformers.
"""

from __future__ import annotations

from pathlib import Path

DEMO_DIR: Path = Path(__file__).resolve().parent
"""Folder of all the demo's files."""

CHECKPOINT: Path = DEMO_DIR / "checkpoint"
"""Hugging Face ``LlavaForConditionalGeneration`` directory, float16 weights."""

PICTURES: Path = DEMO_DIR / "pictures"
"""Example scenes on unseen photographs, and ``questions.json`` about them."""

PHOTOS: Path = DEMO_DIR / "photos"
"""Small copies of photographs in the public domain, for backgrounds (licences in its README)."""
