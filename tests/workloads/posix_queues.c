// POSIX message queues: that nobody has open, open twice, removed; priorities, limits, a sleeper.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char text[256];

static int fail(const char *why)
{
    printf("fail: %s: %s\n", why, strerror(errno));
    return 1;
}

static int takes(mqd_t queue, const char *expected, unsigned priority)
{
    unsigned found;
    ssize_t length = mq_receive(queue, text, sizeof text, &found);
    return length == (ssize_t)strlen(expected) && !memcmp(text, expected, length) &&
           found == priority;
}

int main(void)
{
    sigset_t set;
    int number, status;
    struct mq_attr attributes = {.mq_maxmsg = 7, .mq_msgsize = 200};
    struct stat stat;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);

    mqd_t left = mq_open("/left", O_CREAT | O_RDWR, 0640, &attributes);
    fchown(left, 33, 34);
    mq_send(left, "low", 3, 1);
    mq_send(left, "high", 4, 9);
    mq_send(left, "low too", 7, 1);
    mq_send(left, "", 0, 32767);
    mq_close(left);
    mqd_t writer = mq_open("/open", O_CREAT | O_WRONLY | O_NONBLOCK, 0600, &attributes);
    mqd_t reader = mq_open("/open", O_RDONLY);
    mqd_t removed = mq_open("/removed", O_CREAT | O_RDWR, 0600, NULL);
    mq_unlink("/removed");
    mq_send(removed, "nameless", 8, 5);
    int child = fork();
    if (child == 0)
        _exit(takes(reader, "woken", 2) ? 0 : 1);

    puts("ready");
    sigwait(&set, &number);
    left = mq_open("/left", O_RDWR | O_NONBLOCK);
    if (left < 0 || fstat(left, &stat))
        return fail("the queue that nobody has open");
    if (stat.st_uid != 33 || stat.st_gid != 34 || (stat.st_mode & 07777) != 0640)
        return fail("its owner");
    mq_getattr(left, &attributes);
    if (attributes.mq_maxmsg != 7 || attributes.mq_msgsize != 200 || attributes.mq_curmsgs != 4)
        return fail("its attributes");
    if (!takes(left, "", 32767) || !takes(left, "high", 9) || !takes(left, "low", 1) ||
        !takes(left, "low too", 1) || mq_receive(left, text, sizeof text, NULL) >= 0)
        return fail("its messages");
    mq_getattr(writer, &attributes);
    if (attributes.mq_flags != O_NONBLOCK || mq_receive(writer, text, sizeof text, NULL) >= 0)
        return fail("flags of the writer");
    mq_getattr(reader, &attributes);
    if (attributes.mq_flags || attributes.mq_curmsgs)
        return fail("flags of the reader");
    mq_send(writer, "woken", 5, 2);
    if (waitpid(child, &status, 0) != child || status)
        return fail("the one who waited");
    static char room[1 << 16];
    if (mq_receive(removed, room, sizeof room, NULL) != 8 || memcmp(room, "nameless", 8))
        return fail("the removed one");
    if (mq_open("/removed", O_RDONLY) >= 0)
        return fail("the removed one has its name again");
    puts("ok");
    return 0;
}
