"""Other programs: found and started so that nothing in the working directory runs.

``python -m module`` puts the working directory first among the places that modules are imported
from, and a relative entry of ``PATH`` finds programs there. A user works in directories that others
filled: a downloaded bundle, a data set. A ``numpy.py`` there must stay a file.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

PACKAGES = ("lvlm_profiles", "lvlm_runtime", "lvlm_export")
# What Python imports on its way to the first line of `-c` is its own: `-I` keeps the working
# directory, `PYTHONPATH` and the user's packages out, and `sys` is built in. The places of this
# process are then given by hand, which brings the last two back. Python 3.10 has no `-P`.
_CODE = """\
import sys
sys.path[:] = {path!r}
sys.argv[:] = [{module!r}, *sys.argv[1:]]
import runpy
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def python_command(module: str, *words: str) -> list[str]:
    """As ``python -m module words…``, with this interpreter, and not from the working directory.

    The child imports from where this process does (a wheel, an editable install, ``PYTHONPATH``),
    the working directory and relative entries left out.

    Args:
        module: Dotted name of a module or package with a ``__main__``.
        words: Its arguments.

    Returns:
        What ``subprocess.run`` takes.
    """
    code = _CODE.format(path=import_places(), module=module)
    return [sys.executable, "-I", "-c", code, *words]


def import_places() -> list[str]:
    """``sys.path`` without the working directory and what is relative to it.

    The working directory is left out in every spelling, ``""`` and absolute. It stays where this
    program's own packages were loaded from it, as in a checkout: what lies there runs already.
    """
    try:
        here = Path.cwd().resolve()
    except FileNotFoundError:  # removed since; nothing can be imported from it
        here = Path(os.sep)
    roots = [sys.modules[name].__file__ for name in PACKAGES if name in sys.modules]
    own = {Path(root).resolve().parents[1] for root in roots if root is not None}
    places = (place for place in sys.path if Path(place).is_absolute())
    return [place for place in places if Path(place).resolve() != here or here in own]


def find_program(name: str) -> str | None:
    """Absolute path of a program on the ``PATH``, of which relative entries do not count."""
    places = [place for place in os.get_exec_path() if Path(place).is_absolute()]
    return shutil.which(name, path=os.pathsep.join(places)) if places else None
