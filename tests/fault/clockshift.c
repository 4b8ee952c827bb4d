/* Preloaded into a process: its wall clock is off by CLOCKSHIFT_S seconds. Only what is read is shifted; waiting is not.
 *
 * libfaketime (0.9.10) wraps sleeping and condition variables, too: under it time.sleep of Python 3.11 fails with EINVAL
 * and a worker stands still for seconds, so it would be the tool that was tested.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    static long seconds = -1;
    static int known = 0;
    if (!known) {
        const char *text = getenv("CLOCKSHIFT_S");
        seconds = text ? atol(text) : 0;
        known = 1;
    }
    return seconds;
}

static int is_wall(clockid_t clock) {
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && is_wall(clock)) now->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec += shift();
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
