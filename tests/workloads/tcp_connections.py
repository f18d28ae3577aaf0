"""Open TCP connections of the pod with itself: busy, idle, half-closed, shared by processes."""

import os
import select
import signal
import socket
import sys
import threading

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)

AMOUNT = 30_000_000


def connect(host, **options):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, **options) as listener:
        client = socket.create_connection(
            (host.replace("::", "::1") if host == "::" else host, listener.getsockname()[1])
        )
        return client, listener.accept()[0]


def byte(at):
    return at * 7 % 251


def sender(s):
    block = bytes(map(byte, range(251))) * 100
    sent = 0
    while sent < AMOUNT:
        sent += s.send(block[sent % 251 :][: AMOUNT - sent])
    s.shutdown(socket.SHUT_WR)


def receiver(s, results):
    """Reads all the time, also while the pod is checkpointed."""
    expected = bytes(map(byte, range(251))) * 300
    got = 0
    while data := s.recv(65536):
        assert data == expected[got % 251 :][: len(data)], f"wrong after {got}"
        got += len(data)
        if got > AMOUNT // 3:
            held.wait()  # the rest of it fills the buffers until then
    results.append(got)


held = threading.Event()
results = []
busy = [connect("127.0.0.1"), connect("::1"), connect("::", dualstack_ipv6=True)]
threads = [threading.Thread(target=sender, args=(one,)) for one, _ in busy]
threads += [threading.Thread(target=receiver, args=(other, results)) for _, other in busy]
for thread in threads:
    thread.start()

idle, server = connect("127.0.0.1")
child = os.fork()
if child == 0:
    # The same connection in another process; the parent has a second descriptor of it.
    while data := server.recv(100):
        server.sendall(data.upper())
    server.sendall(b"the child has seen the end")
    os._exit(0)
twin = idle.dup()
names = idle.getsockname(), idle.getpeername()

ended, half = connect("127.0.0.1")
ended.sendall(b"last words")
ended.shutdown(socket.SHUT_WR)

epoll = select.epoll()
epoll.register(idle, select.EPOLLIN)
epoll.register(half, select.EPOLLIN | select.EPOLLRDHUP)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})

assert (idle.getsockname(), idle.getpeername()) == names
twin.sendall(b"hello")
server.close()
assert idle.recv(100) == b"HELLO"
assert epoll.poll(0) == [(half.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]
assert half.recv(100) == b"last words"
assert half.recv(100) == b""
half.sendall(b"answer")
assert ended.recv(100) == b"answer"
half.close()
assert ended.recv(100) == b""
idle.shutdown(socket.SHUT_WR)
text = b"".join(iter(lambda: twin.recv(100), b""))
assert text == b"the child has seen the end", text
assert os.waitpid(child, 0)[1] == 0
held.set()
for thread in threads:
    thread.join()
assert results == [AMOUNT] * 3, results

print("ok", flush=True)
