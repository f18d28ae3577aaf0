"""What an archive says, as the program wants it: states decoded, references that lead somewhere.

Whoever signed it is trusted, and may still have another version, or a mistake: what does not fit is
refused, by FormatError, like everything else that is wrong with an archive.
"""

from collections.abc import Collection, Sequence
from typing import Final, TypeVar

import msgspec

from ckpt.archive.errors import FormatError
from ckpt.model import Part, Pod, Process

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec says of bytes that are not what they should be."""

INIT: Final = 1
_PID_LIMIT: Final = 1 << 22  # PID_MAX_LIMIT, <linux/threads.h>
_T = TypeVar("_T")


def state_of(part: Part, form: type[_T]) -> _T:
    """Return the state of *part*, which must be of that form.

    Raises:
        FormatError: it is not.
    """
    try:
        return msgspec.msgpack.decode(part.state, type=form)
    except UNDECODABLE as e:
        raise FormatError(f"state of kind {part.kind!r}: {e}") from None


def check(pod: Pod) -> Pod:
    """Return *pod*, in which every number leads to what it names.

    Raises:
        FormatError: one does not.
    """
    if [file.id for file in pod.files] != list(range(len(pod.files))):
        raise FormatError("the open files are not numbered in their order")
    _distinct([item.id for item in pod.objects], "objects")
    _distinct([process.pid for process in pod.processes], "processes")
    before = {INIT}
    for process in pod.processes:
        if process.parent not in before:
            raise FormatError(
                f"process {process.pid}: its parent {process.parent} is not before it"
            )
        _check_process(process, len(pod.files))
        before.add(process.pid)
    return pod


def _check_process(process: Process, files: int) -> None:
    numbers = {process.group, process.session}
    if process.pid <= INIT or not all(0 <= n < _PID_LIMIT for n in {process.pid, *numbers}):
        raise FormatError(f"process {process.pid}: a number that no process can have")
    for descriptor in process.descriptors:
        if not (0 <= descriptor.fd < 1 << 31 and 0 <= descriptor.file < files):
            raise FormatError(
                f"process {process.pid}: descriptor {descriptor.fd} of open file "
                f"{descriptor.file}, of which there are {files}"
            )
    _distinct([thread.tid for thread in process.threads], f"threads of process {process.pid}")
    if (process.exit_status is None) != bool(process.threads):
        raise FormatError(f"process {process.pid} neither lives nor has ended")


def _distinct(numbers: Sequence[int], what: str) -> None:
    seen: Collection[int] = set(numbers)
    if len(seen) != len(numbers):
        raise FormatError(f"two {what} with one number")
