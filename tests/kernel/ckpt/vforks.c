// A parent that is nearly always in vfork(2): it cannot stop before its child has ended.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct timespec none, a_while = {0, 60000000};

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    printf("ready\n");
    fflush(stdout);
    while (sigtimedwait(&set, NULL, &none) < 0) {
        int status;
        pid_t pid = vfork();
        if (pid == 0) {
            nanosleep(&a_while, NULL);
            _exit(200);
        }
        if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 200) {
            printf("fail: status %#x of child %d\n", status, pid);
            return 1;
        }
    }
    printf("ok\n");
    return 0;
}
