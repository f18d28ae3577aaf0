// Stacked system-call filters, of each thread its own; strict mode stays strict.
// toml: [network]
// toml: mode = "none"
// toml: [privileges]
// toml: seccomp = "none"
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_barrier_t gate;
static int wrong;

static void deny_with(int call, int error, int flags)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog whole = {sizeof program / sizeof *program, program};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &whole))
        perror("seccomp"), exit(1);
}

static void deny(int call, int error)
{
    deny_with(call, error, 0);
}

static int error_of(int call)
{
    errno = 0;
    syscall(call, -1, NULL, -1);
    return errno;
}

static void *work(void *unused)
{
    deny(SYS_getpriority, 99);
    pthread_barrier_wait(&gate);
    pthread_barrier_wait(&gate);
    wrong |= error_of(SYS_getpriority) != 99 || error_of(SYS_sched_yield) != 77;
    return NULL;
}

static void *work_together(void *unused)
{
    pthread_barrier_wait(&gate);
    wrong |= error_of(SYS_getpriority) != 99;
    return NULL;
}

// What was the same filter is still: so one more can be installed for all threads at once.
static int be_together(const sigset_t *set)
{
    int number;
    pthread_t thread;
    pthread_barrier_init(&gate, NULL, 2);
    deny(SYS_sched_yield, 77);
    pthread_create(&thread, NULL, work_together, NULL);
    sigwait(set, &number);
    deny_with(SYS_getpriority, 99, SECCOMP_FILTER_FLAG_TSYNC);
    pthread_barrier_wait(&gate);
    pthread_join(thread, NULL);
    return wrong;
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fds[2];
    if (pipe(fds))
        return 1;
    pid_t strict = fork();
    if (strict == 0) {
        char byte;
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
        syscall(SYS_read, fds[0], &byte, 1);
        syscall(SYS_getppid);  // deadly
        syscall(SYS_exit, 0);
    }
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    pid_t together = fork();
    if (together == 0)
        return be_together(&set);
    pthread_barrier_init(&gate, NULL, 2);
    deny(SYS_sched_yield, 77);
    deny(SYS_getppid, 78);
    pthread_t thread;
    pthread_create(&thread, NULL, work, NULL);
    pthread_barrier_wait(&gate);
    printf("ready\n");
    fflush(stdout);
    int number, status;
    sigwait(&set, &number);
    wrong |= error_of(SYS_sched_yield) != 77 || error_of(SYS_getppid) != 78;
    wrong |= error_of(SYS_getpriority) == 99;
    pthread_barrier_wait(&gate);
    pthread_join(thread, NULL);
    if (wrong)
        printf("fail: a filter\n");
    if (write(fds[1], "x", 1) != 1)
        return 1;
    kill(together, SIGUSR1);
    if (waitpid(together, &status, 0) != together || status)
        printf("fail: filters of all threads, status %x\n", status);
    waitpid(strict, &status, 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        printf("fail: strict mode, status %x\n", status);
    printf("ok\n");
    return 0;
}
