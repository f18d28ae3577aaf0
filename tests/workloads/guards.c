// Guard ranges in private, shared and file memory.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#define PAGES 8
#define SIZE (PAGES * 4096)

static sigjmp_buf back;

static void caught(int number)
{
    siglongjmp(back, number);
}

static int faults(volatile char *at)
{
    if (sigsetjmp(back, 1))
        return 1;
    (void)*at;
    return 0;
}

int main(void)
{
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);
    struct sigaction action = {.sa_handler = caught};
    sigaction(SIGSEGV, &action, NULL);

    int file = open("/tmp/mapped", O_CREAT | O_RDWR, 0600), anything = MAP_ANONYMOUS;
    if (ftruncate(file, SIZE))
        return 1;
    char *areas[4] = {
        mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | anything, -1, 0),
        mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | anything, -1, 0),
        mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0),
        mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0),
    };
    int guarded[4];
    for (int i = 0; i < 4; i++) {
        strcpy(areas[i] + 4096, "kept");
        guarded[i] = !madvise(areas[i] + 3 * 4096, 2 * 4096, MADV_GUARD_INSTALL);
    }

    puts("ready");
    sigwait(&set, &number);
    for (int i = 0; i < 4; i++) {
        char *at = areas[i];
        if (faults(at + 2 * 4096) || faults(at + 5 * 4096)) {
            printf("fail: area %d: memory beside the guard\n", i);
            return 1;
        }
        if (guarded[i] && (!faults(at + 3 * 4096) || !faults(at + 5 * 4096 - 1))) {
            printf("fail: area %d: the guard is gone\n", i);
            return 1;
        }
        if (strcmp(at + 4096, "kept")) {
            printf("fail: area %d: its content\n", i);
            return 1;
        }
        // A kernel without guards (EINVAL), to which the program has moved, cannot take them away.
        int kept = guarded[i] && madvise(at, SIZE, MADV_GUARD_REMOVE) && errno == EINVAL;
        if (!kept && faults(at + 3 * 4096)) {
            printf("fail: area %d: the guard stays\n", i);
            return 1;
        }
    }
    puts("ok");
    return 0;
}
