"""Archives that build upon an earlier one: it is just that one, good, and nothing else is taken."""

import os
import shutil
import struct

import msgspec
import pytest

from ckpt import diff, registry, show
from ckpt.archive import earlier, schema
from ckpt.archive.errors import (
    ArchiveError,
    Damaged,
    FormatError,
    NoEarlier,
    NotARecipient,
    UntrustedKey,
)
from ckpt.archive.read import open_archive
from ckpt.model import PAGE_SIZE
from ckpt.progress import Silent
from ckpt.whole import write_whole
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import KEY, LAYER, LAYER_ID, STRANGER, TRUSTED, Loose, page, refused
from tests.unit.ckpt.test_diff import mapping, space
from tests.unit.ckpt.test_encryption import ALICE, BOB

SECOND = ("f" * 32, b"what came later")
PAGES = page(2) + page(3) + page(1) + page(3)


@pytest.fixture
def full(tmp_path):
    """An archive with the pages 1 and 2, and one layer."""
    archives.make(tmp_path / "full.pod")
    return tmp_path / "full.pod"


@pytest.fixture
def since(full):
    """One that builds upon it: page 3 and a second layer are its own."""
    path = full.with_name("since.pod")
    layers = ((LAYER_ID, LAYER), SECOND)
    summary = archives.make_since(path, full, pages=PAGES, layers=layers)
    assert (summary.pages, summary.unique_pages, summary.layers) == (4, 1, 1)
    return path


def test_everything_comes_back(full, since):
    with open_archive(since, TRUSTED) as archive:
        assert archive.earlier.path == full
        assert archive.pages.read(0, 4) == PAGES
        assert archive.pages.read(1, 2) == page(3) + page(1)
        assert [layer.id for layer in archive.layers] == [LAYER_ID, SECOND[0]]
        tars = [b"".join(archive.layer_tar(layer)) for layer in archive.layers]
        assert tars == [LAYER, SECOND[1]]
        assert len(archive.page_hashes()) == 3 * 32
        assert archive.model() == archives.MODEL
        assert archive.manifest.requires == [schema.EARLIER]
        archive.verify(Silent())
        everything = msgspec.json.decode(show.as_json(archive))
        assert everything["pages"] == {"count": 4, "unique": 1}
        assert [layer.get("earlier") for layer in everything["layers"]] == [True, None]
        text = show.as_text(archive)
        assert f"since      {full}" in text
        assert "in the earlier archive" in text


def test_the_page_map_by_hand(since):
    """Unique pages 0 and 1 are the earlier archive's, 2 is this one's; a run goes over both."""
    index = Loose(since).index
    assert index["page_runs"] == struct.pack("<6I", 1, 2, 0, 1, 2, 1)


def test_compared(tmp_path):
    """By the hashes of both."""
    first, second = tmp_path / "a.pod", tmp_path / "b.pod"
    model = model_of(pages=3)
    archives.make(first, pages=page(1) + page(2) + page(3), model=model, layers=())
    archives.make_since(second, first, pages=page(8) + page(2) + page(9), model=model, layers=())
    with open_archive(first, TRUSTED) as was, open_archive(second, TRUSTED) as now:
        [area] = diff.compare(was, now).memory
    assert (area.was_bytes, area.now_bytes, area.changed_bytes) == (3 << 12, 3 << 12, 2 << 12)


def model_of(pages):
    process, zombie = archives.MODEL.processes
    memory = space(mapping(0x5000, [(0, pages)]))
    processes = [msgspec.structs.replace(process, parts=[memory]), zombie]
    return msgspec.structs.replace(archives.MODEL, processes=processes)


def test_nothing_of_it_is_the_same(full):
    """Layers that were merged have another id, and those above them come along."""
    path = full.with_name("since.pod")
    archives.make_since(path, full, pages=page(7), layers=(SECOND, (LAYER_ID, LAYER)))
    with open_archive(path, TRUSTED) as archive:
        assert archive.manifest.earlier.layers == 0
        assert [layer.id for layer in archive.layers] == [SECOND[0], LAYER_ID]
    archives.read_all(path)


