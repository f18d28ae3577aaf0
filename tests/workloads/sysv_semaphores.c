// System V semaphores: values, owner, a sleeper, and what is undone when a process ends.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <unistd.h>

static int set;

static int fail(const char *why)
{
    printf("fail: %s\n", why);
    return 1;
}

static int operate(int number, int operation, int flags)
{
    struct sembuf one = {number, operation, flags};
    return semop(set, &one, 1);
}

static int value(int number)
{
    return semctl(set, number, GETVAL);
}

int main(void)
{
    sigset_t signals;
    int number, status;
    struct semid_ds was, is;
    unsigned short first[5] = {3, 32767, 0, 10, 0};
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);

    semctl(semget(IPC_PRIVATE, 1, 0600), 0, IPC_RMID);
    set = semget(0x4321, 5, IPC_CREAT | 0620);
    semctl(set, 0, SETALL, first);
    int child = fork();
    if (child == 0) {
        operate(0, -2, SEM_UNDO);
        operate(1, -32767, SEM_UNDO);
        operate(2, 1234, SEM_UNDO);
        operate(3, -1, SEM_UNDO);
        operate(3, 1, SEM_UNDO);
        operate(4, 1, 0);  // the parent may look
        sigwait(&signals, &number);
        _exit(0);
    }
    operate(4, -1, 0);
    operate(0, -1, SEM_UNDO);
    int sleeper = fork();
    if (sleeper == 0)
        _exit(operate(0, -1, 0) ? errno : 0);
    while (semctl(set, 0, GETNCNT) != 1)
        usleep(1000);
    semctl(set, 0, IPC_STAT, &was);

    puts("ready");
    sigwait(&signals, &number);
    semctl(set, 0, IPC_STAT, &is);
    if (semget(0x4321, 5, 0) != set || memcmp(&was.sem_perm, &is.sem_perm, sizeof was.sem_perm))
        return fail("the set is another");
    if (value(0) != 0 || value(1) != 0 || value(2) != 1234 || value(3) != 10 || value(4) != 0)
        return fail("a value");
    for (int left = 50000; semctl(set, 0, GETNCNT) != 1; usleep(1000))  // it goes to sleep again
        if (!left--)
            return fail("nobody sleeps");
    kill(child, SIGUSR1);
    if (waitpid(child, &status, 0) != child || status)
        return fail("the child");
    if (waitpid(sleeper, &status, 0) != sleeper || status)
        return fail("the sleeper was not woken by what was undone");
    if (value(0) != 1 || value(1) != 32767 || value(2) != 0 || value(3) != 10)
        return fail("what is undone");
    int late = fork();
    if (late == 0)  // inherits nothing to undo
        _exit(0);
    waitpid(late, &status, 0);
    if (value(0) != 1)
        return fail("a child has undone what its parent did");
    puts("ok");
    return 0;
}
