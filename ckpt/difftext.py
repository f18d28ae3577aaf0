"""What changed between two archives, in words: what `ckpt diff` prints. Pure."""

from collections.abc import Iterator

from ckpt.archive.read import Archive
from ckpt.diff import Area, Change, Diff, FileChange
from ckpt.show import size
from launcher.commandline import printable

_SIGNS = {"came": "+", "gone": "-", "changed": "~"}


def as_text(found: Diff, first: Archive, second: Archive) -> str:
    """Return *found* in lines, for a person."""
    lines = [
        *_summary(found, first, second),
        *_section("processes", map(_process, found.processes)),
        *_section("memory", _memory(found.memory)),
        *_section("descriptors", map(_descriptor, found.descriptors)),
        *_section("connections", map(_connection, found.connections)),
        *_section("files", map(_file, found.files)),
    ]
    return "".join(f"{printable(line).rstrip()}\n" for line in lines)


def _summary(found: Diff, first: Archive, second: Archive) -> Iterator[str]:
    for sign, archive in (("-", first), ("+", second)):
        manifest = archive.manifest
        yield (
            f"{sign} pod {manifest.pod} of {manifest.created} on Linux {manifest.host.kernel}, "
            f"{size(archive.size)}"
        )
    if not found.same_base:
        yield "they build upon different lower layers"
    if found.left_out:
        yield f"{found.left_out} layers are only named in them: their files are not compared"


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield ""
    empty = True
    for line in lines:
        if empty:
            yield title
        empty = False
        yield f"  {line}"
    if empty:
        yield f"{title}: as they were" if title != "memory" else "memory: as it was"


def _process(change: Change) -> str:
    return f"{_SIGNS[change.how]} {change.pid:>7}  {_words(change)}"


def _descriptor(change: Change) -> str:
    return f"{_SIGNS[change.how]} {change.pid:>7} {change.what:>5}  {_words(change)}"


def _connection(change: Change) -> str:
    return f"{_SIGNS[change.how]} {change.what}: {_words(change)}"


def _words(change: Change) -> str:
    if change.was is None or change.now is None:
        return f"{change.now or change.was or ''}"
    return f"{change.was} -> {change.now}"


def _memory(areas: list[Area]) -> Iterator[str]:
    if areas:
        yield f"{'PID':>9} {'WAS':>10} {'IS':>10} {'CHANGED':>10}  AREA"
    for area in areas:
        yield (
            f"{area.pid:>9} {size(area.was_bytes):>10} {size(area.now_bytes):>10} "
            f"{size(area.changed_bytes):>10}  {area.area}"
        )


def _file(change: FileChange) -> str:
    sizes = [size(count) for count in (change.was_bytes, change.now_bytes) if count is not None]
    what = " -> ".join(dict.fromkeys(sizes)) or change.type
    moved = f" (was {change.moved_from})" if change.moved_from else ""
    return f"{_SIGNS[change.how]} {what:>20}  {change.path}{moved}"
