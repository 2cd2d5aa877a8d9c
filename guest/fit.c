// How else a sandbox wishes to find its machine: file tools (files.c), done before its main process starts.
//
//   append PATH TEXT               at the end of a file, as of /etc/hosts; made, also for a link that leads nowhere
//   remount PATH FLAGS DATA [NAME] what is mounted there, with other flags (mount(2)); with DATA: its file system;
//                                  with NAME: only where that is what is seen there
//   sysctl NAME VALUE              of this machine's kernel: net.ipv4.ip_forward, or net/ipv4/ip_forward
//   pids MAX                       so many processes and threads may be in the workload's cgroup
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "guestd.h"

static void write_all(int fd, const char *text, const char *what, const char *name) {
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd))
        tool_failed(what, name);
}

static void write_text(const char *path, const char *text, const char *what, const char *name) {
    write_all(open(path, O_WRONLY | O_CLOEXEC), text, what, name);
}

static void append(char *path, const char *text) {
    char link;
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, fd = open(path, flags, 0644);
    if (fd < 0 && (errno == ENOENT || errno == ELOOP)) {
        make_parents(path);
        if (readlink(path, &link, 1) >= 0)
            unlink(path);
        fd = open(path, flags, 0644);
    }
    write_all(fd, text, "append to", path);
}

// A sandbox may have mounted its own over what was there, also by a link: /var/run leads to /run.
static bool is_seen(const char *name, const char *path) {
    char real[PATH_MAX];
    bool is_it = false;
    struct mntent *entry;
    FILE *mounted = realpath(path, real) ? setmntent("/proc/self/mounts", "re") : NULL;
    while (mounted && (entry = getmntent(mounted)))
        if (!strcmp(entry->mnt_dir, real))  // the last of them is on top
            is_it = !strcmp(entry->mnt_fsname, name);
    if (mounted)
        endmntent(mounted);
    return is_it;
}

static void remount(char **argv) {
    const char *path = argv[1], *data = *argv[3] ? argv[3] : NULL;
    unsigned long flags = MS_REMOUNT | strtoul(argv[2], NULL, 10) | (data ? 0 : MS_BIND);
    if ((!argv[4] || is_seen(argv[4], path)) && mount(NULL, path, NULL, flags, data))
        tool_failed("remount", path);
}

// As sysctl(8) reads names: where the first separator is a dot, dots and slashes trade places.
static void set_kernel(const char *name, const char *value) {
    char path[PATH_MAX];
    size_t first = strcspn(name, "./");
    int at = snprintf(path, sizeof path, "/proc/sys/");
    snprintf(path + at, sizeof path - (size_t)at, "%s", name);
    for (char *mark = path + at; name[first] == '.' && *mark; mark++)
        *mark = *mark == '.' ? '/' : *mark == '/' ? '.' : *mark;
    write_text(path, value, "sysctl", name);
}

static void limit_pids(const char *most) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/../cgroup.subtree_control", guestd.cgroup ? guestd.cgroup : "");
    write_text(path, "+pids", "cgroup controller", "pids");
    snprintf(path, sizeof path, "%s/pids.max", guestd.cgroup);
    write_text(path, most, "at most", most);
}

bool fit_tool(char **argv, int count) {
    if (!strcmp(argv[0], "append") && count == 3) {
        append(argv[1], argv[2]);
    } else if (!strcmp(argv[0], "remount") && (count == 4 || count == 5)) {
        remount(argv);
    } else if (!strcmp(argv[0], "sysctl") && count == 3) {
        set_kernel(argv[1], argv[2]);
    } else if (!strcmp(argv[0], "pids") && count == 2) {
        limit_pids(argv[1]);
    } else {
        return false;
    }
    return true;
}
