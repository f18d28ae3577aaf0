/* What a system call costs: "plain", and "emulated" by the pod's monitor. Prints nanoseconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CALLS 1000

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * t.tv_sec + t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return difference < 0 ? -1 : difference > 0;
}

static double plain(void) {
    double best = 1e18;
    for (int round = 0; round < 10; round++) {
        double start = now();
        for (int i = 0; i < 300000; i++)
            syscall(SYS_getpid);
        double each = (now() - start) / 300000;
        best = each < best ? each : best;
    }
    return best;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "plain")) {
        printf("%.1f\n", plain());
        return 0;
    }
    static double refused[CALLS], done[CALLS];
    mkdir("/srv/bench", 0755);
    for (int i = -10; i < CALLS; i++) {
        double start = now();
        if (mount("none", "/srv/bench", "sysfs", 0, 0) == 0 || errno != EPERM)
            return 1;
        double middle = now();
        if (mount("none", "/srv/bench", "tmpfs", 0, 0) || umount("/srv/bench"))
            return 2;
        if (i >= 0) {
            refused[i] = middle - start;
            done[i] = (now() - middle) / 2;
        }
    }
    qsort(refused, CALLS, sizeof *refused, compare);
    qsort(done, CALLS, sizeof *done, compare);
    printf("%.0f %.0f\n", refused[CALLS / 2], done[CALLS / 2]);
    return 0;
}
