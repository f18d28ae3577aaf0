/* Has many children, and kills them as soon as /tmp/go is there; prints ok when it has heard of all. */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILDREN = 60 };

int main(void)
{
    pid_t children[CHILDREN];
    int status;
    for (int n = 0; n < CHILDREN; n++)
        if (!(children[n] = fork()))
            for (;;)
                pause();
    puts("ready");
    fflush(stdout);
    while (access("/tmp/go", F_OK))
        ;
    for (int n = CHILDREN; n--;)
        kill(children[n], SIGKILL);
    for (int n = 0; n < CHILDREN; n++)
        if (waitpid(children[n], &status, 0) != children[n] || !WIFSIGNALED(status))
            return 1;
    puts("ok");
    fflush(stdout);
    pause();
}
