/* Moves the end of its memory away and back, a step for each SIGUSR1, and writes afterwards. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 64, MOVING = 16 };

static void *move(char *from, char *to)
{
    return mremap(from, MOVING * PAGE, MOVING * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

static void step(const char *done, sigset_t *set)
{
    int number;
    puts(done);
    fflush(stdout);
    sigwait(set, &number);
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *memory = mmap(NULL, (PAGES + MOVING) * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    char *away = mmap(NULL, MOVING * PAGE, PROT_NONE, flags, -1, 0);
    if (memory == MAP_FAILED || away == MAP_FAILED)
        return 1;
    memset(memory, 1, (PAGES + MOVING) * PAGE);
    step("ready", &set);
    if (move(memory + PAGES * PAGE, away) != away)
        return 2;
    step("away", &set);
    if (move(away, memory + PAGES * PAGE) == MAP_FAILED)
        return 3;
    for (int i = 0; i < PAGES; i++)
        memory[i * PAGE + 5] = 2;
    step("back", &set);
    for (int i = 0; i < PAGES; i++)
        memory[i * PAGE + 6] = 3;
    step("over", &set);
    return 0;
}
