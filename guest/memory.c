// Who has the machine's memory, as its kernel counts it (proc_meminfo(5), proc_pid_status(5)): one short text.
//     memory 1 TOTAL FREE CACHE SHARED ANONYMOUS KERNEL      KiB
//     PID ANONYMOUS NAME                                     the largest processes of the workload, as many as fit
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "guestd.h"

enum { LARGEST = 8, LOOKED_AT = 256, NAME = 16 };

struct process {
    long pid, anonymous_kib;
    char name[NAME];
};

static bool read_file(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = 0, count = 0;
    while (fd >= 0 && (size_t)got < size - 1 && (count = read(fd, text + got, size - 1 - (size_t)got)) > 0)
        got += count;
    if (fd >= 0)
        close(fd);
    text[got] = 0;
    return got > 0;
}

static long field(const char *text, const char *name) {  // name: "\nCached:"
    const char *found = strstr(text, name);
    return found ? strtol(found + strlen(name), NULL, 10) : 0;
}

static bool look_at(long pid, struct process *process) {
    char path[64], text[2048];
    snprintf(path, sizeof path, "/proc/%ld/status", pid);
    if (!read_file(path, text, sizeof text) || strncmp(text, "Name:\t", 6))
        return false;  // it has just ended
    process->pid = pid;
    process->anonymous_kib = field(text, "\nRssAnon:");
    size_t size = 0;
    for (const char *at = text + 6; *at && *at != '\n' && size < NAME - 1; at++)
        process->name[size++] = *at > ' ' && *at < 127 ? *at : '?';
    process->name[size] = 0;
    return size > 0;
}

static int largest(struct process *kept) {
    char path[256], listed[4096];
    int count = 0, seen = 0;
    if (!guestd.cgroup)
        return 0;
    snprintf(path, sizeof path, "%s/cgroup.procs", guestd.cgroup);
    if (!read_file(path, listed, sizeof listed))
        return 0;
    char *end = strrchr(listed, '\n'), *at = listed;
    if (end)
        *end = 0;  // the last number may be cut off
    for (long pid; seen < LOOKED_AT && (pid = strtol(at, &at, 10)) > 0; seen++) {
        struct process process;
        if (!look_at(pid, &process))
            continue;
        int place = count < LARGEST ? count++ : LARGEST;
        for (; place > 0 && kept[place - 1].anonymous_kib < process.anonymous_kib; place--)
            if (place < LARGEST)
                kept[place] = kept[place - 1];
        if (place < LARGEST)
            kept[place] = process;
    }
    return count;
}

static long cached(const char *meminfo) {
    return field(meminfo, "\nCached:") + field(meminfo, "\nBuffers:") - field(meminfo, "\nShmem:");
}

long memory_cached_kib(void) {
    char text[4096];
    return read_file("/proc/meminfo", text, sizeof text) ? cached(text) : 0;
}

long memory_free_kib(void) {
    struct sysinfo info;
    return sysinfo(&info) ? 0 : (long)((unsigned long long)info.freeram * info.mem_unit >> 10);
}

size_t memory_report(char *out, size_t size) {
    char text[4096];
    struct process processes[LARGEST];
    if (!read_file("/proc/meminfo", text, sizeof text))
        return 0;
    long shared = field(text, "\nShmem:");
    int used = snprintf(out, size, "memory 1 %ld %ld %ld %ld %ld %ld", strtol(text + strcspn(text, "0123456789"), NULL, 10),
                        field(text, "\nMemFree:"), cached(text), shared,
                        field(text, "\nAnonPages:"),
                        field(text, "\nSlab:") + field(text, "\nPageTables:") + field(text, "\nKernelStack:"));
    if (used < 0 || (size_t)used >= size)
        return 0;
    int count = largest(processes);
    for (int i = 0; i < count; i++) {
        int more = snprintf(out + used, size - (size_t)used, "\n%ld %ld %s", processes[i].pid,
                            processes[i].anonymous_kib, processes[i].name);
        if (more < 0 || (size_t)(used + more) >= size)
            break;  // the last one that fits ends it
        used += more;
    }
    return (size_t)used;
}
