"""A process tree: sessions, groups, orphans, dead leaders, zombies with their exact status."""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
me = os.getpid()


def say(fd, *words):
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())


def spawn(work):
    """Fork; the child tells its ids when it gets SIGUSR2, and again at SIGUSR1."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_fd)
        return pid, os.fdopen(read_fd)
    os.close(read_fd)
    work(write_fd)
    for _ in range(2):
        say(write_fd, os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))
        signal.sigwait({signal.SIGUSR1})
    os._exit(0)


def in_new_session(fd):
    os.setsid()


def in_new_group(fd):
    os.setpgid(0, 0)


def orphan(fd):
    """A daemon whose session leader is dead."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    while os.getppid() not in {1, me}:
        pass


def in_group_of_the_dead(fd):
    leader = os.fork()
    if leader == 0:
        signal.pause()
    os.setpgid(leader, leader)
    os.setpgid(0, leader)
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)


def grandchild_in_old_session(fd):
    """A child that was born before its parent began a session of its own."""
    if os.fork() == 0:
        return
    os.setsid()
    signal.sigwait({signal.SIGUSR2})
    os._exit(0)


works = [in_new_session, in_new_group, in_group_of_the_dead, orphan, grandchild_in_old_session]
children = [spawn(work) for work in works]
before = [pipe.readline().split() for _, pipe in children]
os.waitpid(children[3][0], 0)

zombies = []
for status in (0, 1, 200, 255, -signal.SIGTERM, -signal.SIGKILL):
    pid = os.fork()
    if pid == 0:
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    zombies.append((pid, status))
handled = []
signal.signal(signal.SIGCHLD, lambda *_: handled.append(1))

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})

problems = []
if handled:
    problems.append("a SIGCHLD came of the restart")
for pid, status in zombies:
    found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if found != status:
        problems.append(f"zombie {pid}: {found} instead of {status}")
for (_, pipe), ids, work in zip(children, before, works, strict=True):
    os.kill(int(ids[0]), signal.SIGUSR1)
    after = pipe.readline().split()
    if after != ids:
        problems.append(f"{work.__name__}: {after} instead of {ids}")
print("fail: " + "; ".join(problems) if problems else "ok", flush=True)
sys.exit()
