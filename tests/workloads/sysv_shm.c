// System V shared memory: shared by two processes, attached twice, removed but attached, unattached.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (5 * 4096 + 56)

static int fail(const char *why)
{
    printf("fail: %s\n", why);
    return 1;
}

int main(void)
{
    sigset_t set;
    int number, status;
    struct shmid_ds was[4], is[4];
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);

    int spare = shmget(IPC_PRIVATE, 4096, 0600);  // so that the ids have gaps
    int ids[4] = {
        shmget(0x1234, SIZE, IPC_CREAT | 0640), shmget(IPC_PRIVATE, 1 << 20, 0600),
        shmget(IPC_PRIVATE, 4096, 0600),        shmget(0x5678, 56, IPC_CREAT | 0666),
    };
    shmctl(spare, IPC_RMID, NULL);
    char *segment = shmat(ids[0], NULL, 0);
    const char *reading = shmat(ids[0], NULL, SHM_RDONLY);
    char *part = shmat(ids[1], NULL, 0);
    char *removed = shmat(ids[2], NULL, 0);
    char *left = shmat(ids[3], NULL, 0);
    strcpy(segment + 8192, "kept");
    strcpy(part + (512 << 10), "the middle");
    munmap(part, 256 << 10);
    munmap(part + (768 << 10), 256 << 10);
    mprotect(part + (512 << 10), 4096, PROT_READ);
    strcpy(removed, "removed");
    shmctl(ids[2], IPC_RMID, NULL);
    strcpy(left, "unattached");
    shmdt(left);
    struct shmid_ds given = {.shm_perm = {.uid = 33, .gid = 34, .mode = 0604}};
    shmctl(ids[3], IPC_SET, &given);
    int child = fork();
    if (child == 0) {
        sigwait(&set, &number);
        strcpy(segment, "from the child");
        _exit(strcmp(segment + 8192, "kept") || strcmp(removed, "removed"));
    }
    for (int i = 0; i < 4; i++)
        shmctl(ids[i], IPC_STAT, &was[i]);

    puts("ready");
    sigwait(&set, &number);
    for (int i = 0; i < 4; i++) {
        if (shmctl(ids[i], IPC_STAT, &is[i]))
            return fail("a segment is gone");
        if (memcmp(&was[i].shm_perm, &is[i].shm_perm, sizeof(struct ipc_perm)) ||
            was[i].shm_segsz != is[i].shm_segsz || was[i].shm_nattch != is[i].shm_nattch)
            return fail("a segment is another");
    }
    if (shmget(0x1234, SIZE, 0) != ids[0] || shmget(0x5678, 0, 0) != ids[3])
        return fail("a key");
    if (strcmp(reading + 8192, "kept") || strcmp(part + (512 << 10), "the middle"))
        return fail("a content");
    if (mprotect((void *)reading, 4096, PROT_READ | PROT_WRITE) == 0)
        return fail("what was attached for reading can be written to");
    if (mprotect(part + (512 << 10), 4096, PROT_READ | PROT_WRITE))
        return fail("what was attached for writing cannot be written to");
    kill(child, SIGUSR1);
    if (wait(&status) != child || status)
        return fail("the child");
    if (strcmp(reading, "from the child"))
        return fail("it is not shared any more");
    left = shmat(ids[3], NULL, 0);
    if (strcmp(left, "unattached"))
        return fail("content of the unattached one");
    shmdt(removed);
    if (shmctl(ids[2], IPC_STAT, &is[2]) == 0)
        return fail("the removed one has outlived its last user");
    puts("ok");
    return 0;
}
