"""A signed archive of Debian packages, made on the spot with Debian's own tools."""

import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

from examples.exim.mail import wait_until

SUITE = "bookworm-security"
OLD, NEW = "6.1.0-40-amd64", "6.1.0-41-amd64"
ACT = """
[act]
enabled = true
blocked_by_users = false
install = ["{0}/install", "{{packages}}"]
reboot = ["{0}/reboot"]
"""
"""What a policy says of a host that installs and reboots by programs of the test's, in {0}."""

POLICY = """\
[apt]
changelogs_s = 0

[apt.options]
"Dir::Etc::sourcelist" = "{0}/sources.list"
"Dir::Etc::sourceparts" = "/dev/null"
"APT::Architecture" = "amd64"
"APT::Sandbox::User" = "root"
"Acquire::Retries" = "0"

[host]
running_kernel = ["cat", "{0}/running"]
boot_id = ["cat", "{0}/boot"]
reboot_required = "{0}/reboot-required"
dpkg_status = "{0}/status"

[service]
every_s = 0
"""
CHANGELOG = """\
linux ({new}) bookworm-security; urgency=high

  * net: a use after free (CVE-2026-12345), see DSA-6001-1

 -- A Maintainer <m@example.org>  Mon, 02 Nov 2026 10:00:00 +0000

linux ({old}) bookworm; urgency=medium

  * an older one (CVE-2020-1111)

 -- A Maintainer <m@example.org>  Mon, 02 Mar 2026 10:00:00 +0000
"""


def run(*argv, **more):
    return subprocess.run(argv, check=True, capture_output=True, **more).stdout


class Keys:
    """Two key pairs: the archive's, and somebody else's."""

    def __init__(self, home):
        self.home = home
        home.chmod(0o700)
        for name in ("archive", "stranger"):
            self._gpg("--passphrase", "", "--quick-gen-key", name, "ed25519", "sign", "never")
        self.public = home / "archive.gpg"
        self.public.write_bytes(self._gpg("--export", "archive"))

    def sign(self, text, name):
        return self._gpg("--local-user", name, "--clearsign", input=text.encode())

    def close(self):
        """End gpg's agent, which outlives the command that has started it."""
        run("gpgconf", "--homedir", self.home, "--kill", "all")
        wait_until(lambda: not (self.home / "S.gpg-agent").exists(), "gpg's agent has gone")

    def _gpg(self, *argv, **more):
        return run("gpg", "--homedir", self.home, "--batch", "--quiet", *argv, **more)


class Repository:
    """The archive in *home*."""

    def __init__(self, home, keys):
        self.home, self.keys = home, keys
        self.suite = home / "dists" / SUITE
        self.pool = home / "pool/main"
        self.pool.mkdir(parents=True)
        self.controls = {}
        self.published = 0

    def add(self, package, version, files=None, **fields):
        """Build a package of *files*, texts by their paths, `DEBIAN/postinst` for a script."""
        tree = self.home / "build"
        (tree / "DEBIAN").mkdir(parents=True)
        for path, text in (files or {}).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
            (tree / path).chmod(0o755)
        known = {"Maintainer": "M <m@example.org>", "Architecture": "amd64", "Description": "-"}
        text = {"Package": package, "Version": version, **known, **fields}
        control = "".join(f"{key}: {value}\n" for key, value in text.items())
        (tree / "DEBIAN/control").write_text(control)
        self.controls[package, version] = control
        run("dpkg-deb", "--build", "-Znone", tree, self.pool / f"{package}_{version}.deb")
        shutil.rmtree(tree)

    def publish(self, *, key="archive", age=timedelta(), label="Debian-Security", valid_days=7):
        """Write its index and its Release file; *key* None: unsigned.

        Each is later than the one before by whole seconds, which is all that apt compares.
        """
        self.published += 10
        index = self.suite / "main/binary-amd64"
        index.mkdir(parents=True, exist_ok=True)
        packages = run("apt-ftparchive", "packages", "pool", cwd=self.home)
        (index / "Packages").write_bytes(packages)
        for name in ("Release", "InRelease"):
            (self.suite / name).unlink(missing_ok=True)
        said = run("apt-ftparchive", "release", self.suite).decode()
        sums = said[said.index("MD5Sum:") :]
        made = datetime.now(UTC) - timedelta(hours=1) + timedelta(seconds=self.published) - age
        form = "%a, %d %b %Y %H:%M:%S UTC"
        until = f"Valid-Until: {made + timedelta(valid_days):{form}}\n" if valid_days else ""
        text = (
            f"Origin: Debian\nLabel: {label}\nSuite: oldstable-security\nCodename: {SUITE}\n"
            f"Date: {made:{form}}\n{until}Architectures: amd64\nComponents: main\n"
            f"Changelogs: copy:{self.home}/changelogs/@CHANGEPATH@\n{sums}"
        )
        release = self.suite / ("InRelease" if key else "Release")
        release.write_bytes(self.keys.sign(text, key) if key else text.encode())
        for path in (index / "Packages", release):
            os.utime(path, (made.timestamp(), made.timestamp()))

    def changelog(self, path, **versions):
        file = self.home / "changelogs" / path
        file.parent.mkdir(parents=True)
        file.write_text(CHANGELOG.format(**versions))

    def truncate(self):
        file = self.suite / "main/binary-amd64/Packages"
        os.truncate(file, file.stat().st_size // 2)

    def installed(self, *packages):
        """What dpkg's status file has when *packages*, of name and version, are installed."""
        said = (f"{self.controls[one]}Status: install ok installed\n" for one in packages)
        return "\n".join(said)


def prepare(prefix, keys):
    """Make a host of which kernel 40 runs, and an archive that has nothing newer; return that."""
    made = with_old_kernel(prefix / "archive", keys)
    use(prefix, made)
    return made


def with_old_kernel(home, keys):
    """Make an archive that has kernel 40."""
    made = Repository(home, keys)
    made.add("linux-image-amd64", "6.1.90-1", Depends=f"linux-image-{OLD}", Source="linux")
    made.add(f"linux-image-{OLD}", "6.1.90-1", Source="linux")
    made.add("libthing1", "1.0")
    made.publish()
    return made


def use(prefix, made):
    """Let a host of which kernel 40 runs ask an archive."""
    (prefix / "sources.list").write_text(
        f"deb [signed-by={made.keys.public}] file:{made.home} {SUITE} main\n"
    )
    (prefix / "running").write_text(f"{OLD} #1 SMP PREEMPT_DYNAMIC Debian 6.1.90-1 (2024-05-03)\n")
    (prefix / "boot").write_text("first\n")
    (prefix / "etc/autopod").mkdir(parents=True, exist_ok=True)
    (prefix / "etc/autopod/autopod.toml").write_text(POLICY.format(prefix))
    install(prefix / "status", made, OLD, "6.1.90-1")


def install(file, archive, kernel, version):
    """Write dpkg's status *file* of a host that has that kernel."""
    packages = (("linux-image-amd64", version), (f"linux-image-{kernel}", version))
    file.write_text(archive.installed(*packages, ("libthing1", "1.0")))


def new_kernel(archive, files=None):
    archive.add("linux-image-amd64", "6.1.158-1", Depends=f"linux-image-{NEW}", Source="linux")
    archive.add(f"linux-image-{NEW}", "6.1.158-1", files, Source="linux")
    archive.changelog("main/l/linux/linux_6.1.158-1", new="6.1.158-1", old="6.1.90-1")
