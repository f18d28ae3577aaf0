"""An archive in words: what `ckpt show` prints. Pure but for reading the archive.

The kinds of kernel object are known here by their names only; their states are shown as they are
encoded, so that a new kind needs nothing here.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from ckpt.archive.errors import FormatError
from ckpt.archive.read import Archive
from ckpt.model import PAGE_SIZE
from ckpt.states import UNDECODABLE
from launcher.commandline import printable

_WIDTH: Final = 100
_NAMES: Final = ("comm", "name", "command")
"""Fields in which a kind of threads or processes may keep what the program is called."""


def as_json(archive: Archive) -> str:
    """Return everything but pages and files, as one JSON object with a line feed."""
    try:
        return msgspec.json.encode(_everything(archive), order="sorted").decode() + "\n"
    except TypeError as e:
        raise FormatError(f"process model: {e}") from None


def as_text(archive: Archive) -> str:
    """Return what a person wants to know, in lines."""
    content = _everything(archive)
    lines = [
        *_summary(archive),
        *_layers(archive),
        "",
        "processes",
        *_tree(content["model"]),
        "",
        "open files",
        *_descriptors(content["model"]),
    ]
    return "".join(f"{printable(line).rstrip()}\n" for line in lines)


def size(count: float) -> str:
    """Return *count* bytes in the unit that a person would use."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _everything(archive: Archive) -> dict[str, Any]:
    try:
        model = msgspec.msgpack.decode(msgspec.msgpack.encode(archive.model()), strict=False)
    except UNDECODABLE as e:
        raise FormatError(f"process model: {e}") from None
    shared = _shared(archive)
    return {
        "file_bytes": archive.size,
        "signer": archive.signer,
        "manifest": msgspec.to_builtins(archive.manifest),
        "layers": [
            {
                "id": layer.id,
                "digest": layer.digest,
                "bytes": layer.size,
                "tar_bytes": layer.length,
                **({"earlier": True} if number < shared else {}),
            }
            for number, layer in enumerate(archive.layers)
        ],
        "pages": {"count": archive.pages.count, "unique": archive.pages.unique},
        "config": archive.config().decode(errors="replace"),
        "model": model,
    }


def _summary(archive: Archive) -> Iterator[str]:
    manifest, pages = archive.manifest, archive.pages
    yield f"pod        {manifest.pod}"
    yield f"taken      {manifest.created} on Linux {manifest.host.kernel}"
    yield f"machine    {manifest.host.architecture}, {len(manifest.host.cpu_features)} CPU features"
    yield f"by         {manifest.tool}, format {manifest.format}"
    yield f"signed by  {archive.signer}"
    yield f"file       {size(archive.size)}"
    if manifest.encryption:
        yield f"encrypted  recipients: {len(manifest.encryption.recipients)}"
    if archive.earlier:
        yield f"since      {archive.earlier.path} of {archive.earlier.manifest.created}"
    which = "not in that one" if archive.earlier else "of them different"
    yield (
        f"memory     {size(pages.count * PAGE_SIZE)} in {pages.count} pages, {pages.unique} {which}"
    )
    yield f"kinds      {' '.join(manifest.kinds)}"


def _layers(archive: Archive) -> Iterator[str]:
    yield ""
    yield "file system, topmost first"
    shared = _shared(archive)
    for number, layer in reversed(list(enumerate(archive.layers))):
        where = "earlier archive" if number < shared else "archive"
        yield f"  layer {layer.id}  {size(layer.length)}, {size(layer.size)} in the {where}"
    for base in archive.manifest.base:
        yield f"  lower {base.identity}  {base.path}"


def _shared(archive: Archive) -> int:
    """Return how many of the layers, from the bottom, the earlier archive has."""
    return archive.manifest.earlier.layers if archive.manifest.earlier else 0


def _tree(model: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {'PID':>7} {'GROUP':>7} {'SESSION':>7} {'THREADS':>7} {'FDS':>5}  COMMAND"
    processes = {process["pid"]: process for process in model["processes"]}
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        parent = process["parent"] if process["parent"] in processes else 0
        children.setdefault(parent, []).append(pid)
    waiting = [(pid, 0) for pid in sorted(children.get(0, []), reverse=True)]
    while waiting:
        pid, depth = waiting.pop()
        process = processes[pid]
        yield (
            f"  {pid:>7} {process['group']:>7} {process['session']:>7} "
            f"{len(process['threads']):>7} {len(process['descriptors']):>5}  "
            f"{'  ' * depth}{command(process)}"
        )
        below = sorted(children.get(pid, []), reverse=True)
        waiting += [(child, depth + 1) for child in below]


def command(process: Mapping[str, Any]) -> str:
    """Return what the program of a decoded *process* is called, if a kind tells."""
    if process["exit_status"] is not None:
        return f"(zombie, wait status {process['exit_status']})"
    leader = process["threads"][0]["parts"] if process["threads"] else []
    for part in [*leader, *process["parts"]]:
        state = part["state"]
        for name in _NAMES:
            if isinstance(state, dict) and isinstance(state.get(name), str | bytes):
                return _scalar(state[name])
    return "?"


def _descriptors(model: Mapping[str, Any]) -> Iterator[str]:
    files = {file["id"]: file for file in model["files"]}
    yield f"  {'PID':>7} {'FD':>5}  {'KIND':<10} STATE"
    for process in model["processes"]:
        for descriptor in process["descriptors"]:
            file = files[descriptor["file"]]
            part = file["part"]
            state = f"{' '.join(file['flags'])} {_state(part['state'])}".strip()
            line = f"  {process['pid']:>7} {descriptor['fd']:>5}  {part['kind']:<10} {state}"
            yield line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _state(state: object) -> str:
    """Return the fields of a state that say something, in short."""
    if not isinstance(state, dict):
        return _scalar(state)
    return " ".join(f"{key}={_scalar(v)}" for key, v in state.items() if v not in (None, "", []))


def _scalar(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, list | tuple):
        return f"[{len(value)}]"
    if isinstance(value, dict):
        return f"({_state(value)})"
    return str(value)
