"""Root trees for pods: a full Debian, and trees reduced to one program.

Both are kept below CACHE under a name that carries a digest of what they are made from, and appear
there complete or not at all. They are lower layers: read only, shared by every pod, never changed.
"""

import contextlib
import fcntl
import hashlib
import inspect
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from examples import contents

CACHE = Path("/var/cache/autopod/roots")
PACKAGES = ("apache2", "exim4-daemon-light", "media-types", "procps", "python3")
SERVERS = (
    "nginx-light", "nodejs", "postgresql-15", "postgresql-contrib", "procps", "python3",
    "redis-server", "socat", "vim",
)  # fmt: skip
_NOT_NEEDED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")


class BuildError(Exception):
    """A root tree could not be made; the text says why."""


def debian(packages: Iterable[str] = PACKAGES) -> Path:
    """Return a full Debian tree, of the host's release, with *packages*; build it if needed.

    Raises:
        BuildError: mmdebstrap failed, or the host has no Debian package source.
    """
    argv = ["mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory"]
    argv += [f"--include={','.join(sorted(packages))}"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_NEEDED]
    return _cached("debian", [*argv, _release()], lambda target: _bootstrap(argv, target))


@dataclass(frozen=True, slots=True)
class Selection:
    """What a reduced tree takes from a full one. All paths are absolute, inside the tree.

    Attributes:
        programs: executables; the shared libraries that they load come with them.
        files: other files; libraries that a program opens only at run time belong here.
        directories: taken empty, with owner and mode.
        trees: taken with everything below them.
        accounts: the users and groups that /etc/passwd, group and shadow shall keep.
    """

    programs: tuple[str, ...]
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    accounts: frozenset[str] = frozenset()


def reduced(
    name: str,
    full: Path,
    selection: Selection,
    added: Mapping[Path, str],
    finish: Callable[[Path], None],
) -> Path:
    """Return a tree with nothing but *selection* of the tree *full*, and *added*; build if needed.

    Args:
        name: first part of the tree's name in the cache.
        full: where everything selected is taken from.
        selection: what is taken.
        added: for a directory of this project, the directory of the tree that its files go to.
        finish: adds what files cannot say (owners, users). Its module is one of the tree's inputs.

    Raises:
        BuildError: something selected does not exist, or a library is missing.
    """
    sources = {
        f"{place}/{source.relative_to(directory)}": source.read_bytes()
        for directory, place in added.items()
        for source in sorted(directory.rglob("*"))
        if source.is_file()
    }

    def build(target: Path) -> None:
        _reduce(full, target, selection)
        contents.record(full, target)
        for place, content in sources.items():
            (target / place).write_bytes(content)
        finish(target)

    modules = [Path(inspect.getfile(one)).read_text() for one in (finish, contents)]
    digests = [f"{place} {hashlib.sha256(text).hexdigest()}" for place, text in sources.items()]
    return _cached(name, [full.name, *modules, *digests], build)


def main(build: Callable[[], Path]) -> int:
    """Be the command line of an example's tree: build it and print its path."""
    try:
        print(build())
    except BuildError as e:
        print(f"build: error: {e}", file=sys.stderr)
        return 1
    return 0


def in_network(network: int, module: str) -> Path:
    """Build the tree of *module*, which has called main(), in another network namespace.

    Args:
        network: a descriptor of the namespace in which packages can be fetched.
        module: `examples.exim.build`, for one.

    Raises:
        BuildError: it could not be made; the module has said why.
    """
    argv = ["nsenter", f"--net=/proc/self/fd/{network}", sys.executable, "-m", module]
    run = subprocess.run(argv, pass_fds=[network], stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode != 0:
        raise BuildError("the root tree could not be built; it says why above")
    return Path(run.stdout.strip())


def add_account(root: Path, user: str, uid: int, *, group: str) -> None:
    """Add *user* (no password, no shell, an empty home) to the tree *root*."""
    gid = _group_id(root, group)
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write(f"{user}:x:{uid}:{gid}::/home/{user}:/usr/sbin/nologin\n")
    home = root / "home" / user
    home.mkdir(parents=True, mode=0o700)
    os.chown(home, uid, gid)


def _group_id(root: Path, group: str) -> int:
    for line in (root / "etc/group").read_text().splitlines():
        if line.startswith(f"{group}:"):
            return int(line.split(":")[2])
    raise BuildError(f"{root}/etc/group has no group {group!r}")


# --- the cache -----------------------------------------------------------------------------


def _cached(name: str, inputs: list[str], build: Callable[[Path], None]) -> Path:
    """Return CACHE/name-DIGEST, made by *build* in a neighbouring directory and then renamed."""
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:12]
    final = CACHE / f"{name}-{digest}"
    if final.is_dir():
        return final
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / f".{final.name}.lock"):
        if not final.is_dir():
            partial = CACHE / f".{final.name}.partial"
            _remove(partial)
            umask = os.umask(0o022)
            try:
                build(partial)
                partial.rename(final)
            finally:
                os.umask(umask)
                _remove(partial)
    return final


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(tree: Path) -> None:
    if tree.is_symlink() or tree.exists():
        shutil.rmtree(tree)


# --- a full Debian -------------------------------------------------------------------------


