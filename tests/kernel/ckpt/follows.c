/* Knows what each page of its memory is to hold, and looks, while it forks, moves, drops, unmaps and
 * grows memory and several threads do so at once, each with areas of its own. All areas begin as one
 * mapping, so that what one thread frees another one gets.
 *
 *     follows THREADS ROUNDS        at SIGUSR1 it begins, and prints ok or fail: reason
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, AREAS = 12, MOST = 192, THREADS = 8 };

struct area {
    uint64_t *at;
    int pages;
    uint64_t tags[MOST]; /* 0: a page of zeros */
};

static struct area areas[THREADS][AREAS];
static int threads, rounds;
static pthread_mutex_t says = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *what, int thread, int area, int page)
{
    pthread_mutex_lock(&says);
    printf("fail: %s: thread %d, area %d, page %d: %s\n", what, thread, area, page, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static void put(struct area *area, int page, uint64_t tag)
{
    uint64_t *word = area->at + (size_t)page * WORDS;
    area->tags[page] = tag;
    for (int i = 0; i < WORDS; i++)
        word[i] = tag ? tag * 1000003 + i : 0;
}

static int is_right(const struct area *area, int page)
{
    const uint64_t *word = area->at + (size_t)page * WORDS;
    for (int i = 0; i < WORDS; i++)
        if (word[i] != (area->tags[page] ? area->tags[page] * 1000003 + i : 0))
            return 0;
    return 1;
}

static void check(int thread, int from, int to, const char *when)
{
    for (int n = from; n < to; n++)
        for (int page = 0; page < areas[thread][n].pages; page++)
            if (!is_right(&areas[thread][n], page))
                fail(when, thread, n, page);
}

static void resize(int thread, int n, int pages)
{
    struct area *area = &areas[thread][n];
    void *at = mremap(area->at, (size_t)area->pages * PAGE, (size_t)pages * PAGE, MREMAP_MAYMOVE);
    if (at == MAP_FAILED)
        fail("mremap", thread, n, pages);
    for (int page = area->pages; page < pages; page++)
        area->tags[page] = 0;
    area->at = at;
    area->pages = pages;
}

static void replace(int thread, int n)
{
    struct area *area = &areas[thread][n];
    if (munmap(area->at, (size_t)area->pages * PAGE))
        fail("munmap", thread, n, 0);
    area->at = mmap(NULL, (size_t)area->pages * PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area->at == MAP_FAILED)
        fail("mmap", thread, n, 0);
    memset(area->tags, 0, sizeof area->tags);
}

static void move(int thread, int n, int other)
{
    /* To where nothing of others can be: a place that was reserved, or that of another area of the
     * same size, which begins anew. */
    struct area *one = &areas[thread][n], *two = &areas[thread][other];
    size_t size = (size_t)one->pages * PAGE;
    const int how = MREMAP_MAYMOVE | MREMAP_FIXED;
    void *to = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (to == MAP_FAILED || mremap(one->at, size, size, how, to) != to)
        fail("mremap, to a place", thread, n, other);
    one->at = to;
    if (n == other || one->pages != two->pages || other % 4)
        return;
    if (mremap(one->at, size, size, how, two->at) != (void *)two->at)
        fail("mremap, over another", thread, n, other);
    one->at = two->at;
    two->at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (two->at == MAP_FAILED)
        fail("mmap", thread, other, 0);
    memset(two->tags, 0, sizeof two->tags);
}

static void drop(int thread, int n, int from, int count)
{
    struct area *area = &areas[thread][n];
    if (from + count > area->pages)
        count = area->pages - from;
    if (count <= 0)
        return;
    if (madvise(area->at + (size_t)from * WORDS, (size_t)count * PAGE, MADV_DONTNEED))
        fail("madvise", thread, n, from);
    memset(area->tags + from, 0, count * sizeof *area->tags);
}

static void have_child(int thread, unsigned *seed)
{
    int from = rand_r(seed) % AREAS, grandchild = !(rand_r(seed) % 4), status;
    pid_t pid = fork();
    if (pid < 0)
        fail("fork", thread, 0, 0);
    if (!pid) {
        drop(thread, from, 3, 5);
        resize(thread, from, areas[thread][from].pages / 2 + 1);
        if (grandchild && (pid = fork()) && (waitpid(pid, &status, 0) != pid || status))
            _exit(2);
        check(thread, from, AREAS < from + 3 ? AREAS : from + 3, "in a child");
        _exit(0);
    }
    if (waitpid(pid, &status, 0) != pid || status)
        fail("a child", thread, from, status);
}

static void *run(void *argument)
{
    int thread = (int)(intptr_t)argument;
    unsigned seed = 7 * thread + getpid();
    for (int round = 0; round < rounds; round++) {
        int n = rand_r(&seed) % AREAS, page = rand_r(&seed) % areas[thread][n].pages;
        switch (rand_r(&seed) % 12) {
        case 0:
            resize(thread, n, 1 + rand_r(&seed) % MOST);
            break;
        case 1:
            move(thread, n, rand_r(&seed) % AREAS);
            break;
        case 2:
            drop(thread, n, page, rand_r(&seed) % 16);
            break;
        case 3:
            if (!(rand_r(&seed) % 4))
                replace(thread, n);
            break;
        case 4:
            if (!(rand_r(&seed) % 3))
                have_child(thread, &seed);
            break;
        case 5:
            put(&areas[thread][n], page, rand_r(&seed));
            break;
        case 6: { /* the kernel reads and writes there */
            int ends[2];
            uint64_t *at = areas[thread][n].at + (size_t)page * WORDS;
            if (pipe(ends) || write(ends[1], at, PAGE) != PAGE || read(ends[0], at, PAGE) != PAGE)
                fail("pipe", thread, n, page);
            close(ends[0]);
            close(ends[1]);
            break;
        }
        default:
            if (!is_right(&areas[thread][n], page))
                fail("now and then", thread, n, page);
        }
    }
    check(thread, 0, AREAS, "at the end");
    return NULL;
}

int main(int argc, char **argv)
{
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (argc != 3)
        return 1;
    threads = atoi(argv[1]);
    rounds = atoi(argv[2]);
    const int pages = MOST / 2;
    char *all = mmap(NULL, (size_t)threads * AREAS * pages * PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return 2;
    madvise(all, (size_t)threads * AREAS * pages * PAGE, MADV_NOHUGEPAGE);
    for (int n = 0; n < AREAS; n++)
        for (int thread = 0; thread < threads; thread++, all += pages * PAGE) {
            struct area *area = &areas[thread][n];
            area->at = (uint64_t *)all;
            area->pages = pages;
            for (int page = 0; page < pages; page++)
                put(area, page, page % 7 ? (n * THREADS + thread) * MOST + page + 1 : 0);
        }
    puts("ready");
    fflush(stdout);
    for (;;) {
        pthread_t running[THREADS];
        sigwait(&set, &number);
        for (int thread = 0; thread < threads; thread++)
            pthread_create(&running[thread], NULL, run, (void *)(intptr_t)thread);
        for (int thread = 0; thread < threads; thread++)
            pthread_join(running[thread], NULL);
        puts("ok");
        fflush(stdout);
    }
}
