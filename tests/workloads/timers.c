// Timers: setitimer(2) and timer_create(2) with their ids, what was left, and their data.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition, what) \
    do { if (!(condition)) { printf("fail: %s\n", what); fflush(stdout); exit(1); } } while (0)

static int create(clockid_t clock, int number, int value, int notify)
{
    int id = -1;
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = number};
    event.sigev_value.sival_int = value;
    if (notify == SIGEV_THREAD_ID)
        event._sigev_un._tid = getpid();
    syscall(SYS_timer_create, clock, &event, &id);
    return id;
}

static void arm(int id, double first, double period)
{
    struct itimerspec time = {
        .it_value = {first, (first - (long)first) * 1e9},
        .it_interval = {period, (period - (long)period) * 1e9},
    };
    syscall(SYS_timer_settime, id, 0, &time, NULL);
}

static double left(int id)
{
    struct itimerspec time;
    if (syscall(SYS_timer_gettime, id, &time))
        return -1;
    return time.it_value.tv_sec + time.it_value.tv_nsec / 1e9;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

// Another process may run between two looks, not each time: then it seems to be earlier.
static double due(double (*left_of)(int), int timer)
{
    double latest = 0;
    for (int i = 0; i < 50; i++) {
        double at = now() + left_of(timer);
        latest = at > latest ? at : latest;
    }
    return latest;
}

// A restart takes longer than this, also where nothing else runs.
static int is_due(double (*left_of)(int), int timer, double at)
{
    double late = due(left_of, timer) - at;
    return late > -0.05 && late < 0.05;
}

static double left_of_interval(int which)
{
    struct itimerval time;
    getitimer(which, &time);
    return time.it_value.tv_sec + time.it_value.tv_usec / 1e6;
}

int main(void)
{
    sigset_t set, waited;
    sigemptyset(&waited);
    sigaddset(&waited, SIGUSR1);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);

    int long_one = create(CLOCK_MONOTONIC, SIGRTMIN + 1, 41, SIGEV_SIGNAL);
    int gap = create(CLOCK_REALTIME, SIGRTMIN + 1, 0, SIGEV_SIGNAL);
    int periodic = create(CLOCK_BOOTTIME, SIGRTMIN + 2, 42, SIGEV_THREAD_ID);
    int silent = create(CLOCK_MONOTONIC, 0, 0, SIGEV_NONE);
    int unarmed = create(CLOCK_REALTIME, SIGRTMIN + 1, 43, SIGEV_SIGNAL);
    syscall(SYS_timer_delete, gap);
    int wall = create(CLOCK_REALTIME, SIGRTMIN + 1, 44, SIGEV_SIGNAL);
    arm(wall, 4000, 0);
    arm(long_one, 10000, 0);
    arm(periodic, 0.05, 0.05);
    arm(silent, 5000, 10);
    struct itimerval real = {.it_value = {3000, 0}, .it_interval = {7, 500000}};
    setitimer(ITIMER_REAL, &real, NULL);
    struct itimerval cpu = {.it_value = {100, 0}};
    setitimer(ITIMER_PROF, &cpu, NULL);
    double long_due = due(left, long_one), wall_due = due(left, wall);
    double real_due = due(left_of_interval, ITIMER_REAL);
    printf("ready\n");
    fflush(stdout);

    int number;
    sigwait(&waited, &number);
    // By the pod's clock, which ran on during the restart.
    CHECK(is_due(left, long_one, long_due), "when a timer expires");
    CHECK(is_due(left, wall, wall_due), "when a timer of the wall clock expires");
    CHECK(is_due(left_of_interval, ITIMER_REAL, real_due), "when the interval timer expires");
    double seconds = left(long_one);
    CHECK(seconds > 5000 && seconds <= 10000, "a timer's time");
    CHECK(left(gap) < 0 && errno == EINVAL, "a timer that was deleted");
    CHECK(left(unarmed) == 0, "a timer that was not armed");
    seconds = left(silent);
    CHECK(seconds > 500 && seconds <= 5000, "a timer without notification");
    getitimer(ITIMER_REAL, &real);
    CHECK(real.it_value.tv_sec >= 300 && real.it_value.tv_sec <= 3000, "the interval timer");
    CHECK(real.it_interval.tv_sec == 7 && real.it_interval.tv_usec == 500000, "its interval");
    getitimer(ITIMER_PROF, &cpu);
    CHECK(cpu.it_value.tv_sec >= 95, "the profiling timer");

    siginfo_t info;
    struct timespec patience = {30, 0};
    sigset_t period;
    sigemptyset(&period);
    sigaddset(&period, SIGRTMIN + 2);
    for (int i = 0; i < 3; i++) {
        CHECK(sigtimedwait(&period, &info, &patience) == SIGRTMIN + 2, "the periodic timer");
        CHECK(info.si_code == SI_TIMER && info.si_value.sival_int == 42, "its data");
    }
    int fresh = create(CLOCK_MONOTONIC, SIGRTMIN + 1, 0, SIGEV_SIGNAL);
    CHECK(fresh >= 0 && fresh != long_one && fresh != periodic, "a new timer's id");
    printf("ok\n");
    return 0;
}
