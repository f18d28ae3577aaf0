// The first thread has ended; another goes on, with memory, open files, locks, children and signals.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition, what) \
    do { if (!(condition)) { printf("fail: %s\n", what); fflush(stdout); exit(1); } } while (0)

static pthread_t first;
static int pipe_fds[2], waiting[2], locked_fd;
static volatile pid_t tids[2];
static char *memory;

static char state_of(pid_t tid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", tid);
    FILE *file = fopen(path, "r");
    if (!file || !fgets(text, sizeof text, file))
        return '?';
    fclose(file);
    return strrchr(text, ')')[2];
}

static void *idle(void *unused)
{
    char byte;
    tids[1] = gettid();
    if (read(waiting[0], &byte, 1) != 1)
        return NULL;
    return unused;
}

static pid_t start_child(void)
{
    pid_t child = fork();
    if (child)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    char byte;
    if (read(pipe_fds[0], &byte, 1) == 1 && fcntl(locked_fd, F_SETLK, &lock) == -1)
        _exit(7);
    _exit(8);
}

static void *go_on(void *unused)
{
    sigset_t set, pending;
    pthread_t other;
    (void)unused;
    tids[0] = gettid();
    CHECK(pthread_join(first, NULL) == 0, "the first thread does not end");
    while (state_of(getpid()) != 'Z')
        sched_yield();
    CHECK(pthread_create(&other, NULL, idle, pipe_fds) == 0, "a thread");
    while (!tids[1])
        sched_yield();
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    CHECK(fcntl(locked_fd, F_SETLK, &lock) == 0, "a lock");
    pid_t child = start_child();
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(kill(getpid(), SIGUSR2) == 0, "a signal");
    printf("ready\n");
    fflush(stdout);

    int number, status;
    sigwait(&set, &number);
    CHECK(state_of(getpid()) == 'Z', "the first thread lives");
    CHECK(gettid() == tids[0] && state_of(tids[1]) == 'S', "the threads");
    CHECK(strcmp(memory, "kept") == 0, "the memory");
    siginfo_t info;
    sigemptyset(&pending);
    sigaddset(&pending, SIGUSR2);
    CHECK(sigwaitinfo(&pending, &info) == SIGUSR2 && info.si_pid == getpid(), "the signal");
    CHECK(write(pipe_fds[1], "x", 1) == 1, "the pipe");
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7, "the child");
    CHECK(write(waiting[1], "x", 1) == 1, "the other pipe");
    void *result;
    CHECK(pthread_join(other, &result) == 0 && result == pipe_fds, "the other thread");
    printf("ok\n");
    fflush(stdout);
    exit(0);
}

int main(void)
{
    sigset_t set;
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    memory = strdup("kept");
    first = pthread_self();
    locked_fd = open("/tmp/locked", O_CREAT | O_RDWR, 0600);
    if (pipe(pipe_fds) || pipe(waiting) || locked_fd < 0)
        return 1;
    pthread_create(&thread, NULL, go_on, NULL);
    pthread_exit(NULL);
}
