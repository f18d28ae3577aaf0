"""What changed between two archives. Pure but for reading them.

Ids of open files and numbers of pages differ from archive to archive and say nothing; things are
compared by what a person knows them by: process ids, descriptors, addresses, paths. Pages are
compared by their hashes, which both archives have.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

import msgspec

from ckpt.archive.errors import FormatError
from ckpt.archive.read import Archive
from ckpt.kinds import memory
from ckpt.layerview import Entry, View
from ckpt.model import PAGE_SIZE, Pod, Process
from ckpt.show import command
from ckpt.states import state_of

_HASH: Final = hashlib.sha256().digest_size

How = Literal["came", "gone", "changed"]
_T = TypeVar("_T")


class Change(msgspec.Struct, frozen=True):
    """A process, descriptor, connection or file that is not as it was.

    Attributes:
        how: "came" is only in the second archive, "gone" only in the first.
        pid: of the process; None of connections and files.
        what: descriptor number, addresses or path; "" of a process.
        was: how it was, in words; None if it came.
        now: how it is; None if it has gone.
    """

    how: How
    pid: int | None
    what: str
    was: str | None
    now: str | None


class Area(msgspec.Struct, frozen=True):
    """Pages of a process's own, in mappings of one name, that are not as they were.

    Attributes:
        pid: of the process.
        area: "heap", "stack", "anonymous", "[NAME]", or the file that is mapped.
        was_bytes, now_bytes: pages of its own in both archives.
        changed_bytes: of now: new, or with another content.
    """

    pid: int
    area: str
    was_bytes: int
    now_bytes: int
    changed_bytes: int


class FileChange(msgspec.Struct, frozen=True):
    """A name in what the pod has written: "came" may replace one of the lower layers.

    Attributes:
        how: as of Change; "gone" is told of what the second archive does not have or hides.
        path: absolute, in the pod.
        type: now, or what it was.
        was_bytes, now_bytes: of a file; None where there is none.
        moved_from: of a directory that was moved with all that is in it.
    """

    how: How
    path: str
    type: str
    was_bytes: int | None
    now_bytes: int | None
    moved_from: str = ""


class Diff(msgspec.Struct, frozen=True):
    """All that changed.

    Attributes:
        same_base: do both build upon the same lower layers?
        left_out: layers that an archive only names, whose files are therefore not compared.
    """

    processes: list[Change]
    memory: list[Area]
    descriptors: list[Change]
    connections: list[Change]
    files: list[FileChange]
    same_base: bool
    left_out: int


def compare(first: Archive, second: Archive) -> Diff:
    """Return what is different in *second*.

    Raises:
        FormatError: an archive is damaged, or a state is not of its kind.
    """
    was, now = _Side(first), _Side(second)
    below = {*first.manifest.below, *second.manifest.below}
    return Diff(
        processes=[_change(*each) for each in _changed(was.processes(), now.processes())],
        memory=list(_memory(was, now)),
        descriptors=[_change(*each) for each in _changed(was.descriptors(), now.descriptors())],
        connections=[_change(*each) for each in _changed(was.connections(), now.connections())],
        files=list(_files(first, second)),
        same_base=[b.identity for b in first.manifest.base]
        == [b.identity for b in second.manifest.base],
        left_out=len(below),
    )


class _Side:
    """One archive, with what is compared by the key that it is compared by."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.model: Pod = archive.model()
        self.hashes = archive.page_hashes()
        self.files = {file.id: file for file in self.model.files}
        self._names = {number: _name(file.part) for number, file in self.files.items()}

    def processes(self) -> dict[tuple[int, str], str]:
        return {(p.pid, ""): command(_plain(p)) for p in self.model.processes}

    def descriptors(self) -> dict[tuple[int, str], str]:
        found = {}
        for process in self.model.processes:
            for one in process.descriptors:
                found[process.pid, f"{one.fd}"] = self.name(one.file)
        return found

    def connections(self) -> dict[tuple[None, str], str]:
        found = {}
        for file in self.model.files:
            state = _state(file.part)
            if file.part.kind in {"tcp", "udp"} and state.get("peer"):
                ends = f"{_address(state.get('address'))} {_address(state['peer'])}"
                phase = (state.get("connection") or {}).get("phase") or state.get("state")
                found[None, f"{file.part.kind} {ends}"] = str(phase or "connected")
        return found

    def name(self, number: int) -> str:
        if number not in self._names:
            raise FormatError(f"there is no open file {number}")
        return self._names[number]

    def areas(self, process: Process) -> dict[str, dict[int, bytes]]:
        """Return the hashes of its own pages, by area and address."""
        found: dict[str, dict[int, bytes]] = {}
        for part in process.parts:
            if part.kind != "memory":
                continue
            space = state_of(part, memory.State)
            for mapping in space.mappings:
                pages = found.setdefault(self._area(mapping, space.layout), {})
                for run in mapping.runs:
                    pages.update(self._run(run))
        return found

    def _area(self, mapping: memory.Mapping, layout: memory.Layout) -> str:
        if mapping.file is not None:
            return self.name(mapping.file)
        if mapping.name:
            return f"[{mapping.name.decode(errors='backslashreplace')}]"
        if mapping.start <= layout.start_stack < mapping.end:
            return "stack"
        if mapping.start < layout.brk and mapping.end > layout.start_brk:
            return "heap"
        return "anonymous"

    def _run(self, run: memory.Run) -> Iterator[tuple[int, bytes]]:
        address = run.address
        try:
            for unique, count in self.archive.pages.runs(run.first, run.count):
                for number in range(unique, unique + count):
                    yield address, self.hashes[number * _HASH : (number + 1) * _HASH]
                    address += PAGE_SIZE
        except IndexError as e:
            raise FormatError(f"memory that is not in the archive: {e}") from e


