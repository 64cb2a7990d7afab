"""How the demo model of scenes is made; not part of the wheel."""
