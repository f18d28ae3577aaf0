"""The huge pages of a pod: whether this host has them, or ordinary ones in their place."""

from collections import Counter
from collections.abc import Iterator

import msgspec

from ckpt.kinds import hugepages, memfd, memory, shared_memory
from ckpt.kinds.stages import name_of
from ckpt.model import PAGE_SIZE, Part, Pod
from ckpt.states import state_of


def missing(model: Pod) -> str:
    """Return which huge pages this host has too few of, in words; "": it has them all."""
    return ", ".join(
        f"{count} huge pages of {size >> 10} KiB, of which {there} are to be had"
        for size, count in sorted(needs(model).items())
        if count > (there := hugepages.available(size))
    )


def needs(model: Pod) -> dict[int, int]:
    """Return how many huge pages a pod needs, by their size in bytes. Pure."""
    found: Counter[int] = Counter()
    for size, length in (*_private(model), *_shared(model)):
        if size:
            found[size] += -(-length // size)
    return dict(found)


def _private(model: Pod) -> Iterator[tuple[int, int]]:
    """Yield bytes of a page, 0 for ordinary ones, and of all of them, of private mappings."""
    for part in (part for process in model.processes for part in process.parts):
        if part.kind == name_of(memory):
            for mapping in state_of(part, memory.State).mappings:
                if not mapping.shared:
                    yield mapping.huge, _private_bytes(mapping)


def _shared(model: Pod) -> Iterator[tuple[int, int]]:
    for part in (file.part for file in model.files):
        if part.kind == name_of(shared_memory):
            memory_state = state_of(part, shared_memory.State)
            yield memory_state.huge, memory_state.content.size
    for part in (one.part for one in model.objects):
        if part.kind == name_of(memfd):
            file_state = state_of(part, memfd.ObjectState)
            yield file_state.huge, file_state.content.size


def _private_bytes(mapping: memory.Mapping) -> int:
    """Return for how much memory the kernel wants to have huge pages when it is mapped."""
    if "noreserve" in mapping.flags:
        return PAGE_SIZE * sum(run.count for run in mapping.runs)
    return mapping.end - mapping.start


def ordinary(model: Pod) -> Pod:
    """Return *model* with ordinary pages in place of huge ones. Pure."""
    replace = msgspec.structs.replace
    return replace(
        model,
        files=[replace(file, part=_plain_file(file.part)) for file in model.files],
        objects=[replace(one, part=_plain_object(one.part)) for one in model.objects],
        processes=[
            replace(process, parts=[_plain_space(part) for part in process.parts])
            for process in model.processes
        ],
    )


def _plain_file(part: Part) -> Part:
    if part.kind != name_of(shared_memory):
        return part
    return _part(part, msgspec.structs.replace(state_of(part, shared_memory.State), huge=0))


def _plain_object(part: Part) -> Part:
    if part.kind != name_of(memfd):
        return part
    return _part(part, msgspec.structs.replace(state_of(part, memfd.ObjectState), huge=0))


def _plain_space(part: Part) -> Part:
    if part.kind != name_of(memory):
        return part
    space = state_of(part, memory.State)
    mappings = [msgspec.structs.replace(m, huge=0) for m in space.mappings]
    return _part(part, msgspec.structs.replace(space, mappings=mappings))


def _part(part: Part, state: msgspec.Struct) -> Part:
    return Part(part.kind, msgspec.Raw(msgspec.msgpack.encode(state)))
