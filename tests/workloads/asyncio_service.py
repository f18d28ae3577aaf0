"""A service as people write them: an event loop, servers, a child, a timer, a thread."""

import asyncio
import signal
import sys
import threading


async def echo(reader, writer):
    while data := await reader.readline():
        writer.write(data.upper())
        await writer.drain()
    writer.close()


async def ask(streams, question):
    reader, writer = streams
    writer.write(question + b"\n")
    answer = await reader.readline()
    writer.close()
    return answer


async def main():
    checked, ticked, ticks = asyncio.Event(), asyncio.Event(), []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, checked.set)
    await asyncio.start_server(echo, "127.0.0.1", 8000)
    await asyncio.start_unix_server(echo, "/tmp/echo")
    kept = await asyncio.open_unix_connection("/tmp/echo")
    child = await asyncio.create_subprocess_exec(
        "/bin/cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    queue = asyncio.Queue()
    waiting = threading.Event()

    def work():
        waiting.wait()
        loop.call_soon_threadsafe(queue.put_nowait, "thread")

    threading.Thread(target=work, daemon=True).start()

    async def tick():
        while True:
            ticks.append(loop.time())
            ticked.set()
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    print("ready", flush=True)
    await checked.wait()

    ticked.clear()
    assert await ask(kept, b"kept") == b"KEPT\n"
    assert await ask(await asyncio.open_connection("127.0.0.1", 8000), b"tcp") == b"TCP\n"
    assert await ask(await asyncio.open_unix_connection("/tmp/echo"), b"unix") == b"UNIX\n"
    child.stdin.write(b"through the child\n")
    assert await child.stdout.readline() == b"through the child\n"
    child.stdin.close()
    assert await child.wait() == 0
    waiting.set()
    assert await queue.get() == "thread"
    await ticked.wait()
    assert ticks == sorted(ticks), "the monotonic clock went back"
    ticking.cancel()


sys.excepthook = lambda kind, e, trace: print(f"fail: {e!r}", flush=True)
asyncio.run(main())
print("ok", flush=True)
