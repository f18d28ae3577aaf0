// Locked memory: at once and on fault, without access, with a guard, and what is mapped later.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 8, SIZE = PAGES * PAGE };

static char *map(int access)
{
    return mmap(NULL, SIZE, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

// The kernel's own account, in KiB.
static long locked_kib(void)
{
    char line[256];
    long kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status))
        sscanf(line, "VmLck: %ld", &kib);
    fclose(status);
    return kib;
}

static int in_memory(char *at)
{
    unsigned char there[PAGES];
    int count = 0;
    mincore(at, SIZE, there);
    for (int i = 0; i < PAGES; i++)
        count += there[i] & 1;
    return count;
}

#define CHECK(condition, what) \
    do { if (!(condition)) { printf("fail: %s\n", what); fflush(stdout); exit(1); } } while (0)

int main(void)
{
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);
    locked_kib(); // the heap grows now, not later

    char *at_once = map(PROT_READ | PROT_WRITE), *on_fault = map(PROT_READ | PROT_WRITE);
    char *without_access = map(PROT_NONE), *guarded = map(PROT_READ | PROT_WRITE);
    madvise(guarded + PAGE, PAGE, 102); // MADV_GUARD_INSTALL, where there is such
    mlock(at_once, SIZE);
    mlock2(on_fault, SIZE, MLOCK_ONFAULT);
    mlock(without_access, SIZE); // ENOMEM, and locked all the same
    mlock(guarded, SIZE);
    memset(on_fault, 1, 3 * PAGE);
    long kib = locked_kib();
    CHECK(kib == 4 * SIZE / 1024, "locked in the first place");

    int ready[2], status;
    char byte;
    CHECK(pipe(ready) == 0, "a pipe");
    pid_t child = fork();
    if (!child) {
        mlockall(MCL_FUTURE | MCL_ONFAULT);
        CHECK(write(ready[1], "r", 1) == 1, "the pipe");
        sigwait(&set, &number);
        char *later = map(PROT_READ | PROT_WRITE);
        CHECK(locked_kib() == SIZE / 1024, "what is locked, on fault"); // and nothing inherited
        CHECK(in_memory(later) == 0, "mapped later, on fault");
        return 0;
    }
    CHECK(read(ready[0], &byte, 1) == 1, "the child");
    mlockall(MCL_FUTURE);
    puts("ready");
    sigwait(&set, &number);

    char *later = map(PROT_READ | PROT_WRITE);
    CHECK(locked_kib() == kib + SIZE / 1024, "what is locked");
    CHECK(in_memory(later) == PAGES, "mapped later");
    CHECK(in_memory(at_once) == PAGES, "locked at once");
    CHECK(in_memory(on_fault) == 3, "locked on fault");
    kill(child, SIGUSR1);
    CHECK(waitpid(child, &status, 0) == child && !status, "the child");
    puts("ok");
    return 0;
}
