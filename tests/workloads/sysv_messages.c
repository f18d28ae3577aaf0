// System V message queues: texts, types, order, owner, size, and one who waits.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/wait.h>
#include <unistd.h>

struct message {
    long type;
    char text[8192];
};

static int fail(const char *why)
{
    printf("fail: %s\n", why);
    return 1;
}

int main(void)
{
    sigset_t signals;
    int number, status;
    struct msqid_ds was, is;
    static struct message message;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);

    msgctl(msgget(IPC_PRIVATE, 0600), IPC_RMID, NULL);
    int queue = msgget(0x777, IPC_CREAT | 0640), empty = msgget(IPC_PRIVATE, 0600);
    message.type = 7;
    memset(message.text, 'x', sizeof message.text);
    msgsnd(queue, &message, sizeof message.text, 0);
    message.type = 3;
    msgsnd(queue, &message, 0, 0);
    message.type = 0x7fffffffffff;
    strcpy(message.text, "far");
    msgsnd(queue, &message, 4, 0);
    msgctl(queue, IPC_STAT, &was);
    was.msg_perm.uid = 33;
    was.msg_qbytes = 1000;  // less than waits
    msgctl(queue, IPC_SET, &was);
    msgctl(queue, IPC_STAT, &was);
    int child = fork();
    if (child == 0)
        _exit(msgrcv(empty, &message, 10, 5, 0) == 2 ? 0 : errno);

    puts("ready");
    sigwait(&signals, &number);
    msgctl(queue, IPC_STAT, &is);
    if (msgget(0x777, 0) != queue || memcmp(&was.msg_perm, &is.msg_perm, sizeof was.msg_perm) ||
        was.msg_qnum != is.msg_qnum || was.msg_qbytes != is.msg_qbytes)
        return fail("the queue is another");
    if (msgrcv(queue, &message, sizeof message.text, 0, IPC_NOWAIT) != sizeof message.text ||
        message.type != 7 || message.text[8191] != 'x')
        return fail("the first message");
    if (msgrcv(queue, &message, sizeof message.text, 0, IPC_NOWAIT) != 0 || message.type != 3)
        return fail("the empty message");
    if (msgrcv(queue, &message, sizeof message.text, 0, IPC_NOWAIT) != 4 ||
        message.type != 0x7fffffffffff || strcmp(message.text, "far"))
        return fail("the last message");
    message.type = 5;
    msgsnd(empty, &message, 2, 0);
    if (waitpid(child, &status, 0) != child || status)
        return fail("the one who waited");
    puts("ok");
    return 0;
}
