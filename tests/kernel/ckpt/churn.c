/* Changes its memory in every way, until it is killed: writes, moves, drops, forks, reads past the
 * page cache, and through the eyes of another process. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 2048, MOVING = 64 };

static uint64_t state = 88172645463325252ull;

static uint64_t any(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static char *map(size_t pages, int flags, int fd)
{
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return at;
}

static void fork_one(char *memory)
{
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 50; i++)
            memory[any(PAGES) * PAGE + any(PAGE)]++;
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

int main(void)
{
    char *memory = map(PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    char *moving = map(MOVING, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    int file = open("/tmp/churn.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < 256; i++) {
        memset(memory + i * PAGE, i, PAGE);
        if (write(file, memory + i * PAGE, PAGE) != PAGE)
            return 1;
    }
    char *of_file = map(256, MAP_PRIVATE, file);
    int direct = open("/tmp/churn.data", O_RDONLY | O_DIRECT);
    for (size_t i = 0; i < PAGES; i++)
        memory[i * PAGE] = 1;
    puts("ready");
    fflush(stdout);
    for (uint64_t round = 0;; round++) {
        memory[any(PAGES) * PAGE + any(PAGE)] = (char)round;
        moving[any(MOVING) * PAGE + any(PAGE)] = (char)round;
        if (round % 7 == 0)
            of_file[any(256) * PAGE + any(PAGE)] = (char)round;
        if (round % 64 == 0)
            madvise(memory + any(PAGES) * PAGE, PAGE, MADV_DONTNEED);
        if (round % 256 == 0) {
            char *target = map(MOVING, MAP_PRIVATE | MAP_ANONYMOUS, -1);
            memset(target, 7, any(MOVING) * PAGE);
            moving = mremap(moving, MOVING * PAGE, MOVING * PAGE,
                            MREMAP_MAYMOVE | MREMAP_FIXED, target);
        }
        if (round % 32 == 0 && direct >= 0)
            (void)!pread(direct, memory + any(PAGES) * PAGE, PAGE, any(256) * PAGE);
        if (round % 128 == 0) {
            struct iovec from = {of_file + any(256) * PAGE, PAGE};
            struct iovec to = {memory + any(PAGES) * PAGE, PAGE};
            process_vm_writev(getpid(), &from, 1, &to, 1, 0);
        }
        if (round % 4096 == 0)
            fork_one(memory);
        usleep(10);
    }
}
