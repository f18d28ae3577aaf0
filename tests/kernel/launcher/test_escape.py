"""A program with root's rights tries to walk out of its pod, on a stack with the barrier.

The first wall is the pod's mount namespace, whose root is the pod's root; the second, the barrier
directory above that root, holds where a descriptor from outside has got in.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import config, entrance, network, pods, program, users
from launcher.program import Program

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "namespaces", "fuse", "cc")

STACKFS = Path(sys.executable).with_name("stackfs")

PROBE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct stat root;

/* Where are we: at the pod's root, or at what? */
static void tell(const char *road) {
    struct stat here;
    if (stat(".", &here)) {
        printf("%s: %s\n", road, strerror(errno));
        return;
    }
    int inside = here.st_dev == root.st_dev && here.st_ino == root.st_ino;
    printf("%s: %s%s\n", road, inside ? "root" : "elsewhere",
           access("beside", F_OK) ? "" : ", and sees the host");
}

static int climb(void) {
    for (int i = 0; i < 64; i++)
        if (chdir("..")) return -1;
    return 0;
}

int main(int argc, char **argv) {
    char up[3 * 64 + 1] = "";
    for (int i = 0; i < 64; i++) strcat(up, "../");
    stat("/", &root);
    mkdir("/jail", 0700);

    if (argc > 1) { /* descriptor 0 is the pod's root, as the host sees it */
        int barrier = openat(0, "..", O_PATH); /* opens nothing: open(2), "O_PATH" */
        int results[] = {fchdir(0) || chdir(".."), fchdir(0) || chdir(up), fchdir(0) || climb(),
                         openat(0, "../../beside", O_RDONLY) < 0, openat(0, "..", O_RDONLY) < 0,
                         openat(barrier, "..", O_PATH) < 0, openat(barrier, "root", O_PATH) < 0};
        for (int i = 0; i < 7; i++) printf("%d", results[i]);
        printf(" %s\n", strerror(errno));
        return 0;
    }
    /* The broken chroot: the working directory stays outside of the new root. */
    int fd = open("/", O_RDONLY | O_DIRECTORY);
    if (chroot("/jail")) return 1;
    fchdir(fd);
    tell("broken chroot");
    printf("climb %d\n", climb());
    tell("step by step");
    fchdir(fd);
    printf("path %d\n", chdir(up));
    tell("by one path");
    chroot(".");
    tell("chroot(.)");
    chdir("/proc/1/root/..");
    tell("init's root");
    chdir("/proc/self/root/../..");
    tell("own root");
    return 0;
}
"""


@pytest.fixture(params=["false", "true"], ids=["", "user namespace"])
def stack(host, small_tree, request):
    """Pod `a` on a stack; beside the barrier, and beside that, lie files of the host."""
    tree = small_tree(PROBE)
    host.configure("a", f"[user]\nnamespace = {request.param}\n")
    base = users.ensure(host.places, config.load(host.places, "a")) or 0
    argv = [STACKFS, "mount", "a", "--lower", tree, "--shift", str(base)]
    subprocess.run(argv, check=True, timeout=60)
    (host.places.prefix / "autopod/beside").write_text("")
    (host.places.prefix / "beside").write_text("")
    yield host
    pods.destroy(host.places, "a")
    network.remove_network(host.places, "a")
    subprocess.run([STACKFS, "umount", "a"], check=True, timeout=60)


def test_walking_up_from_a_broken_chroot(stack):
    out = stack.launch("run", "a", "/probe").stdout

    assert out.splitlines() == [
        "broken chroot: root",
        "climb 0",
        "step by step: root",
        "path 0",
        "by one path: root",
        "chroot(.): root",
        "init's root: root",
        "own root: root",
    ]


def test_the_barrier_holds_where_a_descriptor_got_in(stack, tmp_path):
    running = stack.create("a")
    way_in = entrance.of(running, config.load(stack.places, "a"))
    leaked = os.open(stack.places.root("a"), os.O_RDONLY | os.O_DIRECTORY)
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    pid = program.execute(way_in, Program(["/probe", "x"], {}, (leaked, out, out)))

    assert os.waitpid(pid, 0)[1] == 0
    os.close(leaked)
    os.close(out)
    assert (tmp_path / "out").read_text() == "1111111 Permission denied\n"


def test_the_stack_unmounts_at_once_when_the_pod_is_gone(stack):
    stack.launch("start", "a", "/probe")
    stack.launch("kill", "a")

    subprocess.run([STACKFS, "umount", "a"], check=True, timeout=60)

    tree = stack.places.prefix / "empty"
    tree.mkdir()
    subprocess.run([STACKFS, "mount", "a", "--lower", tree], check=True, timeout=60)


WATCHER = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Try to get at the program of whoever comes into the pod (CVE-2019-5736). */
static void look(const char *pid) {
    char path[64], target[256];
    snprintf(path, sizeof path, "/proc/%s/exe", pid);
    int fd = open(path, O_PATH);
    if (fd >= 0) snprintf(path, sizeof path, "/proc/self/fd/%d", fd); /* it may end meanwhile */
    int length = readlink(path, target, sizeof target - 1);
    if (length >= 0) {
        target[length] = 0;
        if (strcmp(target, "/probe")) printf("caught %s\n", target);
    } else if (snprintf(path, sizeof path, "/proc/%s/comm", pid) && !access(path, F_OK))
        printf("refused\n");
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv) {
    if (argc == 1) return 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (;;) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(proc));)
            if (atoi(entry->d_name) > 1) look(entry->d_name);
        closedir(proc);
    }
}
"""


def test_a_program_on_its_way_in_cannot_be_caught(host, small_tree):
    host.mount("a", small_tree(WATCHER))
    host.launch("start", "a", "/probe", "watch")
    log = host.places.log("a")

    def seen():
        host.launch("exec", "a", "/probe")
        return "refused" in log.read_text()

    wait_until(seen, seconds=30)

    assert "caught" not in log.read_text()
