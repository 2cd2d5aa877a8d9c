// How else a sandbox wishes to find its machine: file tools (files.c), done before its main process starts.
//
//   append PATH TEXT               at the end of a file, as of /etc/hosts
//   remount PATH FLAGS DATA        what is mounted there, with other flags (mount(2)); with DATA: its file system
//   sysctl NAME VALUE              of this machine's kernel: net.ipv4.ip_forward, or net/ipv4/ip_forward
//   pids MAX                       so many processes and threads may be in the workload's cgroup
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "guestd.h"

static _Noreturn void fail(const char *what, const char *name) {
    int error = errno ? errno : EIO;
    dprintf(2, "%s %s: %s", what, name, strerror(error));
    _exit(error < 125 ? error : EIO);
}

static void write_text(const char *path, int flags, const char *text, const char *what, const char *name) {
    int fd = open(path, flags | O_WRONLY | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd))
        fail(what, name);
}

// As sysctl(8) reads names: where the first separator is a dot, dots and slashes trade places.
static void set_kernel(const char *name, const char *value) {
    char path[PATH_MAX];
    size_t first = strcspn(name, "./");
    int at = snprintf(path, sizeof path, "/proc/sys/");
    snprintf(path + at, sizeof path - (size_t)at, "%s", name);
    for (char *mark = path + at; name[first] == '.' && *mark; mark++)
        *mark = *mark == '.' ? '/' : *mark == '/' ? '.' : *mark;
    write_text(path, 0, value, "sysctl", name);
}

static void limit_pids(const char *most) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/../cgroup.subtree_control", guestd.cgroup ? guestd.cgroup : "");
    write_text(path, 0, "+pids", "cgroup controller", "pids");
    snprintf(path, sizeof path, "%s/pids.max", guestd.cgroup);
    write_text(path, 0, most, "at most", most);
}

bool fit_tool(char **argv, int count) {
    if (!strcmp(argv[0], "append") && count == 3) {
        write_text(argv[1], O_APPEND | O_CREAT, argv[2], "append to", argv[1]);
    } else if (!strcmp(argv[0], "remount") && count == 4) {
        unsigned long flags = MS_REMOUNT | strtoul(argv[2], NULL, 10);
        if (mount(NULL, argv[1], NULL, *argv[3] ? flags : flags | MS_BIND, *argv[3] ? argv[3] : NULL))
            fail("remount", argv[1]);
    } else if (!strcmp(argv[0], "sysctl") && count == 3) {
        set_kernel(argv[1], argv[2]);
    } else if (!strcmp(argv[0], "pids") && count == 2) {
        limit_pids(argv[1]);
    } else {
        return false;
    }
    return true;
}
