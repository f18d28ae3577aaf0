// What threads have registered with the kernel: robust mutexes, thread ids, the vDSO's clocks;
// and a process, that its threads may be made to see memory as it is (membarrier(2)).
#define _GNU_SOURCE
#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t mutex;
static pthread_barrier_t gate;

static void *holder(void *unused)
{
    pthread_mutex_lock(&mutex);
    pthread_barrier_wait(&gate);
    pthread_barrier_wait(&gate);
    return NULL;  // still locked
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&mutex, &attributes);
    pthread_barrier_init(&gate, NULL, 2);
    pthread_t thread;
    pthread_create(&thread, NULL, holder, NULL);
    pthread_barrier_wait(&gate);
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0))
        printf("fail: membarrier\n");
    struct timespec before, after, real;
    clock_gettime(CLOCK_MONOTONIC, &before);
    printf("ready\n");
    fflush(stdout);
    int number;
    sigwait(&set, &number);
    clock_gettime(CLOCK_MONOTONIC, &after);
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0))
        printf("fail: the registration is lost\n");
    if (!syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0))
        printf("fail: a registration that was not made\n");
    double passed = after.tv_sec - before.tv_sec + (after.tv_nsec - before.tv_nsec) / 1e9;
    struct timespec by_kernel;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_kernel);
    double apart = by_kernel.tv_sec - after.tv_sec + (by_kernel.tv_nsec - after.tv_nsec) / 1e9;
    clock_gettime(CLOCK_REALTIME, &real);
    if (passed < 0 || apart < 0 || apart > 10 || real.tv_sec < 1700000000)
        printf("fail: clocks: %f s passed, %f s apart\n", passed, apart);
    if (sched_getcpu() < 0)
        printf("fail: sched_getcpu\n");
    pthread_barrier_wait(&gate);
    pthread_join(thread, NULL);
    if (pthread_mutex_lock(&mutex) != EOWNERDEAD)
        printf("fail: the robust mutex\n");
    printf("ok\n");
    return 0;
}
