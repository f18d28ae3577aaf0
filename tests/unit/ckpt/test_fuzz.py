"""Archives that are wrong in ways that nobody thought of: refused in our words, in bounded memory.

What is changed is signed again by a trusted key, so that what comes after the signature sees it.
"""

import contextlib
import hashlib
import shutil
import struct

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ckpt.archive import container, crypt, dsse, frames, schema
from ckpt.archive.crypt import BlobCipher
from ckpt.archive.errors import ArchiveError
from ckpt.archive.pages import PageMap
from ckpt.layerview import View
from ckpt.model import OpenFile
from launcher import config
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import TRUSTED, Loose
from tests.unit.ckpt.fuzzing import TIMES, bounded, fuzz, sweep, use
from tests.unit.ckpt.test_diff import layer, mapping, space
from tests.unit.ckpt.test_encryption import ALICE

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.sampled_from([-1, 0, 1, 4096, 1 << 22, 1 << 31, 1 << 32, 1 << 62]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.binary(max_size=20),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)
OWN = {"host": "192.0.2.1", "port": 25}
UDP = archives.part("udp", family="inet", address=OWN, peer=OWN, common={})
FIRST, ZOMBIE = archives.MODEL.processes
SPACE = space(mapping(0x5000, [(0, 2), (2, 1)]))
MODEL = msgspec.structs.replace(
    archives.MODEL,
    processes=[msgspec.structs.replace(FIRST, parts=[SPACE]), ZOMBIE],
    files=[*archives.MODEL.files, OpenFile(1, [], UDP)],
)
TAR = layer(("etc/", 0), ("etc/a", 10), ("b", 600), ("etc/.wh.c", 0), ("d/", 0, "/etc"))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An archive with a bit of everything that is parsed."""
    path = tmp_path_factory.mktemp("fuzz") / "good.pod"
    archives.make(path, layers=[("1" * 32, TAR)], model=MODEL)
    return path


@pytest.fixture(autouse=True)
def little_memory():
    with bounded():
        yield


def mutate(draw, value):
    """Return *value* with one thing in it, however deep, replaced, left out or doubled."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        rest = {k: v for k, v in value.items() if k != key}
        if draw(st.integers(0, 4)) == 0:
            return rest
        return {**rest, key: mutate(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        how = draw(st.integers(0, 5))
        if how < 2:
            return value[:at] + value[at : at + 1] * (2 * how) + value[at + 1 :]
        return [*value[:at], mutate(draw, value[at]), *value[at + 1 :]]
    return mutate_leaf(draw, value)


def mutate_leaf(draw, value):
    if isinstance(value, bytes) and value and draw(st.booleans()):
        return damage(draw, value)
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return min(max(value + draw(st.integers(-2, 2)), -(1 << 63)), (1 << 64) - 1)
    return draw(VALUES)


def damage(draw, data):
    """Return *data* with some bytes replaced, cut out or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 40)))
        data[at:end] = draw(st.binary(max_size=40))
    return bytes(data)


def reframe(loose, media_type, content):
    frame, entry = frames.compress(content)
    loose.put(media_type, frame)
    loose.framed(media_type).update(length=len(content), table=entry)


def change_model(draw, loose):
    model = msgspec.msgpack.decode(frames_of(loose, schema.MODEL_TYPE))
    reframe(loose, schema.MODEL_TYPE, msgspec.msgpack.encode(mutate(draw, model)))


def frames_of(loose, media_type):
    return zstandard.ZstdDecompressor().decompress(loose.get(media_type))


CHANGES = {
    "model": change_model,
    "model bytes": lambda draw, loose: reframe(
        loose, schema.MODEL_TYPE, damage(draw, frames_of(loose, schema.MODEL_TYPE))
    ),
    "layer": lambda draw, loose: reframe(loose, schema.LAYER_TYPE, damage(draw, TAR)),
    "frame": lambda draw, loose: loose.put(
        schema.MODEL_TYPE, damage(draw, loose.get(schema.MODEL_TYPE))
    ),
    "pod manifest": lambda draw, loose: setattr(loose, "manifest", mutate(draw, loose.manifest)),
    "image manifest": lambda draw, loose: setattr(
        loose, "change_image", lambda image: mutate(draw, image)
    ),
    "index": lambda draw, loose: loose.put(
        schema.INDEX_TYPE, msgspec.msgpack.encode(mutate(draw, loose.index))
    ),
    "index bytes": lambda draw, loose: loose.put(
        schema.INDEX_TYPE, damage(draw, loose.get(schema.INDEX_TYPE))
    ),
    "configuration": lambda draw, loose: loose.put(
        schema.POD_CONFIG_TYPE, damage(draw, loose.get(schema.POD_CONFIG_TYPE))
    ),
}


@pytest.mark.parametrize("what", CHANGES)
@fuzz(25)
@given(data=st.data())
def test_what_a_trusted_key_signed(good, tmp_path, what, data):
    loose = Loose(good)
    CHANGES[what](data.draw, loose)
    loose.write(tmp_path / "x.pod", keep_index=what.startswith("index"))
    use(tmp_path / "x.pod", TRUSTED)


@pytest.mark.parametrize("what", ["pod manifest", "index", "index bytes", "model"])
@fuzz(25)
@given(data=st.data())
def test_what_builds_upon_another(good, tmp_path, what, data):
    """What it says of the other one, and which pages of that it names."""
    shutil.copyfile(good, tmp_path / "earlier.pod")
    layers = [("1" * 32, TAR), ("2" * 32, TAR)]
    archives.make_since(
        tmp_path / "x.pod",
        good,
        pages=archives.page(3) + archives.PAGES,
        layers=layers,
        model=MODEL,
    )
    assert use(tmp_path / "x.pod", TRUSTED) is None
    loose = Loose(tmp_path / "x.pod")
    CHANGES[what](data.draw, loose)
    loose.write(tmp_path / "x.pod", keep_index=what.startswith("index"))
    use(tmp_path / "x.pod", TRUSTED)


def test_each_part_of_an_archive(good, tmp_path):
    """A byte here and there; test_archive_hostile.py has them all, of a smaller one."""
    assert use(good, TRUSTED) is None
    step = max(1, 307 // TIMES)
    assert sweep(good.read_bytes(), tmp_path / "x.pod", TRUSTED, step=step) == []


def test_each_part_of_one_that_builds_upon_another(good, tmp_path):
    """And each part of that other one."""
    full, path = tmp_path / "full.pod", tmp_path / "x.pod"
    shutil.copyfile(good, full)
    archives.make_since(path, full, pages=archives.page(3) + archives.PAGES, layers=[], model=MODEL)
    assert use(path, TRUSTED) is None
    step = max(1, 307 // TIMES)
    assert sweep(path.read_bytes(), path, TRUSTED, step=step) == []
    archives.make_since(path, good, pages=archives.page(3) + archives.PAGES, layers=[], model=MODEL)
    data, accepted = full.read_bytes(), []
    for at in range(0, len(data), step):
        full.write_bytes(data[:at] + bytes([data[at] ^ 1 << at // step % 8]) + data[at + 1 :])
        if use(path, TRUSTED) is None:
            accepted.append(at)
    assert accepted == []


def test_each_part_of_an_encrypted_archive(tmp_path):
    path = tmp_path / "sealed.pod"
    archives.make(path, recipients=[ALICE.public_key()], layers=[("1" * 32, TAR)], model=MODEL)
    data, step = path.read_bytes(), max(1, 509 // TIMES)
    assert use(path, TRUSTED, [ALICE]) is None
    assert sweep(data, path, TRUSTED, step=step, identities=[ALICE]) == []
    assert sweep(data, path, TRUSTED, step=step, identities=None) == []


# --- each parser alone -----------------------------------------------------------------------


def refuses(call):
    try:
        call()
    except ArchiveError:
        return True
    return False


@fuzz(30)
@given(st.data())
def test_the_tar(tmp_path, data):
    whole = container.header("oci-layout", 3) + b"abc" + bytes(509 + 1024)
    (tmp_path / "x").write_bytes(damage(data.draw, whole))
    with (tmp_path / "x").open("rb") as file:
        refuses(lambda: container.members(file.fileno()))


@fuzz(30)
@given(st.data(), st.binary(max_size=300))
def test_the_envelope(data, manifest):
    envelope = dsse.sign(manifest, archives.KEY, archives.KEYID)
    damaged = damage(data.draw, envelope)
    assert damaged == envelope or refuses(lambda: dsse.verify(manifest, damaged, TRUSTED))
    assert dsse.verify(manifest, envelope, TRUSTED) == archives.KEYID


@fuzz(30)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8),
    st.integers(0, 12),
    st.integers(0, 4),
    st.binary(max_size=12),
)
def test_the_page_map(runs, unique, below, more):
    packed = b"".join(struct.pack("<II", *run) for run in runs) + more

    def decode():
        found = PageMap(packed, unique, below)
        for first, count in found.runs(0, found.count):
            assert 0 <= first < first + count <= below + unique

    refuses(decode)


@fuzz(30)
@given(st.data(), st.integers(-1, 1 << 60), st.integers(0, 1 << 40))
def test_frames_and_their_table(data, length, size):
    content = bytes(1000)
    frame, entry = frames.compress(content)
    refuses(lambda: frames.table(length, size, damage(data.draw, entry)))
    damaged = damage(data.draw, frame)
    entry = struct.pack("<I32s", len(damaged), hashlib.sha256(damaged).digest())
    if damaged:
        [told] = frames.table(1000, len(damaged), entry)
        refuses(lambda: frames.decompress(told, damaged))


@fuzz(30)
@given(st.data())
def test_layers(data):
    refuses(lambda: list(_view(damage(data.draw, TAR)).files()))


def _view(tar):
    view = View()
    view.add_layer(iter([tar[:700], tar[700:]]), "layer")
    return view


@fuzz(30)
@given(st.data())
def test_what_is_encrypted(data):
    encryption, cipher = crypt.encrypt([ALICE.public_key()], archives.KEYID)
    changed = mutate(data.draw, msgspec.to_builtins(encryption))

    def decrypt():
        converted = msgspec.convert(changed, schema.Encryption)
        assert crypt.decrypt(converted, [ALICE], archives.KEYID) is None or (
            converted.scheme == schema.SCHEME
        )

    with contextlib.suppress(msgspec.ValidationError):  # the manifest would have been refused
        refuses(decrypt)
    sealed = cipher.blob(0).seal_all(b"secret")
    damaged = damage(data.draw, sealed)
    assert damaged == sealed or refuses(lambda: cipher.blob(0).open_all(damaged))
    assert refuses(lambda: BlobCipher(bytes(32)).open_all(sealed))


@fuzz(30)
@given(st.data())
def test_configurations(tmp_path, data):
    text = b'hostname = "mail"\n[limits]\nmemory = "1G"\n[network]\naddress = "192.0.2.1/24"\n'
    with contextlib.suppress(config.ConfigError):
        config.parse(damage(data.draw, text), "mail", tmp_path / "mail.toml")
