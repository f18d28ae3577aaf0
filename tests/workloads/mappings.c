// The memory map is the same to the letter: addresses, protections, advice, locks, guards, names.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#define PAGES 64

static char before[1 << 18], after[1 << 18];

static void look(char *text)
{
    // What is resident may differ; addresses, permissions, names and flags may not.
    char line[512];
    size_t length = 0;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (fgets(line, sizeof line, smaps))
        if (strchr(line, '-') || !strncmp(line, "VmFlags:", 8))
            if (strncmp(line, "ffffffff", 8) && length + strlen(line) < sizeof before)
                length += sprintf(text + length, "%s", line);
    fclose(smaps);
}

static char *map(int protection, int flags)
{
    char *at = mmap(NULL, PAGES * 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return at;
}

static int depth(int n)
{
    volatile char frame[4096];
    frame[0] = n;
    return n ? depth(n - 1) + frame[0] - frame[0] : 0;
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);

    char *plain = map(PROT_READ | PROT_WRITE, 0);
    strcpy(plain + 4096, "kept");
    strcpy(plain + 8192, "guarded");
    mprotect(plain + 8192, 4096, PROT_NONE);
    mprotect(plain + 4096, 4096, PROT_READ);
    char *hidden = map(PROT_READ | PROT_WRITE, 0);
    strcpy(hidden, "behind PROT_NONE");
    mprotect(hidden, PAGES * 4096, PROT_NONE);
    char *grows = map(PROT_READ | PROT_WRITE, MAP_GROWSDOWN);
    strcpy(grows + 4096, "grows");
    char *noreserve = map(PROT_READ | PROT_WRITE, MAP_NORESERVE);
    noreserve[5] = 5;
    char *unforked = map(PROT_READ | PROT_WRITE, 0);
    strcpy(unforked, "not inherited");
    madvise(unforked, PAGES * 4096, MADV_DONTFORK);
    char *wiped = map(PROT_READ | PROT_WRITE, 0);
    strcpy(wiped, "wiped in children");
    madvise(wiped, PAGES * 4096, MADV_WIPEONFORK);
    char *undumped = map(PROT_READ | PROT_WRITE, 0);
    madvise(undumped, PAGES * 4096, MADV_DONTDUMP);
    char *random = map(PROT_READ, 0);
    madvise(random, PAGES * 4096, MADV_RANDOM);
    char *locked = map(PROT_READ | PROT_WRITE, 0);
    int lock = mlock(locked, 4 * 4096);
    char *named = map(PROT_READ | PROT_WRITE, 0);
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, PAGES * 4096, "a name");
    char *code = map(PROT_READ | PROT_WRITE, 0);
    memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);  // mov $42, %eax; ret
    mprotect(code, 4096, PROT_READ | PROT_EXEC);
    char *heap = malloc(100);
    strcpy(heap, "on the heap");
    char *old_break = sbrk(0);

    look(before);
    puts("ready");
    int number;
    sigwait(&set, &number);
    look(after);
    char *a = before, *b = after;
    while (*a || *b) {
        size_t i = strcspn(a, "\n"), j = strcspn(b, "\n");
        if (i != j || memcmp(a, b, i)) {
            printf("fail: was %.*s, is %.*s\n", (int)i, a, (int)j, b);
            return 1;
        }
        a += i + 1;
        b += j + 1;
    }
    mprotect(hidden, PAGES * 4096, PROT_READ);
    if (strcmp(plain + 4096, "kept") || strcmp(hidden, "behind PROT_NONE") || noreserve[5] != 5 ||
        strcmp(grows + 4096, "grows") || strcmp(unforked, "not inherited") ||
        strcmp(wiped, "wiped in children") || strcmp(heap, "on the heap")) {
        puts("fail: a content");
        return 1;
    }
    if (((int (*)(void))code)() != 42)
        puts("fail: code");
    if (sbrk(0) != old_break || sbrk(1 << 20) != old_break || (old_break[1 << 19] = 1) != 1)
        puts("fail: the break");
    depth(500);
    puts(lock ? "fail: mlock" : "ok");
    return 0;
}
