// A program that never rests: computes in vector registers, makes system calls, watches itself.
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef double vector __attribute__((vector_size(32)));

static volatile int end;
static const char *volatile problem;
static volatile unsigned long rounds[3];

__attribute__((noinline)) static double compute(double seed)
{
    vector sum = {seed, seed + 1, seed + 2, seed + 3}, factor = {1.5, 0.5, 1.25, 0.75};
    for (int i = 0; i < 5000; i++)
        sum = sum * factor + 1.0 / (i + 1) - sum * (factor - 0.999);
    return sum[0] + sum[1] * 3 + sum[2] * 5 + sum[3] * 7;
}

static void *computing(void *unused)
{
    double right = compute(2);
    for (; !end; rounds[0]++)
        if (compute(2) != right)
            problem = "arithmetic";
    return NULL;
}

static void *calling(void *unused)
{
    int fds[2];
    unsigned long sent, got;
    if (pipe(fds))
        return NULL;
    for (sent = 0; !end; sent++, rounds[1]++) {
        if (write(fds[1], &sent, sizeof sent) != sizeof sent ||
            read(fds[0], &got, sizeof got) != sizeof got || got != sent)
            problem = "a pipe";
        if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
            problem = "a child that is not ours";
        char *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memory[sent % 65536] = 1;
        munmap(memory, 65536);
    }
    return NULL;
}

static void *sleeping(void *unused)
{
    struct timespec before, after;
    struct pollfd none = {.fd = -1};
    sigset_t mask;
    for (; !end; rounds[2]++) {
        clock_gettime(CLOCK_MONOTONIC, &before);
        struct timespec time = {0, 1000000};
        while (nanosleep(&time, &time))
            if (errno != EINTR)
                problem = "nanosleep";
        clock_gettime(CLOCK_MONOTONIC, &after);
        if ((after.tv_sec - before.tv_sec) * 1e9 + after.tv_nsec - before.tv_nsec < 1e6)
            problem = "a short sleep";
        if (poll(&none, 1, 1) && errno != EINTR)
            problem = "poll";
        pthread_sigmask(SIG_BLOCK, NULL, &mask);
        if (sigismember(&mask, SIGHUP) || !sigismember(&mask, SIGUSR1))
            problem = "the mask";
    }
    return NULL;
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pthread_t threads[3];
    pthread_create(&threads[0], NULL, computing, NULL);
    pthread_create(&threads[1], NULL, calling, NULL);
    pthread_create(&threads[2], NULL, sleeping, NULL);
    while (!rounds[0] || !rounds[1] || !rounds[2])
        usleep(1000);
    printf("ready\n");
    fflush(stdout);
    int number;
    sigwait(&set, &number);
    unsigned long then[3];
    memcpy(then, (void *)rounds, sizeof then);
    for (int i = 0; i < 3; i++)
        for (int left = 50000; rounds[i] == then[i]; usleep(1000))
            if (!left--) {
                puts("fail: a thread stands still");
                return 1;
            }
    end = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    if (waitpid(-1, NULL, __WALL | WNOHANG) != -1 || errno != ECHILD)
        problem = "a child is left";
    if (problem)
        printf("fail: %s\n", problem);
    else
        printf("ok\n");
    return 0;
}
