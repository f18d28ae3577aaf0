"""Private, shared and file-backed memory keeps its content, its sharing and its protections."""

import mmap
import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

private = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 64, 2):
    private[page * 4096 : page * 4096 + 8] = page.to_bytes(8, "little")
shared = mmap.mmap(-1, 16 * 4096)
shared[:6] = b"before"
shared[15 * 4096 :] = b"x" * 4096

with open("/tmp/memory.data", "wb+") as file:
    file.write(b"a" * 8192)
    file.flush()
    of_file = mmap.mmap(file.fileno(), 8192, mmap.MAP_SHARED)
    copied = mmap.mmap(file.fileno(), 8192, mmap.MAP_PRIVATE)
of_file[:4] = b"here"
copied[4096:4100] = b"mine"
big = bytearray(os.urandom(1 << 20))
digest = hash(bytes(big))

pid = os.fork()
if pid == 0:
    signal.sigwait({signal.SIGUSR1})
    shared[:6] = b"after!"
    os._exit(7)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


def check(condition, what):
    if not condition:
        print(f"fail: {what}", flush=True)
        sys.exit(1)


for page in range(64):
    want = page.to_bytes(8, "little") if page % 2 == 0 else bytes(8)
    check(private[page * 4096 : page * 4096 + 8] == want, f"private page {page}")
check(shared[:6] == b"before", "content of shared memory")
check(shared[15 * 4096 :] == b"x" * 4096, "end of shared memory")
os.kill(pid, signal.SIGUSR1)
check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7, "status of the child")
check(shared[:6] == b"after!", "what the child wrote to shared memory")
of_file[:5] = b"there"
with open("/tmp/memory.data", "rb") as file:
    content = file.read()
check(content[:5] == b"there" and content[4096:] == b"a" * 4096, "the mapped file")
check(copied[4096:4100] == b"mine" and copied[4100:] == b"a" * 4092, "the private mapping of it")
check(hash(bytes(big)) == digest, "the heap")
print("ok", flush=True)
