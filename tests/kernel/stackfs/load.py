"""Work that checks itself, in one directory of a mount: each kind goes on until it is told to stop.

Usage: load.py KIND DIRECTORY MIRROR. MIRROR is an empty directory on another file system. Ends at
end of file on standard input, and prints how often it went round; any wrong answer is a traceback
and status 1.
"""

import errno
import fcntl
import mmap
import os
import random
import select
import sqlite3
import subprocess
import sys
from pathlib import Path


def names(top, mirror, rng):
    """Make, move, link and remove names; the same is done on another file system."""
    paths = [f"{a}{b}" for a in ("", "d/", "e/", "d/f/") for b in "abcd"]

    def both(call):
        def ended(at):
            try:
                return call(at)
            except OSError as e:
                return errno.errorcode[e.errno]

        here, there = ended(top), ended(mirror)
        assert here == there, (call.__doc__, here, there)

    def write(at, path, text):
        fd = os.open(at / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK)
        with open(fd, "w") as file:
            file.write(text)

    for round_ in range(150):
        one, two = rng.choice(paths), rng.choice(paths)
        for call in rng.sample(
            [
                lambda at, p=one: os.mkdir(at / p),
                lambda at, p=one, n=round_: write(at, p, f"{n}"),
                lambda at, p=one, q=two: os.rename(at / p, at / q),
                lambda at, p=one, q=two: os.link(at / p, at / q),
                lambda at, p=one: os.symlink("x", at / p),
                lambda at, p=one: os.unlink(at / p),
                lambda at, p=one: os.rmdir(at / p),
                lambda at, p=one: os.mkfifo(at / p),
                lambda at, p=one: os.setxattr(at / p, "user.x", b"1", os.XATTR_CREATE),
                lambda at, p=one: os.removexattr(at / p, "user.x"),
                lambda at, p=one, n=round_: os.chmod(at / p, 0o700 | n % 64),
                lambda at, p=one: sorted(os.listdir(at / p)),
                lambda at, p=one: Path(at / p).read_text() if (at / p).is_file() else None,
            ],
            4,
        ):
            both(call)
    seen = [
        sorted((p.relative_to(at).as_posix(), p.lstat().st_mode, p.lstat().st_nlink) for p in all_)
        for at, all_ in ((top, top.rglob("*")), (mirror, mirror.rglob("*")))
    ]
    files = [[e for e in found if not e[1] & 0o040000] for found in seen]
    assert files[0] == files[1]
    assert [e[:2] for e in seen[0]] == [e[:2] for e in seen[1]]


def contents(top, mirror, rng):
    """Write, read, truncate and map one file; memory says what must be in it."""
    path, size = top / "contents", 1 << 18
    model = bytearray()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for _ in range(120):
        at, count = rng.randrange(size), rng.randrange(1, 1 << 14)
        kind = rng.randrange(6)
        if kind == 0:
            data = rng.randbytes(count)
            model.extend(bytes(max(0, at + count - len(model))))
            model[at : at + count] = data
            assert os.pwrite(fd, data, at) == count
        elif kind == 1:
            assert os.pread(fd, count, at) == model[at : at + count]
        elif kind == 2:
            model[at:] = bytes(max(0, at - len(model)))
            os.ftruncate(fd, at)
        elif kind == 3 and at < len(model):
            with mmap.mmap(fd, len(model)) as mapped:
                data = rng.randbytes(min(count, len(model) - at))
                mapped[at : at + len(data)] = model[at : at + len(data)] = data
        elif kind == 4:
            os.fsync(fd)
        else:
            with open(path, "rb") as file:
                assert file.read() == model
        assert os.fstat(fd).st_size == len(model)
    os.close(fd)


def database(top, mirror, rng):
    """Transfer between accounts in transactions."""
    with_new = not (top / "db").exists()
    db = sqlite3.connect(top / "db", isolation_level=None, timeout=60)
    if with_new:
        db.execute("PRAGMA journal_mode = WAL" if rng.random() < 0.5 else "PRAGMA user_version = 1")
        db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, sum INTEGER, pad BLOB)")
        db.executemany(
            "INSERT INTO account VALUES (?, 100, ?)", [(i, b"x" * 200) for i in range(99)]
        )
    for _ in range(10):
        db.execute("BEGIN IMMEDIATE")
        one, two = rng.sample(range(99), 2)
        db.execute("UPDATE account SET sum = sum - 1 WHERE id = ?", (one,))
        db.execute(
            "UPDATE account SET sum = sum + 1, pad = ? WHERE id = ?", (rng.randbytes(300), two)
        )
        db.execute("COMMIT")
    assert db.execute("SELECT sum(sum) FROM account").fetchone() == (9900,)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def unlinked(top, mirror, rng):
    """Keep files that have lost their names, and locks on one that has not."""
    lock = os.open(top / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    files = []
    for number in range(20):
        fd = os.open(top / f"u{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"%d" % number * 100)
        os.unlink(top / f"u{number}")
        files.append(fd)
    other = os.open(top / "lock", os.O_RDWR)
    for number, fd in enumerate(files):
        assert os.pread(fd, 1000, 0) == b"%d" % number * 100
        assert os.fstat(fd).st_nlink == 0
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise AssertionError("the lock was lost")
        except BlockingIOError:
            pass
    for fd in (*files, lock, other):
        os.close(fd)


def listings(top, mirror, rng):
    """List a directory in pieces while other names in it come and go."""
    at = top / "listed"
    if not at.exists():
        at.mkdir()
        for number in range(400):
            (at / f"stays{number:03}").touch()
    found = []
    with os.scandir(at) as entries:
        for index, entry in enumerate(entries):
            found.append(entry.name)
            if index % 20 == 0:
                (at / f"comes{rng.randrange(10)}").touch()
                (at / f"comes{rng.randrange(10)}").unlink(missing_ok=True)
    stays = [name for name in found if name.startswith("stays")]
    assert len(set(found)) == len(found), "a name was told twice"
    assert sorted(stays) == [f"stays{number:03}" for number in range(400)]


def program(top, mirror, rng):
    """Compile a program and run it."""
    source = 'int main(void){return printf("%d\\n",' + str(rng.randrange(1000)) + ")<0;}\n"
    (top / "p.c").write_text("#include <stdio.h>\n" + source)
    subprocess.run(["gcc", "-O0", "-o", top / "p", top / "p.c"], check=True)
    done = subprocess.run([top / "p"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() in source


def repository(top, mirror, rng):
    """Commit to a git repository and have it checked."""

    def git(*arguments):
        argv = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", top / "git"]
        subprocess.run([*argv, *arguments], check=True, capture_output=True)

    if not (top / "git").exists():
        (top / "git").mkdir()
        git("init", "-q")
    for number in range(5):
        (top / f"git/file{number}").write_text(str(rng.random()))
    git("add", "-A")
    git("commit", "-q", "-m", "x")
    git("fsck", "--strict")
    if rng.random() < 0.2:
        git("gc", "-q")


def main():
    kind, top, mirror = globals()[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
    rng = random.Random(sys.argv[1])
    rounds = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        kind(top, mirror, rng)
        rounds += 1
    print(rounds)


main()
