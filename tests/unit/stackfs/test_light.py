"""What the commands import: each start pays for it."""

import subprocess
import sys

ALONE = """\
import sys

def watch(event, arguments):
    if event == "subprocess.Popen":
        raise SystemExit(f"begins {arguments[1]}")

sys.addaudithook(watch)
from stackfs import light
light.import_trio()
from trio._core import _thread_cache
assert _thread_cache.set_os_thread_name is not None
"""


def test_trio_is_imported_without_another_process():
    subprocess.run([sys.executable, "-c", ALONE], check=True)
