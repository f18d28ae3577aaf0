// Processes that share descriptors and directory, as clone(2) with CLONE_FILES and CLONE_FS has it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static sigset_t usr1;

static pid_t clone_with(int flags)
{
    return syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
}

static void fail(const char *what)
{
    printf("fail: %s\n", what);
    fflush(stdout);
    _exit(1);
}

static void await(pid_t child)
{
    int status;
    kill(child, SIGUSR1);
    if (waitpid(child, &status, 0) != child || status)
        fail("a child");
}

static int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

int main(void)
{
    int number;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    mkdir("/tmp/there", 0755);
    int ready[2], kept = open("/dev/null", O_RDWR);
    if (pipe(ready))
        return 1;
    pid_t files = clone_with(CLONE_FILES);
    if (files == 0) {
        pid_t grandchild = clone_with(CLONE_FILES | CLONE_FS);
        if (grandchild == 0) {
            if (write(ready[1], "", 1) != 1)
                return 1;
            sigwait(&usr1, &number);
            // Descriptors: the grandparent's, too. The directory: the parent's only.
            close(kept);
            if (open("/dev/zero", O_RDONLY) != kept || dup2(kept, 200) != 200)
                fail("it cannot be opened");
            return chdir("/tmp/there");
        }
        sigwait(&usr1, &number);
        await(grandchild);
        char name[64];
        if (!getcwd(name, sizeof name) || strcmp(name, "/tmp/there"))
            fail("the directory is not shared");
        return !is_open(200);
    }
    pid_t directory = clone_with(CLONE_FS);
    if (directory == 0) {
        if (write(ready[1], "", 1) != 1)
            return 1;
        sigwait(&usr1, &number);
        umask(0123);
        close(0);
        if (is_open(200))
            fail("a table that is nobody else's is shared");
        return 0;
    }
    char byte[2];
    for (int got = 0; got < 2;)
        got += read(ready[0], byte, 1);
    printf("ready\n");
    fflush(stdout);
    sigwait(&usr1, &number);
    await(files);
    if (!is_open(200))
        fail("the descriptors are not shared");
    char name[64];
    if (!getcwd(name, sizeof name) || !strcmp(name, "/tmp/there"))
        fail("a directory that is nobody else's is shared");
    await(directory);
    if (umask(0) != 0123 || !is_open(0))
        fail("the umask is not shared, or a descriptor is");
    printf("ok\n");
    fflush(stdout);
    return 0;
}
