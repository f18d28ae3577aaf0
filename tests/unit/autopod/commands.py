"""Commands one after another in one process, which is not the test's: a start each costs time.

python commands.py     a line of JSON in, [environment, words]; one out, [status, what was said]
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager


class Shell:
    """Runs `autopod` with arguments."""

    def __init__(self, process):
        self._process = process

    def run(self, environment, words):
        """Return the exit status, and all that was said."""
        self._process.stdin.write(json.dumps([environment, words]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def shell(environment):
    """Have one."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield Shell(process)
        finally:
            process.stdin.close()


def main():
    """Be the process."""
    from autopod import cli

    for line in sys.stdin:
        environment, words = json.loads(line)
        os.environ.update(environment)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = cli.main(words)
            except SystemExit as e:
                status = e.code
        print(json.dumps([status, said.getvalue()]), flush=True)


if __name__ == "__main__":
    main()
