// pager LISTEN_FD REPORT_FD [WANT_TIMEOUT_MS [HANDSHAKE_TIMEOUT_MS]]
//
// The pager of one machine: serves its page faults from layers. It listens for Firecracker on LISTEN_FD; the keeper is at
// the other end of REPORT_FD, a stream socket. What is said there, and how this ends: docs/design/0004-native-pager.md.
//   main.c    the thread that the keeper hears      events.c  the thread that reads page faults
//   work.c    the threads that serve them           place.c   what they do for each
//   hot.c     the working set, before anyone asks   touched.c what to push at the next restore
//   wanted.c  frames that are not here yet          peer.c    Firecracker's handshake
//   memory.c  pages into the machine            confine.c what it may do no longer
//   frames.c zstd.c map.c regions.c json.c text.c buffer.c report.c   the pieces below all that
// A page that is in the machine is never needed again here, so nothing is cached: a frame is read, decompressed, put into
// every place that it has, and forgotten.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "confine.h"
#include "events.h"
#include "peer.h"
#include "report.h"
#include "work.h"
#include "zstd.h"

enum { LINE_MAX = 16 << 20, WANT_TIMEOUT_MS = 120000, HANDSHAKE_TIMEOUT_MS = 10000 };

static struct map map;
static int listen_fd, report_fd;
static int64_t want_timeout_ms = WANT_TIMEOUT_MS, handshake_timeout_ms = HANDSHAKE_TIMEOUT_MS, handshake_deadline_ms;
static enum { SPARE, LISTENING, SHAKING, SERVING } state;
static struct text heard;

// Operations ---------------------------------------------------------------------------------------------------------

static uint8_t *read_file(const char *path, size_t *size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat found;
    if (fd < 0 || fstat(fd, &found) < 0)
        fail("snapshot-invalid", "", "memory map %s cannot be opened: %s", path, strerror(errno));
    uint8_t *data = malloc((size_t)found.st_size + 1);
    *size = 0;
    for (ssize_t count = 1; data && count > 0 && *size < (size_t)found.st_size; *size += count > 0 ? (size_t)count : 0)
        count = read(fd, data + *size, (size_t)found.st_size - *size);
    if (!data || *size < (size_t)found.st_size)
        fail("snapshot-invalid", "", "memory map %s cannot be read", path);
    close(fd);
    return data;
}

static void serve(const char *path, const char *template, uint64_t id, const char *root) {
    char why[256];
    size_t size;
    if (state != SPARE)
        return;
    uint8_t *data = read_file(path, &size);
    if (!map_decode(&map, data, size, why, sizeof why))
        fail("snapshot-invalid", "", "%s", why);
    frames_open(&map, *template ? template : map.template);
    work_open(&map);
    touched_open(&map);
    wanted_open(&map);
    hot_open(&map);
    if (id)
        confine((uint32_t)id, root);
    work_start();
    state = LISTENING;
}

static void say_stat(void) {
    struct text line = {0};
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    pthread_mutex_lock(&work.lock);
    const struct figures *figures = &work.figures;
    text_put(&line, "{\"event\": \"stat\", \"faults\": %llu, \"stale_faults\": %llu, \"frames\": %llu, \"frames_total\": %u, ",
             (unsigned long long)figures->faults, (unsigned long long)figures->stale_faults,
             (unsigned long long)figures->frames, map.frames);
    text_put(&line, "\"decompressed\": %llu, \"copied_bytes\": %llu, \"zero_bytes\": %llu, \"prefetched\": %llu, ",
             (unsigned long long)figures->decompressed, (unsigned long long)figures->filled.copied,
             (unsigned long long)figures->filled.zeroed, (unsigned long long)figures->prefetched);
    text_put(&line, "\"wanted_total\": %llu, \"cpu_s\": %.4f, \"working_set\": ", (unsigned long long)figures->wanted,
             (double)used.tv_sec + (double)used.tv_nsec / 1e9);
    touched_list(&line);
    text_put(&line, ", \"wanted\": ");
    wanted_say(&line, true);
    pthread_mutex_unlock(&work.lock);
    text_put(&line, "}");
    report_say(&line);
}

static void have(struct json frames) {
    pthread_mutex_lock(&work.lock);
    json_open(&frames, '[');
    for (bool first = true; json_element(&frames, ']', &first);) {
        uint64_t pair[2] = {UINT64_MAX, UINT64_MAX};
        uint32_t count = 0;
        json_open(&frames, '[');
        for (bool begun = true; count < 3 && json_element(&frames, ']', &begun); count++) {
            uint64_t value = json_u64(&frames);
            if (count < 2)
                pair[count] = value;
        }
        if (frames.state == JSON_OK && count == 2 && pair[0] < map.layers)
            wanted_have((uint32_t)pair[0], pair[1]);
    }
    pthread_cond_broadcast(&work.ready);
    pthread_mutex_unlock(&work.lock);
}

