// What concerns the whole machine: configure, quiesce (before a capture), wake (after a restore), power off.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#include "guestd.h"

enum { REPORT = 240, FLAGS_END = 8, POLL_MS = 2, ENTROPY_MAX = 512, POWER_OFF_MS = 200 };
enum { DROP_KIB = 4096, CHANGED_KIB = 1024 };

static bool write_to(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return written;
}

// Configure ---------------------------------------------------------------------------------------------------------

static struct {
    bool busy;
    uint64_t request;
    int64_t deadline_ms;
    char hostname[256];
    struct timer timer;
} configuring;

static void try_configure(struct timer *timer) {
    if (!drives_ready()) {
        if (now_ms() < configuring.deadline_ms) {
            timer_start(timer, POLL_MS, try_configure);
            return;
        }
        configuring.busy = false;
        request_done(configuring.request, REPLY_FAILED, 0, "the drives are still placeholders");
        return;
    }
    configuring.busy = false;
    const char *failed = mounts_image();
    if (failed) {
        request_done(configuring.request, REPLY_FAILED, 0, "%s", failed);
        return;
    }
    guestd.configured = true;
    if (!guestd.test) {
        identity_write(configuring.hostname, "");
        network_files(configuring.hostname);
    }
    request_done(configuring.request, REPLY_OK, 0, "%s", "");
}

void system_configure(struct reader *frame) {
    uint64_t request = get_number(frame, 8);
    int64_t budget_ms = (int64_t)get_number(frame, 4);
    struct slice hostname = get_text(frame);
    if (frame->bad || !request_begin(request))
        return;
    if (guestd.configured) {
        request_done(request, REPLY_OK, 0, "it was configured before");
    } else if (hostname.size > 64 || memchr(hostname.data, 0, hostname.size)) {
        request_done(request, REPLY_INVALID, 0, "a host name has at most 64 bytes");
    } else if (configuring.busy) {
        configuring.request = request;  // asked by another endpoint than the one that began it
    } else {
        configuring.busy = true;
        configuring.request = request;
        configuring.deadline_ms = now_ms() + budget_ms;
        memcpy(configuring.hostname, hostname.data, hostname.size);
        configuring.hostname[hostname.size] = 0;
        try_configure(&configuring.timer);
    }
}

// Freeze, quiesce, thaw ---------------------------------------------------------------------------------------------

static struct {
    bool busy;
    uint64_t request;
    int64_t deadline_ms;
    uint32_t done;
    char report[REPORT];
    size_t reported;
    struct timer timer;
} quiescing;

// What may take long is done by a process that can be left behind. It waits between two quiesces: a fork costs an
// emulated guest a third of a quiesce, and dirties pages.
static struct {
    pid_t pid;             // 0: none
    int orders;            // a byte each
    struct watch answers;  // the flag of each thing that it has done, its report, then a zero
    long kept_kib;         // what the caches held after they were dropped the last time; its own from its start on
} cleaner = {.orders = -1, .answers.fd = -1};

static void freeze(bool on) {
    char path[256];
    guestd.frozen = on;
    if (!guestd.cgroup)
        return;
    snprintf(path, sizeof path, "%s/cgroup.freeze", guestd.cgroup);
    if (!write_to(path, on ? "1" : "0"))
        complain("%s: %s", path, strerror(errno));
}

static bool is_frozen(void) {
    char path[256], events[256] = "";
    if (!guestd.cgroup)
        return false;
    snprintf(path, sizeof path, "%s/cgroup.events", guestd.cgroup);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    (void)!read(fd, events, sizeof events - 1);
    close(fd);
    return strstr(events, "frozen 1");
}

static void cleaner_end(void) {
    watch_close(&cleaner.answers);
    if (cleaner.orders >= 0)
        close(cleaner.orders);
    cleaner.orders = -1;
    if (cleaner.pid > 0)
        kill(cleaner.pid, SIGKILL);
    cleaner.pid = 0;
}

static void quiesce_end(unsigned code, const char *message) {
    timer_stop(&quiescing.timer);
    quiescing.busy = false;
    request_done(quiescing.request, code, quiescing.done, "%s", message);
}

static void quiesce_deadline(struct timer *timer) {
    (void)timer;
    if (quiescing.done & QUIESCED_SYNCED)  // what could not be dropped in time is in the capture's layers from now on
        cleaner.kept_kib = memory_cached_kib();
    cleaner_end();
    quiesce_end(REPLY_OK, "");
}

