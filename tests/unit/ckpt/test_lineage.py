"""Who is whose child, as the pod numbers it."""

from ckpt.lineage import Lineage, lineages


def status(parent, tgid, group, session):
    pairs = {"NStgid": tgid, "NSpgid": group, "NSsid": session}
    return {"PPid": str(parent), **{name: f"9{inner}\t{inner}" for name, inner in pairs.items()}}


def test_parents_are_found_and_those_outside_are_init():
    found = lineages({93: status(71, 3, 3, 3), 94: status(93, 4, 3, 3), 95: status(93, 5, 5, 1)})
    assert found == {93: Lineage(3, 1, 3, 3), 94: Lineage(4, 3, 3, 3), 95: Lineage(5, 3, 5, 1)}
