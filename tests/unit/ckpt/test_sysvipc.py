import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.kinds import advice, ipcabi, semundo, sysvipc

LISTING = """\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid
 -19088744          5  3640                    56  1022     0      2    33    34     0     1
"""


def test_parse():
    (line,) = sysvipc.parse(LISTING)
    assert line["size"] == 56
    assert line["perms"] == 0o3640
    assert sysvipc.permissions(line) == sysvipc.Permissions(5, -19088744, 33, 34, 0, 1, 0o640)


class Kernel:
    """Semaphore 0 with one adjustment, as ipc/sem.c, perform_atomic_semop_slow() treats them."""

    def __init__(self, value, adjustment):
        self.value, self.adjustment = value, adjustment

    def syscall(self, name, _set, *args):
        if name == "semctl":
            return self.value
        buffer, count = args
        assert len(buffer) == 6 * count
        value, adjustment = self.value, self.adjustment
        for at in range(0, len(buffer), 6):
            operation = int.from_bytes(buffer[at + 2 : at + 4], "little", signed=True)
            flags = int.from_bytes(buffer[at + 4 : at + 6], "little")
            if value + operation < 0 or (operation == 0 and value):
                raise OSError(errno.EAGAIN, "")
            value += operation
            adjustment -= operation * bool(flags & ipcabi.SEM_UNDO)
            if value > 32767 or not -32768 <= adjustment <= 32767:
                raise OSError(errno.ERANGE, "")
        self.value, self.adjustment = value, adjustment
        return 0


class Holder:
    def __init__(self, remote):
        self.remote = remote


@given(st.integers(0, 32767), st.integers(-32768, 32767))
def test_adjustments_are_found_and_made(value, adjustment):
    kernel = Kernel(value, adjustment)
    assert semundo._find(Holder(kernel), 1, 0, value) == adjustment
    assert (kernel.value, kernel.adjustment) == (value, adjustment)

    anew = Kernel(value, 0)
    found = semundo.State([semundo.Adjustment(1, 0, adjustment)])
    semundo.rebuild(found, Holder(anew))
    assert (anew.value, anew.adjustment) == (value, adjustment)


class OldKernel:
    """A Target on a kernel that knows the *known* calls only."""

    def __init__(self, *known):
        self.known, self.calls, self.notes = known, [], []

    @property
    def remote(self):
        return self

    def note(self, text):
        self.notes.append(text)

    def syscall(self, name, *args):
        if name not in self.known:
            raise OSError(errno.EINVAL if name == "madvise" else errno.ENOSYS, name)
        self.calls.append((name, *args))

    later = syscall


def test_what_an_old_kernel_lacks():
    target = OldKernel("mprotect", "mlock2")
    advice.guard(0x1000, 0x2000, target)
    advice.lock(0x5000, 0x1000, ["locked", "sealed"], target)
    assert target.calls == [("mprotect", 0x1000, 0x2000, 0), ("mlock2", 0x5000, 0x1000, 0)]
    assert [note.split()[0] for note in target.notes] == ["guard", "sealed"]


def test_an_error_is_one():
    with pytest.raises(OSError, match="mlock2"):
        advice.lock(0x5000, 0x1000, ["locked"], OldKernel())
