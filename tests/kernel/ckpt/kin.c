/* Processes that come and go, each of which knows what its memory is to hold: its own, what it has
 * from its parents and shares with them until one of them writes, and one word that all can see.
 * They fork, kill and stop one another, write, drop, move, grow, protect and unmap memory.
 *
 *     kin SEED       the first one prints a line every so many steps, any of them fail: reason
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, AREAS = 8, MOST = 48, CHILDREN = 2, DEPTH = 3 };
enum { SMALL_PAGES, ANY_PAGES, OF_A_FILE, KINDS };
enum { ROUND = 150, FIRST = 77 };

struct area {
    uint64_t *at;
    int pages, kind, protection;
    uint64_t tags[MOST]; /* 0: a page of zeros */
};

static struct area areas[AREAS];
static pid_t children[CHILDREN];
static volatile uint64_t *steps_of; /* by process id */
static uint64_t steps;
static int depth, file;
static unsigned seed;

static void fail(const char *what, int area, int page)
{
    printf("fail: %s: process %d, depth %d, step %d, area %d, page %d: %s\n", what, getpid(), depth,
           (int)steps, area, page, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static int roll(int sides)
{
    return rand_r(&seed) % sides;
}

static void put(struct area *area, int page, uint64_t tag)
{
    uint64_t *word = area->at + (size_t)page * WORDS;
    area->tags[page] = tag;
    for (int i = 0; i < WORDS; i++)
        word[i] = tag * 1000003 + i;
}

static void look(int n, int page)
{
    const struct area *area = &areas[n];
    const uint64_t *word = area->at + (size_t)page * WORDS, tag = area->tags[page];
    if (area->protection == PROT_NONE)
        return;
    for (int i = 0; i < WORDS; i++)
        if (word[i] != (tag ? tag * 1000003 + i : 0))
            fail("memory", n, page);
}

static void make(int n)
{
    struct area *area = &areas[n];
    const int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    area->pages = 1 + roll(MOST);
    area->kind = roll(KINDS);
    area->protection = PROT_READ | PROT_WRITE;
    area->at = mmap(NULL, (size_t)area->pages * PAGE, area->protection,
                    area->kind == OF_A_FILE ? MAP_PRIVATE : anonymous,
                    area->kind == OF_A_FILE ? file : -1, 0);
    if (area->at == MAP_FAILED)
        fail("mmap", n, 0);
    if (area->kind == SMALL_PAGES)
        madvise(area->at, (size_t)area->pages * PAGE, MADV_NOHUGEPAGE);
    for (int page = 0; page < MOST; page++)
        area->tags[page] = area->kind == OF_A_FILE ? FIRST + page : 0;
}

static void resize(int n)
{
    struct area *area = &areas[n];
    const int pages = 1 + roll(MOST);
    void *at = mremap(area->at, (size_t)area->pages * PAGE, (size_t)pages * PAGE, MREMAP_MAYMOVE);
    if (at == MAP_FAILED)
        fail("mremap", n, pages);
    for (int page = area->pages; page < pages; page++)
        area->tags[page] = area->kind == OF_A_FILE ? FIRST + page : 0;
    area->at = at;
    area->pages = pages;
}

static void drop(int n, int page)
{
    struct area *area = &areas[n];
    const int count = 1 + roll(area->pages - page);
    if (madvise(area->at + (size_t)page * WORDS, (size_t)count * PAGE, MADV_DONTNEED))
        fail("madvise", n, page);
    for (int last = page + count; page < last; page++)
        area->tags[page] = area->kind == OF_A_FILE ? FIRST + page : 0;
}

static void have_child(int which)
{
    const pid_t pid = fork();
    if (pid < 0)
        fail("fork", 0, 0);
    if (pid) {
        children[which] = pid;
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memset(children, 0, sizeof children);
    seed ^= (unsigned)getpid() * 2654435761u;
    steps_of[getpid()] = steps = 0;
    depth++;
}

static void lose_child(int which)
{
    int status;
    kill(children[which], SIGKILL);
    if (waitpid(children[which], &status, 0) != children[which] || !WIFSIGNALED(status))
        fail("a child that was killed", which, status);
    children[which] = 0;
}

static void step(void)
{
    static const int protections[] = {PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE};
    const int n = roll(AREAS), which = roll(CHILDREN), page = roll(areas[n].pages);
    struct area *area = &areas[n];
    if (steps_of[getpid()] != steps)
        fail("what all can see", 0, (int)steps_of[getpid()]);
    steps_of[getpid()] = ++steps;
    switch (roll(14)) {
    case 0:
        resize(n);
        break;
    case 1:
        drop(n, page);
        break;
    case 2:
        if (munmap(area->at, (size_t)area->pages * PAGE))
            fail("munmap", n, 0);
        make(n);
        break;
    case 3:
        area->protection = protections[roll(3)];
        if (mprotect(area->at, (size_t)area->pages * PAGE, area->protection))
            fail("mprotect", n, 0);
        break;
    case 4:
        if (depth < DEPTH && !children[which])
            have_child(which);
        break;
    case 5:
        if (children[which] && !roll(3))
            lose_child(which);
        break;
    case 6:
        if (children[which]) {
            kill(children[which], SIGSTOP);
            kill(children[which], SIGCONT);
        }
        break;
    case 7:
    case 8:
    case 9:
        if (area->protection & PROT_WRITE)
            put(area, page, 1 + rand_r(&seed));
        break;
    default:
        look(n, page);
    }
}

int main(int argc, char **argv)
{
    static struct area source;
    static uint64_t page[WORDS];
    if (argc != 2)
        return 1;
    seed = atoi(argv[1]);
    source.at = page;
    file = open("/tmp/kin.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int number = 0; number < MOST; number++) {
        put(&source, 0, FIRST + number);
        if (write(file, page, PAGE) != PAGE)
            return 1;
    }
    steps_of = mmap(NULL, 1 << 22, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int n = 0; n < AREAS; n++)
        make(n);
    for (;;) {
        step();
        if (steps % ROUND)
            continue;
        for (int n = 0; n < AREAS; n++)
            for (int number = 0; number < areas[n].pages; number++)
                look(n, number);
        if (!depth) {
            printf("round %d\n", (int)(steps / ROUND));
            fflush(stdout);
        }
        usleep(1000 * roll(5));
    }
}
