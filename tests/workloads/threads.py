"""Threads go on, with their ids, locks and thread-local data."""

import signal
import sys
import threading
import time

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

local = threading.local()
condition = threading.Condition()
gate = threading.Event()
counts = [0] * 6
ids = {}


def work(index):
    local.mine = index * 1000
    ids[index] = threading.get_native_id()
    while not gate.is_set():
        counts[index] += 1
        if index % 2:
            time.sleep(0.001)
        else:
            gate.wait(0.001)
    with condition:
        ok = local.mine == index * 1000 and ids[index] == threading.get_native_id()
        counts[index] = "right" if ok else "wrong"
        condition.notify()


threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
for thread in threads:
    thread.start()
while not all(counts):
    time.sleep(0.001)
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
before = list(counts)
give_up = time.monotonic() + 50
while any(now <= then for now, then in zip(counts, before, strict=True)):
    if time.monotonic() > give_up:
        print(f"fail: a thread stands still: {before} {counts}", flush=True)
        sys.exit(1)
    time.sleep(0.001)
gate.set()
for thread in threads:
    thread.join()
print("ok" if counts == ["right"] * 6 else f"fail: {counts}", flush=True)
