// Signals: actions, masks, pending ones with their data, alternate stacks.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHECK(condition, what) \
    do { if (!(condition)) { printf("fail: %s\n", what); fflush(stdout); exit(1); } } while (0)

static char stack[65536];
static volatile int values[8], count, on_stack, handler_mask;
static volatile pthread_t got_private;

static void on_value(int number, siginfo_t *info, void *context)
{
    char here;
    values[count++] = info->si_value.sival_int;
    on_stack = &here >= stack && &here < stack + sizeof stack;
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    handler_mask = sigismember(&now, SIGURG);
    if (info->si_code != SI_QUEUE || info->si_pid != getpid() || number != SIGRTMIN + 3)
        count = -100;
}

static void on_private(int number) { got_private = pthread_self(); }

static void *wait_private(void *gate)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_kill(pthread_self(), SIGUSR2);
    pthread_barrier_wait(gate);  // it is pending
    pthread_barrier_wait(gate);  // restarted
    sigset_t pending;
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR2), "a thread's pending signal");
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    return NULL;
}

int main(void)
{
    sigset_t waited, blocked, found;
    sigemptyset(&waited);
    sigaddset(&waited, SIGUSR1);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGRTMIN + 3);
    sigaddset(&blocked, SIGRTMIN + 4);
    sigaddset(&blocked, SIGHUP);
    sigprocmask(SIG_SETMASK, &blocked, NULL);

    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, NULL);
    struct sigaction action = {.sa_sigaction = on_value, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGURG);
    sigaction(SIGRTMIN + 3, &action, NULL);
    struct sigaction plain = {.sa_handler = on_private, .sa_flags = SA_RESETHAND};
    sigaction(SIGUSR2, &plain, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (int value = 1; value <= 3; value++)
        sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = value * 11});
    // All that is behind si_code is the program's, what no field is at, too.
    int whole[32] = {SIGRTMIN + 4, 5, -60};
    for (int n = 3; n < 12; n++)
        whole[n] = n * 0x1010101;
    syscall(SYS_rt_sigqueueinfo, getpid(), SIGRTMIN + 4, whole);

    pthread_t thread;
    pthread_barrier_t gate;
    pthread_barrier_init(&gate, NULL, 2);
    pthread_create(&thread, NULL, wait_private, &gate);
    pthread_barrier_wait(&gate);
    printf("ready\n");
    fflush(stdout);

    int number;
    sigwait(&waited, &number);
    CHECK(count == 0, "a blocked signal was delivered");
    sigprocmask(SIG_BLOCK, NULL, &found);
    for (int n = 1; n < 64; n++)
        CHECK(sigismember(&found, n) == sigismember(&blocked, n), "the mask");
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 3);
    sigprocmask(SIG_UNBLOCK, &one, NULL);
    CHECK(count == 3 && values[0] == 11 && values[1] == 22 && values[2] == 33, "queued signals");
    CHECK(on_stack, "the alternate stack");
    int got[32];
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 4);
    CHECK(sigwaitinfo(&one, (siginfo_t *)got) == SIGRTMIN + 4, "a signal of the program's own");
    CHECK(!memcmp(got, whole, sizeof whole), "what came with it");
    CHECK(handler_mask, "the handler's mask");
    struct sigaction now;
    sigaction(SIGPIPE, NULL, &now);
    CHECK(now.sa_handler == SIG_IGN, "an ignored signal");
    sigaction(SIGTERM, NULL, &now);
    CHECK(now.sa_handler == SIG_DFL, "a default action");
    sigaction(SIGUSR2, NULL, &now);
    CHECK(now.sa_handler == on_private && now.sa_flags & SA_RESETHAND, "a handler's flags");
    pthread_barrier_wait(&gate);
    pthread_join(thread, NULL);
    CHECK(got_private == thread, "who got the thread's signal");
    printf("ok\n");
    return 0;
}