def _changed(
    was: Mapping[_T, str], now: Mapping[_T, str]
) -> Iterator[tuple[_T, str | None, str | None]]:
    """Yield what is different: key, how it was, how it is; in the order of the first, then new."""
    for key in {**was, **now}:
        if was.get(key) != now.get(key):
            yield key, was.get(key), now.get(key)


def _change(key: tuple[int | None, str], was: str | None, now: str | None) -> Change:
    return Change(_how(was, now), key[0], key[1], was, now)


def _how(was: object, now: object) -> How:
    if was is None:
        return "came"
    return "gone" if now is None else "changed"


def _memory(was: _Side, now: _Side) -> Iterator[Area]:
    former = {process.pid: process for process in was.model.processes}
    for process in now.model.processes:
        before = was.areas(former[process.pid]) if process.pid in former else {}
        after = now.areas(process)
        for area in {**before, **after}:
            old, new = before.get(area, {}), after.get(area, {})
            changed = sum(old.get(address) != sha256 for address, sha256 in new.items())
            if changed or len(old) != len(new):
                sizes = (len(old) * PAGE_SIZE, len(new) * PAGE_SIZE, changed * PAGE_SIZE)
                yield Area(process.pid, area, *sizes)


def _files(first: Archive, second: Archive) -> Iterator[FileChange]:
    was, now = dict(_view(first).files()), dict(_view(second).files())
    for path in sorted({*was, *now}):
        old, new = was.get(path), now.get(path)
        if not _is_same(old, new):
            hidden = new is None or new.type == "deleted"
            there = old is None or old.type == "deleted"
            yield FileChange(
                "gone" if hidden else "came" if there else "changed",
                path,
                (old if hidden and old else new or Entry("file")).type,
                _bytes(old),
                _bytes(new),
                new.moved_from if new else "",
            )


def _is_same(old: Entry | None, new: Entry | None) -> bool:
    """Is there nothing to tell? A directory that both have is there for what is in it."""
    if old is not None and new is not None and old.type == new.type == "directory":
        return old.moved_from == new.moved_from
    return old == new


def _bytes(entry: Entry | None) -> int | None:
    return entry.size if entry and entry.type == "file" else None


def _view(archive: Archive) -> View:
    view = View()
    for layer in archive.layers:
        view.add_layer(archive.layer_tar(layer), f"layer {layer.id}")
    return view


def _name(part: Any) -> str:  # noqa: ANN401 (a model's Part, with whatever state)
    """Return what an open file is called by: its kind, and its path or addresses."""
    state = _state(part)
    if isinstance(state.get("path"), bytes):
        path = state["path"].decode(errors="backslashreplace")
        position = state.get("position")
        return f"{part.kind} {path}" + (f" at {position}" if position else "")
    words = [part.kind]
    for key in ("state", "address", "peer"):
        value = state.get(key)
        words += [_address(value) if isinstance(value, dict) else value] if value else []
    return " ".join(str(word) for word in words if isinstance(word, str))


def _state(part: Any) -> dict[str, Any]:  # noqa: ANN401
    state = state_of(part, object)
    return state if isinstance(state, dict) else {}


def _address(value: object) -> str:
    if not isinstance(value, dict):
        return "-"
    host, port = value.get("host"), value.get("port")
    return f"[{host}]:{port}" if isinstance(host, str) and ":" in host else f"{host}:{port}"


def _plain(process: Process) -> dict[str, Any]:
    """Return what show.command() needs, decoded."""
    return {
        "exit_status": process.exit_status,
        "parts": [{"state": _state(part)} for part in process.parts],
        "threads": [
            {"parts": [{"state": _state(part)} for part in thread.parts]}
            for thread in process.threads[:1]
        ],
    }
