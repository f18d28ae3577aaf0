/* One thread moves the second half of its memory away; another one has the first half grow into what
 * was freed, which the kernel tells nobody, and then changes it there. Each page is to be what it was,
 * or zeros.
 *
 *     grows shrink|drop|unmap|part       at SIGUSR1 it begins, and prints ok or fail: reason
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 128, CUT = 32 };
static const size_t HALF = (size_t)PAGES * PAGE;

static uint64_t *first, *second, *moved, *part;
static char how;

static void fail(const char *what, int page)
{
    printf("fail: %s, page %d\n", what, page);
    fflush(stdout);
    _exit(1);
}

static uint64_t *reserve(void)
{
    void *at = mmap(NULL, HALF, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap", 0);
    return at;
}

static void *move(void *unused)
{
    void *to = reserve();
    moved = mremap(second, HALF, HALF, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    return unused;
}

static void *grow(void *unused)
{
    const size_t left = HALF + (size_t)CUT * PAGE;
    void *to = how == 'p' ? reserve() : NULL;
    while (mremap(first, HALF, 2 * HALF, 0) == MAP_FAILED)
        ; /* the other thread is not there yet */
    puts("grown");
    fflush(stdout);
    switch (how) {
    case 's':
        if (mremap(first, 2 * HALF, left, 0) != first)
            fail("shrink", 0);
        break;
    case 'd':
        if (madvise((char *)first + left, HALF / 2, MADV_DONTNEED))
            fail("drop", 0);
        break;
    case 'u':
        if (munmap(first, 2 * HALF))
            fail("unmap", 0);
        break;
    case 'p':
        part = mremap((char *)first + left, HALF / 2, HALF / 2, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    }
    return unused;
}

static void look(const uint64_t *at, int page, int pages, int number, const char *what)
{
    for (; page < pages; page++)
        for (int i = 0; i < WORDS; i++)
            if (at[(size_t)page * WORDS + i] != (number ? (uint64_t)(number + page) * 1000003 + i : 0))
                fail(what, page);
}

int main(int argc, char **argv)
{
    sigset_t set;
    int number;
    pthread_t one, other;
    if (argc != 2)
        return 1;
    how = argv[1][0];
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    first = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (first == MAP_FAILED)
        return 2;
    madvise(first, 2 * HALF, MADV_NOHUGEPAGE);
    second = first + PAGES * WORDS;
    for (int page = 0; page < 2 * PAGES; page++)
        for (int i = 0; i < WORDS; i++)
            first[(size_t)page * WORDS + i] = (uint64_t)(page + 1) * 1000003 + i;
    puts("ready");
    fflush(stdout);
    sigwait(&set, &number);
    pthread_create(&other, NULL, grow, NULL);
    pthread_create(&one, NULL, move, NULL);
    pthread_join(one, NULL);
    pthread_join(other, NULL);
    look(moved, 0, PAGES, PAGES + 1, "moved");
    if (how == 'p')
        look(part, 0, PAGES / 2, 0, "part");
    if (how != 'u') {
        look(first, 0, PAGES, 1, "first");
        look(first, PAGES, PAGES + CUT, 0, "grown");
    }
    puts("ok");
    fflush(stdout);
    pause();
}