def test_all_of_it_is_the_same(full):
    path = full.with_name("since.pod")
    summary = archives.make_since(path, full)
    assert (summary.unique_pages, summary.layers) == (0, 0)
    assert archives.read_all(path) == archives.MODEL
    with open_archive(path, TRUSTED) as archive:
        assert archive.pages.read(0, 3) == archives.PAGES


# --- where it is -----------------------------------------------------------------------


def test_it_may_have_any_name(full, since):
    full.rename(full.with_name("another.pod"))
    os.mkfifo(full.with_name("a.pod"))
    full.with_name("b.pod").mkdir()
    full.with_name("c.pod").write_text("no archive")
    full.with_name("d.pod").symlink_to("nothing")
    archives.make(full.with_name("e.pod"), pages=page(9))
    archives.read_all(since)


def test_it_is_not_there(full, since, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    full.rename(away / "full.pod")
    refused(since, NoEarlier, "since.pod: the archive that it builds upon is not beside it: sha256")
    archives.read_all(since, since=away / "full.pod")
    archives.make(tmp_path / "other.pod", pages=page(9))
    for wrong in (since, tmp_path / "other.pod"):
        with pytest.raises(NoEarlier, match=f"{wrong} is not the archive that it builds upon"):
            archives.read_all(since, since=wrong)
    (tmp_path / "text").write_text("hello " * 1000)
    with pytest.raises(FormatError, match="text: not an archive"):
        archives.read_all(since, since=tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        archives.read_all(since, since=tmp_path / "nothing")


def test_it_is_not_asked_for(full):
    archives.read_all(full, since=full.with_name("nothing"))


@pytest.mark.parametrize("at", ["pages", "signature", "end"])
@pytest.mark.parametrize("name", ["a.pod", "z.pod"])
def test_of_several_the_good_one_is_taken(full, since, at, name):
    copy = full.with_name(name)
    data = bytearray(full.read_bytes())
    if at == "end":
        del data[-2000:]
    else:
        data[1541 if at == "pages" else data.rindex(b'"sig":"') + 20] ^= 1
    copy.write_bytes(data)
    full.with_name("again.pod").symlink_to(full)
    archives.read_all(since)
    with open_archive(since, TRUSTED) as archive:
        assert archive.earlier.path.samefile(full)


def test_of_several_none_is_good(full, since):
    before = os.listdir("/proc/self/fd")
    data = bytearray(full.read_bytes())
    data[1541] ^= 1
    for path in (full, full.with_name("z.pod")):
        path.write_bytes(data)
    with pytest.raises(Damaged, match=r"full.pod: pages"), open_archive(since, TRUSTED):
        pass
    assert os.listdir("/proc/self/fd") == before


def test_nothing_stays_open(full, since):
    before = os.listdir("/proc/self/fd")
    archives.read_all(since)
    data = full.read_bytes()
    full.write_bytes(data[:-1])
    with pytest.raises(ArchiveError):
        archives.read_all(since)
    full.write_bytes(data)
    loose = Loose(since)
    loose.index["page_runs"] = b"x"
    loose.write(since)
    with pytest.raises(FormatError):
        archives.read_all(since)
    assert os.listdir("/proc/self/fd") == before


# --- what it is ------------------------------------------------------------------------


def test_damaged(full, since):
    """Each byte of it counts: what is read of the other one is then refused, too."""
    data = bytearray(full.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 1 << at % 8
        full.write_bytes(data)
        with pytest.raises(ArchiveError):
            archives.read_all(since)
        data[at] ^= 1 << at % 8
    full.write_bytes(data)
    archives.read_all(since)


def test_which_one_is_damaged_is_told(full, since):
    data = bytearray(full.read_bytes())
    data[1541] ^= 1  # in the pages
    full.write_bytes(data)
    with open_archive(since, TRUSTED) as archive:
        for read in (
            lambda: archive.pages.read(0, 1),
            lambda: archive.verify(Silent()),
        ):
            with pytest.raises(FormatError, match=r"full.pod: pages"):
                read()
        assert archive.pages.read(1, 1) == page(3)
        archive.verify(Silent(), good={full})  # whoever knows better


def test_signed_by_a_stranger(tmp_path):
    """A signature over what names it by its digest does not make up for its own."""
    full, since = tmp_path / "full.pod", tmp_path / "since.pod"
    archives.make(full, key=STRANGER)
    theirs = {**TRUSTED, archives.keys.fingerprint(STRANGER.public_key()): STRANGER.public_key()}
    archives.make_since(since, full, trusted=theirs, key=KEY)
    archives.read_all(since, theirs)
    refused(since, UntrustedKey, "since.pod: .*full.pod: signed by key")


def test_a_chain(full, since, tmp_path):
    """Who has an archive needs at most one more file: no chain, and so no loop."""
    third = tmp_path / "third.pod"
    archives.make_since(third, since)
    refused(third, FormatError, "third.pod: .*since.pod: another archive builds upon it")


def test_not_whole_otherwise(full, since):
    """It names layers that are in no archive."""
    loose = Loose(full)
    loose.manifest |= {"below": ["0" * 32], "requires": [schema.LAYERS_BELOW]}
    loose.write(full)
    archives.make_since(since, full)
    refused(since, FormatError, "it builds upon an archive that is not whole")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pod": "web"}, "builds upon an archive of pod 'mail'"),
        ({"earlier": {"pages": 3}}, "an archive of 3 pages and 1 layers, which has 2 and 1"),
        ({"earlier": {"pages": 1}}, "an archive of 1 pages and 1 layers, which has 2 and 1"),
        ({"earlier": {"layers": 2}}, "an archive of 2 pages and 2 layers, which has 2 and 1"),
        ({"earlier": {"pages": -1}}, "-1 pages and 1 layers in an earlier archive"),
        ({"earlier": {"pages": 1 << 62}}, "pages and 1 layers in an earlier archive"),
        ({"earlier": {"layers": 513}}, "2 pages and 513 layers in an earlier archive"),
        ({"earlier": {"manifest": "sha256:../x"}}, "an earlier archive with the digest"),
        ({"below": [LAYER_ID], "requires": [schema.EARLIER, schema.LAYERS_BELOW]}, "layers below,"),
        ({"requires": []}, "feature 'earlier-archive' not required"),
        ({"earlier": None}, "or no such archive"),
        ({"earlier": {"manifest": 7}}, "pod manifest: Expected `str`"),
    ],
)
def test_what_is_said_of_it(since, change, match):
    loose = Loose(since)
    for name, value in change.items():
        own = loose.manifest.get(name)
        loose.manifest[name] = {**own, **value} if isinstance(value, dict) else value
    loose.write(since)
    refused(since, FormatError, match)


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        ([1, 2, 0, 1, 4, 1], "page 3 begins a run that cannot be"),
        ([1, 3, 0, 1], "the page map knows 2 unique pages, the archive has 1"),
        ([0, 2], "the page map knows 0 unique pages, the archive has 1"),
        ([2, 1, 3, 1], "page 1 begins a run that cannot be"),
        ([2, (1 << 32) - 1], "the page map knows"),
    ],
)
def test_pages_beyond(since, runs, match):
    loose = Loose(since)
    loose.index["page_runs"] = struct.pack(f"<{len(runs)}I", *runs)
    loose.write(since)
    refused(since, FormatError, match)


