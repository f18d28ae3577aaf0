/* Memory of huge pages of every kind; at SIGUSR1 it looks whether all of it is as it was, and says how
 * many of its mappings are of huge pages. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HUGE = 2 << 20 };

#define CHECK(condition, what) \
    do { if (!(condition)) { printf("fail: %s\n", what); fflush(stdout); exit(1); } } while (0)

static char *map(int flags, int fd, int pages)
{
    char *at = mmap(NULL, (size_t)pages * HUGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    CHECK(at != MAP_FAILED, "mmap");
    return at;
}

static void fill(char *at, int from, int value)
{
    for (int i = from; i < HUGE; i += 4096)
        at[i] = value + i / 4096 % 7;
}

static int is(const char *at, int from, int value)
{
    for (int i = 0; i < HUGE; i++)
        if (at[i] != (i % 4096 == from % 4096 && i >= from ? value + i / 4096 % 7 : 0))
            return 0;
    return 1;
}

static int huge_mappings(void)
{
    char line[512];
    int count = 0;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (fgets(line, sizeof line, smaps))
        count += !strncmp(line, "VmFlags:", 8) && strstr(line, " ht");
    fclose(smaps);
    return count;
}

int main(void)
{
    const int anonymous = MAP_ANONYMOUS | MAP_HUGETLB;
    sigset_t set;
    int number, status;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);

    char *private = map(MAP_PRIVATE | anonymous, -1, 2);
    fill(private + HUGE, 5, 10);
    char *frozen = map(MAP_PRIVATE | anonymous, -1, 1);
    fill(frozen, 6, 20);
    mprotect(frozen, HUGE, PROT_READ);
    char *shared = map(MAP_SHARED | anonymous, -1, 2);
    fill(shared, 7, 30);
    int fd = memfd_create("huge", MFD_HUGETLB | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && !ftruncate(fd, 2 * HUGE), "memfd_create");
    char *file = map(MAP_SHARED, fd, 2);
    fill(file, 8, 40);
    char *copy = map(MAP_PRIVATE, fd, 2);
    fill(copy, 9, 50);
    int unmapped = memfd_create("unmapped", MFD_HUGETLB);
    CHECK(unmapped >= 0 && !ftruncate(unmapped, HUGE), "memfd_create");
    char *once = map(MAP_SHARED, unmapped, 1);
    fill(once, 11, 60);
    munmap(once, HUGE);
    CHECK(!fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), "seal");
    pid_t child = fork();
    if (!child) {
        sigwait(&set, &number);
        CHECK(shared[HUGE] == 70, "memory that is shared with the parent");
        CHECK(private[5 + HUGE] == 10, "memory of the parent, in the child");
        private[HUGE + 5] = 80;
        _exit(0);
    }
    puts("ready");
    fflush(stdout);
    do
        sigwait(&set, &number);
    while (number != SIGUSR1);

    CHECK(is(private + HUGE, 5, 10), "private memory");
    CHECK(is(frozen, 6, 20), "memory that cannot be written to");
    CHECK(is(shared, 7, 30), "shared memory");
    CHECK(is(file, 8, 40), "a memfd");
    for (int i = 0; i < HUGE; i += 4096)
        CHECK(copy[i + 8] == file[i + 8] && copy[i + 9] == 50 + i / 4096 % 7, "a private copy");
    CHECK(is(map(MAP_SHARED, unmapped, 1), 11, 60), "an unmapped memfd");
    CHECK(fcntl(fd, F_GET_SEALS) == F_SEAL_GROW, "seals");
    shared[HUGE] = 70;
    kill(child, SIGUSR2);
    CHECK(waitpid(child, &status, 0) == child && !status, "the child");
    CHECK(private[HUGE + 5] == 10, "private memory, after the child");
    printf("huge mappings: %d\nok\n", huge_mappings());
    fflush(stdout);
    pause();
}
