"""Objects whose references are not counted, so that a fork does not copy them for being used.

Sources: PEP 683; CPython, Include/internal/pycore_object.h and Include/refcount.h.

Since CPython 3.12 an object is immortal while the lower half of its reference count is negative:
counting leaves it alone. An interpreter makes only a few so; a zygote makes all that it holds, for
they are there as long as its children are. Two fifths of the pages that a start would write are
written for their counts alone.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import sysconfig
import types

__all__ = ["freeze", "immortalise"]

# These end by themselves, and are to be freed then.
_RUNNING = (types.FrameType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)


def freeze() -> None:
    """Leave what there is as it is, so that a child's use of it copies as little as it can."""
    # What an import made stays; frozen, no collection in a child touches, and so copies, it.
    gc.collect()
    immortalise()
    gc.freeze()
    # Nor does a child drop names of methods, wherever those are, to remember others.
    sys._clear_type_cache()


def immortalise() -> int:
    """Make every object that the collector knows, and what those refer to, immortal; their number.

    Nothing of it is ever freed, and sys.getrefcount() says so. Does nothing before CPython 3.12 and
    where references are counted in another way (free-threaded builds). Call it with one thread,
    after gc.collect() and before gc.freeze().
    """
    mark = ctypes.c_int32.from_address(id(None)).value
    if sys.version_info < (3, 12) or sysconfig.get_config_var("Py_GIL_DISABLED") or mark >= 0:
        return 0
    at = ctypes.c_int32.from_address
    count = 0
    pending = gc.get_objects()
    while pending:
        found = pending.pop()
        if isinstance(found, _RUNNING) or found is pending:
            continue
        half = at(id(found))
        if half.value < 0:
            continue
        half.value = mark
        count += 1
        pending.extend(gc.get_referents(found))
        if isinstance(found, types.CodeType):  # the collector does not look into those
            pending += (found.co_consts, found.co_names, found.co_name, found.co_qualname)
    return count
