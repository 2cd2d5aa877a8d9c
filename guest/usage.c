// What the workload uses of the machine, as its kernel counts it: one short text, cheap enough for every second.
//     usage 1 TOTAL AVAILABLE PIDS RECEIVED SENT READ WRITTEN      KiB, KiB, threads, bytes …
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guestd.h"

enum { REPORT = 240, SECTOR = 512 };

static char text[16 << 10];

static const char *file(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = 0, count;
    while (fd >= 0 && (size_t)got < sizeof text - 1 && (count = read(fd, text + got, sizeof text - 1 - (size_t)got)) > 0)
        got += count;
    if (fd >= 0)
        close(fd);
    text[got] = 0;
    return text;
}

static long field(const char *name) {  // "\nCached:", of what was read last
    const char *found = strstr(text, name);
    return found ? strtol(found + strlen(name), NULL, 10) : 0;
}

static long threads(void) {
    char path[256], chunk[4096];
    long count = 0;
    if (!guestd.cgroup)
        return 0;
    snprintf(path, sizeof path, "%s/cgroup.threads", guestd.cgroup);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    for (ssize_t got; fd >= 0 && (got = read(fd, chunk, sizeof chunk)) > 0;)
        for (ssize_t i = 0; i < got; i++)
            count += chunk[i] == '\n';
    if (fd >= 0)
        close(fd);
    return count;
}

static unsigned long long number(const char *at, int place) {  // of those that follow, from 0
    unsigned long long value = 0;
    for (char *end; place >= 0; place--, at = end)
        value = strtoull(at, &end, 10);
    return value;
}

// All interfaces but the loopback (proc_pid_net(5)).
static void network(unsigned long long *received, unsigned long long *sent) {
    *received = *sent = 0;
    for (const char *line = file("/proc/net/dev"); (line = strchr(line, '\n'));) {
        line += 1 + strspn(line + 1, " ");
        const char *numbers = line + strcspn(line, ":\n");
        if (*numbers == ':' && strncmp(line, "lo:", 3)) {
            *received += number(numbers + 1, 0);
            *sent += number(numbers + 1, 8);
        }
    }
}

// Of the image's disk and the sandbox's own (the kernel's block/stat).
static void disks(unsigned long long *read_bytes, unsigned long long *written_bytes) {
    static const char *const stats[] = {"/sys/block/vda/stat", "/sys/block/vdb/stat"};
    *read_bytes = *written_bytes = 0;
    for (int i = 0; i < 2; i++) {
        const char *stat = file(stats[i]);
        *read_bytes += number(stat, 2) * SECTOR;
        *written_bytes += number(stat, 6) * SECTOR;
    }
}

void usage_ask(struct reader *frame) {
    uint64_t request = get_number(frame, 8);
    unsigned long long received, sent, read_bytes, written_bytes;
    char report[REPORT];
    if (frame->bad)
        return;
    const char *meminfo = file("/proc/meminfo");
    long total = strtol(meminfo + strcspn(meminfo, "0123456789"), NULL, 10), available = field("\nMemAvailable:");
    network(&received, &sent);
    disks(&read_bytes, &written_bytes);
    snprintf(report, sizeof report, "usage 1 %ld %ld %ld %llu %llu %llu %llu", total, available, threads(), received,
             sent, read_bytes, written_bytes);
    request_answer(request, report);
}
