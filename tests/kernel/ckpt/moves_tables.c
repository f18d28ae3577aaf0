/* Exchanges two areas of memory for each SIGUSR1: whole page tables are moved, and the kernel marks none
 * of their pages as written to (mm/mremap.c, move_normal_pmd()). */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { TABLE = 2 << 20 };

static void *move(char *from, char *to)
{
    return mremap(from, TABLE, TABLE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
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
    char *at = mmap(NULL, 8 * TABLE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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
        step((const char *[]){"ready", "away", "back", "over"}[number], &set);
        if (move(one, between) != between || move(other, one) != one ||
            move(between, other) != other)
            return 3;
    }
    return 0;
}
