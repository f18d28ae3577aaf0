"""A machine that keeps a disk when it reboots: a guest of the lab, with a disk image.

Of the lab it asks, besides what tests/kernels/lab.py says:

    LAB boot … --lan LAN --ip A.B.C.D/N           # in a network with this machine
    LAB monitor NAME COMMAND                      # a command of qemu's monitor
    LAB list                                      # lines of NAME KERNEL running|stopped
    LAB lan LAN                                   # prints the network namespace that LAN is here

On the disk is what is the machine's own: its packages' database, /boot, what apt asks, all of
AutoPod. The rest of its root directory is this machine's, as it is to every guest.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.kernels.lab import Lab, LabError

ADDRESS = "10.77.0.11"
WEB = "10.98.0.20"
"""Apache's, by examples/apache/pod.toml."""
LABEL = "ap-reboot"
DISK = Path("/disk")
"""Where it is mounted in the machine."""
OWN = (
    "autopod", "boot", "etc/apt", "etc/autopod", "var/cache/autopod", "var/lib/apt",
    "var/lib/autopod", "var/lib/dpkg",
)  # fmt: skip
"""What of its root directory is on the disk."""
_SIZE = "2G"
_OFF_S = 1800


class Machine:
    """The guest *name*, at *address* in the network *lan*, and its disk image at *disk*."""

    def __init__(
        self, lab: Lab, name: str, disk: Path, lan: str | None = None, address: str = ADDRESS
    ) -> None:
        self.name, self.address = name, address
        self.lan = name if lan is None else lan
        self._lab, self._disk = lab, disk

    def format(self, staged: Path) -> None:
        """Make the disk, with what is in the directory *staged*."""
        argv = ["mke2fs", "-q", "-t", "ext4", "-L", LABEL, "-d", staged, self._disk, _SIZE]
        subprocess.run(argv, check=True)

    def boot(self, kernel: str) -> None:
        """Switch it on; then its own disk is mounted.

        Raises:
            LabError: it does not boot, or has no disk.
        """
        self._lab.call("stop", self.name)  # what a guest that has ended by itself may have left
        self._lab.boot(self.name, kernel, "--lan", self.lan, "--ip", f"{self.address}/24")
        drive = f"drive_add 0 file={self._disk},if=none,id=disk,format=raw"
        self._lab.call("monitor", self.name, drive)
        self._lab.call("monitor", self.name, "device_add virtio-blk-pci,drive=disk")
        self.run("mount")

    def run(self, verb: str, *words: object, seconds: float = 1500) -> str:
        """Do a verb of tests/reboot/guest.py in it; return what it prints.

        Raises:
            LabError: it fails, or takes too long.
        """
        argv = [sys.executable, "-m", "tests.reboot.guest", verb, *words]
        return self._lab.run_in(self.name, argv, seconds)

    def is_on(self) -> bool:
        """Return whether it runs."""
        rows = [line.split() for line in self._lab.call("list").splitlines()]
        return any(row[0] == self.name and row[-1] == "running" for row in rows if row)

    def wait_off(self, failed) -> None:
        """Wait until it is off; *failed()* tells, meanwhile, why it will never be.

        Raises:
            LabError: it stays on.
        """
        deadline = time.monotonic() + _OFF_S
        while self.is_on():
            if why := failed():
                raise LabError(f"the machine stays on: {why}")
            if time.monotonic() > deadline:
                raise LabError(f"the machine is still on after {_OFF_S} s")
            time.sleep(1)

    def boots(self) -> str:
        """Return the release of the kernel that the boot loader takes: /boot/boots has it.

        Raises:
            LabError: the disk does not say.
        """
        # A boot loader reads the disk as it is: what only the journal has comes first.
        subprocess.run(["e2fsck", "-p", "-E", "journal_only", self._disk], check=False)
        argv = ["debugfs", "-R", "cat /boot/boots", self._disk]
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        if not said:
            raise LabError("the disk has no kernel to boot")
        return said

    def stop(self) -> None:
        """Pull the plug."""
        self._lab.call("stop", self.name)


def stage(target: Path, trees: dict[str, Path]) -> None:
    """Put together what is on the disk at first, in the directory *target*.

    Args:
        target: is made.
        trees: root trees for pods, by name.
    """
    for path in OWN:
        (target / path).mkdir(parents=True)
    shutil.copytree("/var/lib/dpkg", target / "var/lib/dpkg", symlinks=True, dirs_exist_ok=True)
    status = target / "var/lib/dpkg/status"
    packages = status.read_text().split("\n\n")
    # This machine may have a kernel's package, whose kernel the guest does not run.
    status.write_text("\n\n".join(one for one in packages if "Package: linux-image-" not in one))
    for name, tree in trees.items():
        (target / "roots").mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", tree, target / "roots" / name], check=True)
