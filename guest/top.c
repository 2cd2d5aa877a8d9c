// The file tool `top`: the processes of the workload, as proc(5) has them. Neither kernel threads nor what guestd runs.
//
//   u32 length | text "processes 1 NOW UPTIME MEMORY": seconds since 1970, since the boot in hundredths, KiB
//   then for each: u32 bytes that follow | u32 uid | text /proc/PID/stat | text /proc/PID/cmdline
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "guestd.h"

enum { STAT = 1024, COMMAND = 4096, KERNEL_THREAD = 0x00200000 };  // PF_KTHREAD of <linux/sched.h>

static bool read_at(int folder, const char *name, char *text, size_t size, size_t *length) {
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
    *length = 0;
    for (ssize_t count; fd >= 0 && *length < size - 1 && (count = read(fd, text + *length, size - 1 - *length)) > 0;)
        *length += (size_t)count;
    if (fd >= 0)
        close(fd);
    text[*length] = 0;
    return fd >= 0;
}

static bool is_ours(int folder, const struct stat *guestd_file) {
    struct stat file;
    return !fstatat(folder, "exe", &file, 0) && file.st_dev == guestd_file->st_dev && file.st_ino == guestd_file->st_ino;
}

static bool is_kernel_thread(const char *stat) {
    const char *at = strrchr(stat, ')');  // the name before it may hold anything
    for (int i = 0; at && i < 7; i++)     // state, parent, group, session, terminal, its group, flags
        at = strchr(at + 1, ' ');
    return !at || strtoul(at, NULL, 10) & KERNEL_THREAD;
}

static bool send(struct bytes *record) {
    uint8_t prefix[4];
    for (int i = 0; i < 4; i++)
        prefix[i] = (uint8_t)(bytes_length(record) >> 8 * i);
    const struct {
        const uint8_t *data;
        size_t size;
    } parts[] = {{prefix, 4}, {bytes_head(record), bytes_length(record)}};
    bool sent = true;
    for (int i = 0; i < 2; i++)
        for (size_t at = 0; sent && at < parts[i].size;) {
            ssize_t count = write(1, parts[i].data + at, parts[i].size - at);
            sent = count > 0 || (count < 0 && errno == EINTR);
            at += count > 0 ? (size_t)count : 0;
        }
    bytes_free(record);
    return sent;
}

static bool look_at(int proc, const char *pid, const struct stat *guestd_file) {
    static char stat[STAT], command[COMMAND];
    struct bytes record = {0};
    struct stat owner;
    size_t length, size;
    int folder = openat(proc, pid, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool known = folder >= 0 && !fstat(folder, &owner) && read_at(folder, "stat", stat, sizeof stat, &length) && length;
    bool shown = known && !is_kernel_thread(stat) && !is_ours(folder, guestd_file) &&
                 read_at(folder, "cmdline", command, sizeof command, &size);
    if (folder >= 0)
        close(folder);
    if (!shown)
        return true;  // or it has just ended
    put_u32(&record, owner.st_uid);
    put_text(&record, stat, length);
    put_text(&record, command, size);
    return send(&record);
}

_Noreturn void top_tool(void) {
    struct sysinfo machine;
    struct timespec since;
    struct stat guestd_file = {0};
    struct bytes record = {0};
    char head[128];
    DIR *proc = opendir("/proc");
    if (!proc || sysinfo(&machine) || clock_gettime(CLOCK_BOOTTIME, &since)) {
        dprintf(2, "/proc: %s", strerror(errno));
        _exit(errno < 125 ? errno : EIO);
    }
    if (!guestd.test && stat("/proc/self/exe", &guestd_file))
        guestd_file.st_ino = 0;
    int size = snprintf(head, sizeof head, "processes 1 %lld %lld %llu", (long long)time(NULL),
                        (long long)since.tv_sec * 100 + since.tv_nsec / 10000000,
                        (unsigned long long)machine.totalram * machine.mem_unit >> 10);
    put_text(&record, head, (size_t)size);
    bool sent = send(&record);
    for (struct dirent *entry; sent && (entry = readdir(proc));)
        if (*entry->d_name >= '1' && *entry->d_name <= '9')
            sent = look_at(dirfd(proc), entry->d_name, &guestd_file);
    _exit(sent ? 0 : EPIPE);
}
