"""May this caller pass the barrier directory? Pure.

The mount's root inode is the barrier; the pod's root lies in it. The kernel asks for the
attributes of the barrier at every step of a path walk through it, `..` included, because they
are never valid for longer than the answer, and hands our EACCES to the caller before it looks at
modes or capabilities.

Source: fs/fuse/dir.c, fuse_permission() and fuse_perm_getattr(); fs/namei.c, may_lookup(), v6.6.
"""

STAT_TIMEOUT = 0
"""Seconds for which the kernel may trust the barrier's attributes and its entry."""


def may_pass(caller: str | None, host: str) -> bool:
    """Tell whether a caller may pass.

    Args:
        caller: the caller's pid namespace, as a link in /proc names it ("pid:[4026531836]");
            None where it is not known.
        host: the pid namespace of the host, where the daemon lives.

    Returns:
        True for the host's own processes; False for those of a pod, and for the unknown.
    """
    return caller is not None and caller == host