def test_another_file_meanwhile(full, since, monkeypatch):
    """What was found is looked at again when its signature has been verified."""
    find = earlier.find

    def replaced(*args):
        found = find(*args)
        archives.make(full, pages=page(5) + page(6))
        return found

    monkeypatch.setattr(earlier, "find", replaced)
    refused(since, NoEarlier, "is not there any more")


def test_a_page_twice(full):
    """A trusted key may have signed hashes that are no hashes: numbers would be others."""
    loose = Loose(full)
    loose.put(schema.HASHES_TYPE, loose.get(schema.HASHES_TYPE)[:32] * 2)
    loose.write(full)
    with pytest.raises(FormatError, match="the earlier archive has a unique page twice"):
        archives.make_since(full.with_name("since.pod"), full)
    assert os.listdir(full.parent) == [full.name]


# --- what a new one can build upon -----------------------------------------------------


def usable(path, pod="mail", *, encrypted=False, identities=()):
    with open_archive(path, TRUSTED, identities) as archive:
        earlier.check_usable(archive, pod, encrypted=encrypted)


def test_what_can_be_built_upon(full, since, tmp_path):
    usable(full)
    for call, match in (
        (lambda: usable(since), "since.pod: no archive of pod 'mail' can build upon it: it is not"),
        (lambda: usable(full, "web"), "it is one of pod 'mail'"),
        (lambda: usable(full, encrypted=True), "only one of it and the new one is encrypted"),
    ):
        with pytest.raises(NoEarlier, match=match):
            call()
    loose = Loose(full)
    loose.manifest |= {"below": ["0" * 32], "requires": [schema.LAYERS_BELOW]}
    loose.write(tmp_path / "moved.pod")
    with pytest.raises(NoEarlier, match="it is not whole itself"):
        usable(tmp_path / "moved.pod")


