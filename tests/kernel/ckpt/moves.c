/* Moves its memory, a step for each SIGUSR1: "back" the end of a mapping away and back, and writes
 * afterwards; "tables" two areas into each other's place, by whole page tables, of which the kernel
 * marks no page as written to (mm/mremap.c, move_normal_pmd()). */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 64, MOVING = 16, TABLE = 2 << 20 };

static const int FLAGS = MAP_PRIVATE | MAP_ANONYMOUS;
static sigset_t set;

static int moved(char *from, char *to, size_t size)
{
    return mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to;
}

static void step(const char *done)
{
    int number;
    puts(done);
    fflush(stdout);
    sigwait(&set, &number);
}

static int back(void)
{
    char *memory = mmap(NULL, (PAGES + MOVING) * PAGE, PROT_READ | PROT_WRITE, FLAGS, -1, 0);
    char *away = mmap(NULL, MOVING * PAGE, PROT_NONE, FLAGS, -1, 0);
    char *end = memory + PAGES * PAGE;
    if (memory == MAP_FAILED || away == MAP_FAILED)
        return 1;
    memset(memory, 1, (PAGES + MOVING) * PAGE);
    step("ready");
    if (!moved(end, away, MOVING * PAGE))
        return 2;
    step("away");
    if (!moved(away, end, MOVING * PAGE))
        return 3;
    for (int i = 0; i < PAGES; i++)
        memory[i * PAGE + 5] = 2;
    step("back");
    for (int i = 0; i < PAGES; i++)
        memory[i * PAGE + 6] = 3;
    step("over");
    return 0;
}

static int tables(void)
{
    const char *done[] = {"ready", "away", "back", "over"};
    char *at = mmap(NULL, 8 * TABLE, PROT_NONE, FLAGS, -1, 0);
    if (at == MAP_FAILED)
        return 1;
    char *one = (char *)(((uintptr_t)at + TABLE) & -(uintptr_t)TABLE);
    char *other = one + 2 * TABLE, *between = one + 4 * TABLE;
    for (char *area = one; area <= other; area += 2 * TABLE) {
        if (mprotect(area, TABLE, PROT_READ | PROT_WRITE))
            return 2;
        madvise(area, TABLE, MADV_NOHUGEPAGE);
        memset(area, area == one ? 1 : 2, TABLE);
    }
    for (int number = 0; number < 4; number++) {
        step(done[number]);
        if (!moved(one, between, TABLE) || !moved(other, one, TABLE) || !moved(between, other, TABLE))
            return 3;
    }
    return 0;
}

int main(int argc, char **argv)
{
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (argc != 2)
        return 1;
    return strcmp(argv[1], "tables") ? back() : tables();
}
