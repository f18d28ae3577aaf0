"""Pipes: content, capacity, packets, one-sided ends, other descriptions, across processes."""

import fcntl
import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


r, w = os.pipe()
fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 1 << 18)
os.write(w, b"a" * 200_000)
again = os.open(f"/proc/self/fd/{r}", os.O_RDONLY | os.O_NONBLOCK)
packets_r, packets_w = os.pipe2(os.O_DIRECT)
fcntl.fcntl(packets_r, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
for packet in (b"one", b"two"):
    os.write(packets_w, packet)
ended_r, ended_w = os.pipe()
os.write(ended_w, b"rest")
os.close(ended_w)
broken_r, broken_w = os.pipe()
os.close(broken_r)
answer_r, answer_w = os.pipe()
question_r, question_w = os.pipe()
child = os.fork()
if child == 0:
    os.close(question_w)
    os.write(answer_w, os.read(question_r, 100).upper())
    os._exit(0)
os.close(question_r)


def flags():
    """What F_GETFL tells of each end; O_LARGEFILE, of those that were opened through /proc."""
    ends = (r, w, again, packets_r, packets_w, ended_r, broken_w, answer_r, question_w)
    return [fcntl.fcntl(end, fcntl.F_GETFL) for end in ends]


before = flags()

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert flags() == before, [list(map(oct, each)) for each in (before, flags())]
assert fcntl.fcntl(r, fcntl.F_GETPIPE_SZ) == 1 << 18
data = b""
while len(data) < 200_000:
    data += os.read(again, 200_000)
assert data == b"a" * 200_000
assert os.get_blocking(r)
assert os.read(packets_r, 100) == b"one"
assert os.read(packets_r, 100) == b"two"
assert os.read(ended_r, 10) + os.read(ended_r, 10) == b"rest"
try:
    os.write(broken_w, b"x")
except BrokenPipeError:
    pass
else:
    raise AssertionError("a pipe without readers took a byte")
os.write(question_w, b"question")
assert os.read(answer_r, 100) == b"QUESTION"
assert os.waitpid(child, 0)[1] == 0

print("ok", flush=True)