def _release() -> str:
    """The host's Debian release, as its package sources name it."""
    text = Path("/etc/os-release").read_text()
    match = re.search(r"^VERSION_CODENAME=(\S+)$", text, re.MULTILINE)
    if match is None:
        raise BuildError("/etc/os-release names no VERSION_CODENAME: is this Debian?")
    return shlex.split(match[1])[0]


def _bootstrap(argv: list[str], target: Path) -> None:
    """Run mmdebstrap with the host's own package sources; its progress goes to the terminal."""
    sources = _package_sources()
    run = subprocess.run([*argv, _release(), target, "-"], input=sources, text=True, check=False)
    if run.returncode != 0:
        raise BuildError(f"mmdebstrap failed with status {run.returncode}; it says why above")
    for copied in ("etc/hostname", "etc/resolv.conf"):  # the host's: no business of a pod
        (target / copied).unlink(missing_ok=True)


def _package_sources() -> str:
    """The host's Debian archives as sources.list(5) lines.

    apt itself names them, whichever of its file formats and mirrors the host uses. Where the
    indexes were never fetched it does not know an archive's origin yet.
    """
    for attempt in range(2):
        if attempt:
            subprocess.run(["apt-get", "update", "-q"], check=False, stdout=sys.stderr)
        lines = _debian_archives()
        if lines:
            return "".join(f"{line}\n" for line in lines)
    raise BuildError(f"apt knows no Debian archive of the release {_release()!r}")


def _debian_archives() -> list[str]:
    fields = "$(ORIGIN)|$(CODENAME)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    argv = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    rows = [line.split("|") for line in listed.splitlines()]
    ours = (_release(), f"{_release()}-updates", f"{_release()}-security")
    return list(dict.fromkeys(row[2] for row in rows if row[0] == "Debian" and row[1] in ours))


# --- a tree reduced to one program ---------------------------------------------------------


def _reduce(full: Path, target: Path, selection: Selection) -> None:
    target.mkdir()
    copier = _Copier(full, target)
    for name in ("/dev", "/proc", "/run", "/sys", "/tmp"):  # noqa: S108 - the pod's own
        copier.take(name)
    for name in (*selection.directories, "/etc/nsswitch.conf", *selection.files):
        copier.take(name)
    for name in selection.programs:
        copier.take(name)
        for library in _libraries(full, name):
            copier.take(library)
    for name in selection.trees:
        for directory, _, files in os.walk(full / name.lstrip("/")):
            inside = f"/{os.path.relpath(directory, full)}"
            copier.take(inside)
            for file in files:
                copier.take(f"{inside}/{file}")
    for table in ("passwd", "group", "shadow"):
        _copy_accounts(full, target, f"etc/{table}", selection.accounts)


def _libraries(full: Path, program: str) -> list[str]:
    """The shared libraries of *program*, as the tree's own dynamic loader finds them.

    libgcc_s comes along always: glibc opens it only when a thread is cancelled, and aborts
    without it.
    """
    loader = "/lib64/ld-linux-x86-64.so.2"
    argv = ["chroot", os.fspath(full), loader, "--list", program]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise BuildError(f"{program}: {run.stderr.strip() or run.stdout.strip()}")
    found = re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", run.stdout, re.MULTILINE)
    return [*found, loader, "/lib/x86_64-linux-gnu/libgcc_s.so.1"]


def _copy_accounts(full: Path, target: Path, table: str, names: frozenset[str]) -> None:
    lines = (full / table).read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split(":")[0] in names]
    (target / table).write_text("".join(kept))
    _copy_owner_and_mode(full / table, target / table)


def _copy_owner_and_mode(source: Path, target: Path) -> None:
    status = source.lstat()
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not target.is_symlink():
        target.chmod(stat.S_IMODE(status.st_mode))  # after chown, which clears set-id bits


class _Copier:
    """Copies paths from one tree to another, with every symbolic link and directory on the way."""

    def __init__(self, full: Path, target: Path) -> None:
        self._full = full
        self._target = target

    def take(self, path: str) -> None:
        """Copy *path* itself; of a directory nothing but the directory."""
        todo = [part for part in path.split("/") if part]
        done: list[str] = []
        for _ in range(100):  # bounds a loop of symbolic links
            if not todo:
                return
            part = todo.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            link = self._copy_one("/".join([*done, part]))
            if link is None:
                done.append(part)
                continue
            if link.startswith("/"):
                done = []
            todo = [step for step in link.split("/") if step not in ("", ".")] + todo
        raise BuildError(f"too many levels of symbolic links: {path}")

    def _copy_one(self, path: str) -> str | None:
        """Copy the one object at *path*; return where it points if it is a symbolic link."""
        source, target = self._full / path, self._target / path
        try:
            mode = source.lstat().st_mode
        except FileNotFoundError:
            raise BuildError(f"no /{path} in {self._full}") from None
        if not os.path.lexists(target):
            if stat.S_ISLNK(mode):
                target.symlink_to(source.readlink())
            elif stat.S_ISDIR(mode):
                target.mkdir()
            else:
                shutil.copy2(source, target)
            _copy_owner_and_mode(source, target)
        return os.readlink(source) if stat.S_ISLNK(mode) else None
