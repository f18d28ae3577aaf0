// A process and its workers, who share most of their memory with it, and know what it holds.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 2048, WORDS = 512 };

static unsigned long (*memory)[WORDS];
static char mine[PAGES]; // whose content a page has: 0 is the first process, '-' nobody's
static sigset_t usr1;

static void fill(int page, char who)
{
    for (int word = 0; word < WORDS; word++)
        memory[page][word] = 1 + page * WORDS + word + ((unsigned long)who << 32);
    mine[page] = who;
}

static void look(const char *when)
{
    for (int page = 0; page < PAGES; page++)
        for (int word = 0; word < WORDS; word++) {
            unsigned long want = 1 + page * WORDS + word + ((unsigned long)mine[page] << 32);
            if (mine[page] == '-')
                want = 0;
            if (mine[page] != '?' && memory[page][word] != want) {
                printf("fail: %s, page %d of process %d\n", when, page, getpid());
                exit(1);
            }
        }
}

static void become(char who)
{
    int from = who * 100;
    for (int page = from; page < from + 50; page++)
        fill(page, who);
    madvise(memory[from + 50], 20 * sizeof *memory, MADV_DONTNEED);
    memset(mine + from + 50, '-', 20);
    munmap(memory[from + 70], 10 * sizeof *memory);
    memset(mine + from + 70, '?', 10);
    mprotect(memory[from + 80], 10 * sizeof *memory, PROT_READ);
}

// All have what they had; and what one writes is nobody else's.
static void work(char who, pid_t child)
{
    int number, status = 0;
    sigwait(&usr1, &number);
    look("before");
    for (int page = who; page < PAGES; page += 7)
        if (mine[page] == who)
            fill(page, who);
    if (child) {
        kill(child, SIGUSR1);
        waitpid(child, &status, 0);
    }
    look("after");
    if (status)
        exit(1);
}

int main(void)
{
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    memory = mmap(NULL, sizeof *memory * PAGES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int page = 0; page < PAGES; page++)
        fill(page, 0);
    int ready[2];
    if (pipe(ready))
        return 1;
    pid_t child = fork();
    if (child == 0) {
        become(1);
        pid_t grandchild = fork();
        if (grandchild == 0)
            become(2);
        if (write(ready[1], "", 1) != 1)
            return 1;
        work(grandchild ? 1 : 2, grandchild);
        return 0;
    }
    char byte[2];
    for (int got = 0; got < 2;)
        got += read(ready[0], byte, 1);
    // What it writes now is in none of the others.
    for (int page = 1500; page < 1600; page++)
        fill(page, 3);
    void *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(more, 7, 1 << 20);
    printf("ready\n");
    fflush(stdout);
    work(0, child);
    printf("ok\n");
    fflush(stdout);
    sigwait(&usr1, &(int){0});
    return 0;
}
