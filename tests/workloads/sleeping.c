// Threads that the checkpoint finds in system calls with a timeout come out of them in time.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int pipe_fds[2], word, epoll_fd;
static struct timespec until, deadline;
static volatile int inside;

#define THREAD(name, call, early) \
    static void *name(void *problem) \
    { \
        __sync_fetch_and_add(&inside, 1); \
        long result = call; \
        struct timespec now; \
        int error = errno; \
        clock_gettime(CLOCK_MONOTONIC, &now); \
        double late = now.tv_sec - until.tv_sec + (now.tv_nsec - until.tv_nsec) / 1e9; \
        if ((late < -0.1 && !(early && result == -1 && error == EINTR)) || late > 20) \
            snprintf(problem, 99, "%s: %+.2f s, result %ld, errno %d", #name, late, result, error); \
        return NULL; \
    }

static struct timespec two = {2, 0}, also_two = {2, 0}, left, third_two = {2, 0}, fourth_two = {2, 0};
static struct pollfd nothing;
static struct epoll_event event;

THREAD(absolute, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL), 0)
THREAD(same, syscall(SYS_nanosleep, &two, &two), 0)
THREAD(relative, syscall(SYS_nanosleep, &also_two, &left), 1)
THREAD(polled, poll(&nothing, 1, 2000), 1)
THREAD(ppolled, syscall(SYS_ppoll, &nothing, 1, &third_two, NULL, 8), 0)
THREAD(selected, syscall(SYS_pselect6, 0, NULL, NULL, NULL, &fourth_two, NULL), 0)
THREAD(futex_until, syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &deadline, NULL, -1), 0)

// Relative sleeps that go on for what is left, by the pod's clock; a signal shows how long that is.
static struct timespec long_sleep = {1000, 0}, long_poll = {1000, 0};
static struct timeval long_select = {1000, 0};

static void *sleeps(void *problem)
{
    __sync_fetch_and_add(&inside, 1);
    syscall(SYS_nanosleep, &long_sleep, &long_sleep);
    return problem;
}

static void *polls(void *problem)
{
    __sync_fetch_and_add(&inside, 1);
    syscall(SYS_ppoll, &nothing, 1, &long_poll, NULL, 8);
    return problem;
}

static void *selects(void *problem)
{
    __sync_fetch_and_add(&inside, 1);
    syscall(SYS_select, 0, NULL, NULL, NULL, &long_select);
    return problem;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void wake(int number)
{
    (void)number;
}

static volatile int epolled;

static void *epoll_forever(void *problem)
{
    __sync_fetch_and_add(&inside, 1);
    int result = epoll_wait(epoll_fd, &event, 1, -1);
    if (result != 1)
        snprintf(problem, 99, "epoll_wait: %d, errno %d", result, errno);
    epolled = 1;
    return NULL;
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (pipe(pipe_fds))
        return 1;
    nothing = (struct pollfd){.fd = pipe_fds[0], .events = POLLIN};
    int other[2];
    if (pipe(other))
        return 1;
    epoll_fd = epoll_create1(0);
    event.events = EPOLLIN;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, other[0], &event);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 2;
    deadline = until;

    void *(*works[])(void *) = {absolute, same, relative, polled, ppolled, selected, futex_until,
                                epoll_forever};
    int count = sizeof works / sizeof *works;
    struct sigaction waking = {.sa_handler = wake};
    sigaction(SIGUSR2, &waking, NULL);
    void *(*long_works[])(void *) = {sleeps, polls, selects};
    pthread_t long_threads[3];
    double start = now();
    for (int i = 0; i < 3; i++)
        pthread_create(&long_threads[i], NULL, long_works[i], NULL);
    pthread_t threads[count];
    char problems[count][100];
    memset(problems, 0, sizeof problems);
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, works[i], problems[i]);
    while (inside < count + 3)
        usleep(1000);
    usleep(20000);
    printf("ready\n");
    fflush(stdout);
    int number;
    sigwait(&set, &number);
    if (epolled)
        strcpy(problems[count - 1], "epoll_wait came back");
    if (write(other[1], "x", 1) != 1)
        return 1;
    int failed = 0;
    double begun = now();
    for (int i = 0; i < 3; i++) {
        pthread_kill(long_threads[i], SIGUSR2);
        pthread_join(long_threads[i], NULL);
    }
    double lefts[] = {long_sleep.tv_sec + long_sleep.tv_nsec / 1e9,
                      long_poll.tv_sec + long_poll.tv_nsec / 1e9,
                      long_select.tv_sec + long_select.tv_usec / 1e6};
    for (int i = 0; i < 3; i++) {
        if (begun + lefts[i] > start + 1000.15 || now() + lefts[i] < start + 999.9) {
            printf("%slong sleep %d is late by %.2f s", failed ? "; " : "fail: ", i,
                   begun + lefts[i] - start - 1000);
            failed = 1;
        }
    }
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        if (problems[i][0]) {
            printf("%s%s", failed ? "; " : "fail: ", problems[i]);
            failed = 1;
        }
    }
    printf("%s\n", failed ? "" : "ok");
    return 0;
}
