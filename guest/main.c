#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "guestd.h"

enum { OPEN_FILES = 65536 };  // the door's connections, and four of each process

struct guestd guestd = {.cgroup = "/sys/fs/cgroup/workload", .root_fd = -1};

static struct watch signals = {.fd = -1};

void complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("guestd: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

static void signals_ready(struct watch *watch, uint32_t events) {
    (void)events;
    struct signalfd_siginfo info;
    while (read(watch->fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD) {
            processes_reap();
        } else if (guestd.test) {  // the test is over
            processes_kill();
            exit(0);
        }
    }
}

static void signals_open(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    watch_open(&signals, signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), EPOLLIN, signals_ready);
}

static void draw_boot_id(void) {
    if (getrandom(guestd.boot_id, sizeof guestd.boot_id, GRND_NONBLOCK) != sizeof guestd.boot_id) {
        struct timespec now;  // the pool is not ready this early on some kernels: the id only has to differ
        clock_gettime(CLOCK_REALTIME, &now);
        memcpy(guestd.boot_id, &now, sizeof now < 16 ? sizeof now : 16);
    }
}

int main(int argc, char **argv) {
    int http_port = HTTP_PORT;
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    if (argc && !strcmp(slash ? slash + 1 : argv[0], "perdure-guest"))
        return client_main(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (getpid() != 1 && i + 1 < argc && !strcmp(argv[i], "--test-socket")) {
            guestd.test = true;
            guestd.test_socket = argv[++i];
            guestd.cgroup = NULL;
            http_port = 0;
        } else if (guestd.test && i + 1 < argc && !strcmp(argv[i], "--test-cgroup")) {
            guestd.cgroup = argv[++i];
        }  // PID 1 ignores what it does not know: the kernel passes words of its command line
    }
    if (getpid() != 1 && !guestd.test) {
        fprintf(stderr, "usage: guestd --test-socket PATH [--test-cgroup FOLDER]   (it is PID 1 of a microVM otherwise)\n");
        return 2;
    }
    if (!guestd.test)
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){OPEN_FILES, OPEN_FILES});
    loop_open();
    signals_open();
    if (guestd.test) {
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        guestd.root_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    } else {
        mounts_boot();
    }
    draw_boot_id();
    calls_open(http_port);
    channel_open();
    for (;;) {
        channel_flush();
        loop_step();
    }
}