def test_encrypted(tmp_path):
    """Both are, or none is; who writes needs an identity of the earlier one."""
    full, since = tmp_path / "full.pod", tmp_path / "since.pod"
    to_alice = {"recipients": [ALICE.public_key()]}
    archives.make(full, **to_alice)
    with pytest.raises(NotARecipient, match=r"full.pod: encrypted"):
        archives.make_since(since, full, **to_alice)
    archives.make_since(since, full, identities=[ALICE], pages=PAGES, **to_alice)
    usable(full, encrypted=True, identities=[ALICE])
    with open_archive(since, TRUSTED, iter([ALICE])) as archive:
        assert archive.pages.read(0, 4) == PAGES
        archive.verify(Silent())
    with open_archive(since, TRUSTED, None) as archive:
        assert archive.is_locked
        archive.verify(Silent())
    with pytest.raises(NotARecipient):
        open_archive(since, TRUSTED, [BOB])
    shutil.copyfile(full, tmp_path / "copy")
    data = bytearray(full.read_bytes())
    data[1600] ^= 1
    full.write_bytes(data)
    with open_archive(since, TRUSTED, None) as archive, pytest.raises(FormatError, match="full"):
        archive.verify(Silent())
    plain = tmp_path / "plain.pod"
    archives.make_since(plain, tmp_path / "copy", identities=[ALICE])
    with pytest.raises(FormatError, match="only one of it and the archive"):
        open_archive(plain, TRUSTED, [ALICE], since=tmp_path / "copy")


def test_pages_go_over_both(tmp_path):
    """A read across the border, in frames of more than one."""
    many = b"".join(map(page, range(3000)))
    archives.make(tmp_path / "full.pod", pages=many)
    pages = many[1500 * PAGE_SIZE :] + b"".join(map(page, range(5000, 7000))) + many[:PAGE_SIZE]
    archives.make_since(tmp_path / "since.pod", tmp_path / "full.pod", pages=pages)
    with open_archive(tmp_path / "since.pod", TRUSTED) as archive:
        assert archive.pages.read(0, archive.pages.count) == pages
        assert archive.pages.read(1499, 2) == page(2999) + page(5000)
        archive.verify(Silent())


def test_not_to_a_registry(since):
    """Nor is a registry asked."""
    with pytest.raises(NoEarlier, match=r"since.pod builds upon another") as caught:
        registry.push(since, registry.reference("registry.invalid/a:b"), TRUSTED)
    assert "ckpt whole" in caught.value.hint


# --- whole again -----------------------------------------------------------------------


def test_whole_again(full, since, tmp_path):
    new = tmp_path / "new" / "whole.pod"
    new.parent.mkdir()
    with open_archive(since, TRUSTED) as archive:
        write_whole(archive, new, KEY, (), Silent())
        was = archive.manifest
        with (
            pytest.raises(ValueError, match="is whole already"),
            open_archive(full, TRUSTED) as one,
        ):
            write_whole(one, new, KEY, (), Silent())
    assert archives.read_all(new) == archives.MODEL
    with open_archive(new, TRUSTED) as archive:
        assert archive.pages.read(0, 4) == PAGES
        tars = [b"".join(archive.layer_tar(layer)) for layer in archive.layers]
        assert tars == [LAYER, SECOND[1]]
        now = archive.manifest
    assert msgspec.structs.replace(was, requires=[], earlier=None) == now
    data = bytearray(full.read_bytes())
    data[1541] ^= 1
    full.write_bytes(data)
    with (
        open_archive(since, TRUSTED) as archive,
        pytest.raises(FormatError, match=r"full.pod: pages"),
    ):
        write_whole(archive, new.with_name("x.pod"), KEY, (), Silent())
    assert os.listdir(new.parent) == ["whole.pod"]