static void quiesce_progress(struct watch *watch, uint32_t events) {
    (void)events;
    uint8_t data[REPORT];
    ssize_t count = read(watch->fd, data, sizeof data);
    bool over = count == 0;  // it died
    if (over) {
        cleaner.pid = 0;
        cleaner_end();
    }
    for (ssize_t i = 0; i < count; i++) {
        if (data[i] == 0)
            over = true;
        else if (data[i] < FLAGS_END)  // no byte of the report is that small
            quiescing.done |= data[i];
        else if (quiescing.reported < REPORT - 1)
            quiescing.report[quiescing.reported++] = (char)data[i];
    }
    if (over && quiescing.busy) {
        quiescing.report[quiescing.reported] = 0;
        quiesce_end(REPLY_OK, quiescing.report);
    }
}

// Dropping caches costs more than half of a quiesce. What they held at the capture before is in its layers already, so
// it is done only when they have grown since by what is worth it. Where as much memory is free as at the last report,
// that one is given again: to read proc(5) costs more than the sync.
static void clean(int answers) {
    static char report[REPORT];
    static long free_kib;
    uint8_t flag = QUIESCED_SYNCED;
    sync();
    volumes_freeze();
    (void)!write(answers, &flag, 1);
    long now_kib = memory_free_kib();
    if (!report[0] || labs(now_kib - free_kib) >= CHANGED_KIB) {
        flag = QUIESCED_DROPPED;
        if (!guestd.test && memory_cached_kib() > cleaner.kept_kib + DROP_KIB &&
            write_to("/proc/sys/vm/drop_caches", "3")) {
            (void)!write(answers, &flag, 1);
            cleaner.kept_kib = memory_cached_kib();
            now_kib = memory_free_kib();
        }
        report[memory_report(report, sizeof report)] = 0;
        free_kib = now_kib;
    }
    (void)!write(answers, report, strlen(report) + 1);
}

static _Noreturn void cleaner_main(int orders, int answers) {
    uint8_t order;
    enum { ROOT = 3, FREE };
    answers = fcntl(answers, F_DUPFD, FREE);  // whatever numbers they have: none is where another goes
    orders = fcntl(orders, F_DUPFD, FREE);
    if (guestd.root_fd != ROOT && guestd.root_fd >= 0)
        dup2(guestd.root_fd, ROOT);
    guestd.root_fd = guestd.root_fd < 0 ? -1 : ROOT;
    dup2(orders, STDIN_FILENO);
    dup2(answers, STDOUT_FILENO);
    close_from(guestd.root_fd < 0 ? ROOT : FREE);
    while (read(STDIN_FILENO, &order, 1) == 1)
        clean(STDOUT_FILENO);
    _exit(0);
}

static bool cleaner_start(void) {
    int orders[2], answers[2];
    if (pipe2(orders, O_CLOEXEC))
        return false;
    if (pipe2(answers, O_CLOEXEC | O_NONBLOCK)) {
        close(orders[0]);
        close(orders[1]);
        return false;
    }
    cleaner.pid = fork();
    if (!cleaner.pid)
        cleaner_main(orders[0], answers[1]);
    close(orders[0]);
    close(answers[1]);
    cleaner.orders = orders[1];
    watch_open(&cleaner.answers, answers[0], EPOLLIN, quiesce_progress);
    if (cleaner.pid > 0)
        return true;
    cleaner_end();
    return false;
}

static void quiesce_step(struct timer *timer) {
    if (is_frozen())
        quiescing.done |= QUIESCED_FROZEN;
    else if (guestd.cgroup && now_ms() < quiescing.deadline_ms) {
        timer_start(timer, POLL_MS, quiesce_step);
        return;
    }
    int64_t left = quiescing.deadline_ms - now_ms();
    if (left <= 0 || (!cleaner.pid && !cleaner_start()) || write(cleaner.orders, "", 1) != 1) {
        quiesce_end(REPLY_OK, "");
        return;
    }
    volumes_freeze_by(cleaner.pid);
    timer_start(timer, left, quiesce_deadline);
}

