"""Device profiles, cost model, energy meters and profile reports. Standard library only."""

from __future__ import annotations