static void obey(const char *line, size_t length) {
    static char path[4096], template[4096], message[1024], hint[1024], root[4096];
    struct json in = {line, line + length, JSON_OK}, frames = in;
    char key[16], op[16] = "";
    uint64_t id = 0;
    *path = *template = *message = *hint = *root = 0;
    json_open(&in, '{');
    for (bool first = true; json_key(&in, &first, key, sizeof key);) {
        if (!strcmp(key, "op"))
            json_string(&in, op, sizeof op);
        else if (!strcmp(key, "map"))
            json_string(&in, path, sizeof path);
        else if (!strcmp(key, "template"))
            json_string(&in, template, sizeof template);
        else if (!strcmp(key, "uid"))
            id = json_u64(&in);
        else if (!strcmp(key, "root"))
            json_string(&in, root, sizeof root);
        else if (!strcmp(key, "message"))
            json_string(&in, message, sizeof message);
        else if (!strcmp(key, "hint"))
            json_string(&in, hint, sizeof hint);
        else {
            if (!strcmp(key, "frames"))
                frames = in;
            json_skip(&in);
        }
    }
    if (in.state != JSON_OK)
        return;
    if (!strcmp(op, "serve"))
        serve(path, template, id, root);
    else if (!strcmp(op, "stat"))
        say_stat();
    else if (!strcmp(op, "lost"))
        fail("unavailable", hint, "%s", message);
    else if (!strcmp(op, "have") && state != SPARE)
        have(frames);
    else if (!strcmp(op, "populate") && state != SPARE)
        work_populate();
}

static void hear(void) {
    char data[1 << 16];
    ssize_t size = recv(report_fd, data, sizeof data, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0 || heard.length > LINE_MAX)
        leave();  // the keeper is gone
    for (char *at = data, *end = data + size; at < end;) {
        char *newline = memchr(at, '\n', (size_t)(end - at));
        text_add(&heard, at, (size_t)((newline ? newline : end) - at));
        if (!newline)
            break;
        obey(heard.data, heard.length);
        heard.length = 0;
        at = newline + 1;
    }
    if (!heard.length)
        text_free(&heard);
}

// The loop -----------------------------------------------------------------------------------------------------------

static void shake_hands(void) {
    struct regions regions;
    int uffd;
    if (!peer_read(map.blocks, &regions, &uffd))
        return;
    memory_open(uffd, &regions, map.blocks);
    state = SERVING;
    work_serve();
    events_start();
}

// What the workers left to say.
static void say_news(void) {
    eventfd_t count;
    struct text line = {0};
    eventfd_read(wanted_signal, &count);
    text_put(&line, "{\"event\": \"want\", \"frames\": ");
    pthread_mutex_lock(&work.lock);
    bool wants = wanted_say(&line, false);
    pthread_mutex_unlock(&work.lock);
    text_put(&line, "}");
    if (wants)
        report_say(&line);
    else
        text_free(&line);
    if (state == SERVING && work_is_complete()) {
        memory_release();
        say_stat();
        text_put(&line, "{\"event\": \"resident\"}");
        report_say(&line);
        leave();
    }
}

// How long nothing need be done, in milliseconds; -1: for ever. Fails when something has waited too long.
static int patience(void) {
    uint32_t frame = 0;
    pthread_mutex_lock(&work.lock);
    int64_t deadline = state == SPARE ? INT64_MAX : wanted_deadline_ms(want_timeout_ms, &frame);
    pthread_mutex_unlock(&work.lock);
    if (deadline <= now_ms())
        fail_frame("unavailable", "The node fetches it: see its log.", map.layer[map.frame_layer[frame]], map.frame_number[frame],
                   "it was not fetched in time");
    if (state == SHAKING && handshake_deadline_ms <= now_ms())
        fail("machine-failed", "", "Firecracker's handshake with the pager did not come in time");
    if (state == SHAKING && handshake_deadline_ms < deadline)
        deadline = handshake_deadline_ms;
    return deadline == INT64_MAX ? -1 : deadline - now_ms() < 1 ? 1 : (int)(deadline - now_ms());
}

static int number(const char *text) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || end == text || value < 0 || value > 1 << 30) {
        fprintf(stderr, "pager: %s is not a number\n", text);
        exit(2);
    }
    return (int)value;
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: pager LISTEN_FD REPORT_FD [WANT_TIMEOUT_MS [HANDSHAKE_TIMEOUT_MS]]\n");
        return 2;
    }
    listen_fd = number(argv[1]);
    report_fd = number(argv[2]);
    want_timeout_ms = argc > 3 ? number(argv[3]) : WANT_TIMEOUT_MS;
    handshake_timeout_ms = argc > 4 ? number(argv[4]) : HANDSHAKE_TIMEOUT_MS;
    report_open(report_fd);
    mallopt(M_ARENA_MAX, 1);  // an arena per thread would be memory that nobody uses
    fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    wanted_signal = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const char *wrong = zstd_open();
    if (wrong)
        fail("unsupported", "Install it: apt-get install libzstd1", "libzstd cannot be loaded: %s", wrong);
    for (;;) {
        struct pollfd watched[] = {
            {.fd = report_fd, .events = POLLIN},
            {.fd = wanted_signal, .events = POLLIN},
            {.fd = state == SPARE ? -1 : state == LISTENING ? listen_fd : peer_fd(), .events = POLLIN | POLLRDHUP},
        };
        if (poll(watched, 3, patience()) < 0 && errno != EINTR)
            fail("machine-failed", "", "poll: %s", strerror(errno));
        if (watched[0].revents)
            hear();
        if (watched[1].revents)
            say_news();
        if (!watched[2].revents)
            continue;
        if (state == LISTENING) {
            peer_accept(listen_fd);
            if (peer_fd() >= 0) {
                state = SHAKING;
                handshake_deadline_ms = now_ms() + handshake_timeout_ms;
            }
        } else if (state == SHAKING) {
            shake_hands();
        } else if (state == SERVING && peer_is_gone(0)) {
            leave();
        }
    }
}
