"""Device profiles, cost model and profile reports. Standard library only; nothing is here yet."""

from __future__ import annotations
