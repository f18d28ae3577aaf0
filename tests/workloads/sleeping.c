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
    pthread_t threads[count];
    char problems[count][100];
    memset(problems, 0, sizeof problems);
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, works[i], problems[i]);
    while (inside < count)
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
