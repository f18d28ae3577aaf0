"""What each command pays before it does anything, made less. Commands import this first.

A command imports for most of the time that it lives, and the daemon before it can serve.
"""

import gc


def import_trio() -> None:
    """Import trio without its search for libpthread, for which ctypes.util runs ldconfig(8).

    It wants pthread_setname_np(3), which libc has since glibc 2.34; without, threads have no names
    of their own. Source: trio 0.35, trio/_core/_thread_cache.py, get_os_thread_name_func().
    """
    import ctypes.util

    found = ctypes.util.find_library
    ctypes.util.find_library = lambda name: "libc.so.6"
    try:
        import trio  # noqa: F401 (from now on it is there)
    finally:
        ctypes.util.find_library = found


# Imports make tens of thousands of objects and no garbage, which is looked for after each 700.
gc.set_threshold(100_000, 50, 50)