void system_quiesce(struct reader *frame) {
    uint64_t request = get_number(frame, 8);
    int64_t budget_ms = (int64_t)get_number(frame, 4);
    if (frame->bad || !request_begin(request))
        return;
    if (quiescing.busy) {
        cleaner_end();
        quiesce_end(REPLY_CONFLICT, "another quiesce took its place");
    }
    quiescing.busy = true;
    quiescing.request = request;
    quiescing.deadline_ms = now_ms() + budget_ms;
    quiescing.done = 0;
    quiescing.reported = 0;
    freeze(true);
    quiesce_step(&quiescing.timer);
}

static void thaw(void) {
    if (quiescing.busy) {
        cleaner_end();
        quiesce_end(REPLY_CONFLICT, "a thaw came before it was done");
    }
    volumes_thaw(cleaner.pid > 0);
    freeze(false);
}

void system_thaw(struct reader *frame) {
    uint64_t request = get_number(frame, 8);
    if (frame->bad || !request_begin(request))
        return;
    thaw();
    request_done(request, REPLY_OK, 0, "%s", "");
}

// Wake --------------------------------------------------------------------------------------------------------------

static bool add_entropy(struct slice entropy) {
    struct {
        int bits, size;  // struct rand_pool_info, whose data has no length of its own
        uint8_t data[ENTROPY_MAX];
    } pool = {.size = entropy.size < ENTROPY_MAX ? (int)entropy.size : ENTROPY_MAX};
    pool.bits = pool.size * 8;
    memcpy(pool.data, entropy.data, (size_t)pool.size);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    bool added = fd >= 0 && !ioctl(fd, RNDADDENTROPY, &pool) && !ioctl(fd, RNDRESEEDCRNG);
    if (fd >= 0)
        close(fd);
    return added;
}

static uint32_t wake(uint64_t realtime_ns, struct slice entropy, const char *hostname, const char *machine_id) {
    uint32_t done = WOKE_THAWED;
    volumes_thaw(!quiescing.busy && cleaner.pid > 0);  // first: what is written below may be on one
    if (!guestd.test) {
        struct timespec now = {(time_t)(realtime_ns / 1000000000), (long)(realtime_ns % 1000000000)};
        if (!realtime_ns || !clock_settime(CLOCK_REALTIME, &now))
            done |= WOKE_CLOCK;
        if (!entropy.size || add_entropy(entropy))
            done |= WOKE_ENTROPY;
        if (guestd.configured)
            identity_write(hostname, machine_id);
        done |= WOKE_HOSTNAME | WOKE_MACHINE_ID;
    }
    thaw();  // last: no instruction of the workload sees the old clock, entropy or name
    return done;
}

void system_wake(struct reader *frame) {
    uint64_t request = get_number(frame, 8), realtime_ns = get_number(frame, 8);
    struct slice entropy = get_text(frame);
    char *hostname = slice_string(get_text(frame)), *machine_id = slice_string(get_text(frame));
    if (!frame->bad && request_begin(request)) {
        if (strlen(hostname) > 64 || strlen(machine_id) > 64) {
            request_done(request, REPLY_INVALID, 0, "a host name or machine id has at most 64 bytes");
        } else {
            uint32_t done = wake(realtime_ns, entropy, hostname, machine_id);
            const char *failed = guestd.test              ? ""
                                 : !(done & WOKE_CLOCK)   ? "the clock was not set"
                                 : !(done & WOKE_ENTROPY) ? "the entropy was not taken"
                                                          : "";
            request_done(request, *failed ? REPLY_FAILED : REPLY_OK, done, "%s", failed);
        }
    }
    free(hostname);
    free(machine_id);
}

// Power off ---------------------------------------------------------------------------------------------------------

static int64_t power_off_at_ms;

static void power_off(struct timer *timer) {
    if (!channel_is_drained() && now_ms() < power_off_at_ms) {
        timer_start(timer, POLL_MS, power_off);  // the host is to get its answer
        return;
    }
    if (guestd.test) {
        processes_kill();
        exit(0);
    }
    kill(-1, SIGKILL);
    sync();
    umount2("/overlay", MNT_DETACH);
    reboot(RB_AUTOBOOT);  // with reboot=k this is how a Firecracker guest ends
}

void system_power_off(struct reader *frame) {
    static struct timer timer;
    uint64_t request = get_number(frame, 8);
    if (frame->bad || !request_begin(request))
        return;
    request_done(request, REPLY_OK, 0, "%s", "");
    power_off_at_ms = now_ms() + POWER_OFF_MS;
    timer_start(&timer, POLL_MS, power_off);
}
