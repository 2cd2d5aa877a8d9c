// One connection for each call, ended with its answer.
#define _GNU_SOURCE
#include "door.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "say.h"

enum { AGAIN_S = 1 };  // timeout(1) sends its signal twice, a person who means it does so later

static const int ending[] = {SIGTERM, SIGINT, SIGHUP};
enum { ENDING = sizeof ending / sizeof *ending };
static bool is_heeded[ENDING];
static volatile sig_atomic_t heard;
static bool heeds;
static sigset_t open_mask;  // where they come through: only while nothing but the answer is waited for

enum { PORT = 4750, READ = 64 << 10, TRIES_MAX = 6, PAUSE_MS = 50, PAUSE_MAX_MS = 1000 };

static struct sockaddr_in address(void) {
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    const char *door = getenv("PERDURE_DOOR"), *colon = door ? strrchr(door, ':') : NULL;
    char host[64] = "127.0.0.1";
    if (colon && (size_t)(colon - door) < sizeof host) {
        memcpy(host, door, (size_t)(colon - door));
        host[colon - door] = 0;
        found.sin_port = htons((uint16_t)atoi(colon + 1));
    }
    if ((door && *door && !colon) || inet_pton(AF_INET, host, &found.sin_addr) != 1)
        die(FAILED, "It is ADDRESS:PORT.", "PERDURE_DOOR is %s", door);
    return found;
}

static void hear(int number) { heard = number; }

void door_heed(void) {
    struct sigaction before, hearing = {.sa_handler = hear};
    sigset_t heeded;
    sigemptyset(&heeded);
    for (int i = 0; i < ENDING; i++)
        if ((is_heeded[i] = !sigaction(ending[i], NULL, &before) && before.sa_handler != SIG_IGN)) {
            sigaction(ending[i], &hearing, NULL);
            sigaddset(&heeded, ending[i]);
        }
    sigprocmask(SIG_BLOCK, &heeded, &open_mask);
    heeds = true;
}

static void dispose(void (*how)(int)) {
    for (int i = 0; i < ENDING; i++)
        if (is_heeded[i])
            signal(ending[i], how);
}

static void end_again(int number) {
    (void)number;
    dispose(SIG_DFL);
}

int door_heed_no_more(void) {
    struct sigaction later = {.sa_handler = end_again};
    int number = heard;
    dispose(number ? SIG_IGN : SIG_DFL);
    if (number && !sigaction(SIGALRM, &later, NULL))
        alarm(AGAIN_S);
    sigprocmask(SIG_SETMASK, &open_mask, NULL);
    heeds = false;
    heard = 0;
    return number;
}

void door_signals_to(void (*how)(int)) {
    dispose(how);
    sigprocmask(SIG_SETMASK, &open_mask, NULL);
    heeds = false;
}

// Until the answer goes on, or the time is over, or a signal that is heeded came.
static void await(int fd, const struct timespec *time) {
    struct pollfd answer = {.fd = fd, .events = POLLIN};
    if (!heard)
        ppoll(&answer, 1, time, heeds ? &open_mask : NULL);
}

static bool send_all(int fd, struct bytes *data) {
    while (bytes_length(data)) {
        ssize_t count = send(fd, bytes_head(data), bytes_length(data), MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return false;
        bytes_drop(data, (size_t)count);
    }
    return true;
}

// Everything up to the end of the connection, which each request asks for.
static bool receive_all(int fd, struct bytes *data) {
    for (;;) {
        await(fd, NULL);
        if (heard)
            return false;
        ssize_t count = recv(fd, bytes_reserve(data, READ), READ, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return !count;
        data->end += (size_t)count;
    }
}

static const char *header_end(const char *head, size_t size) {
    const char *end = memmem(head, size, "\r\n\r\n", 4);
    return end ? end + 4 : NULL;
}

// The value of a header in the head, which ends with an empty line; NULL: it has none.
static const char *header_of(const char *head, const char *end, const char *name) {
    size_t size = strlen(name);
    for (const char *line = head; line + 2 < end; line = (const char *)memmem(line, (size_t)(end - line), "\r\n", 2) + 2)
        if ((size_t)(end - line) > size + 1 && !strncasecmp(line, name, size) && line[size] == ':')
            return line + size + 1;
    return NULL;
}

static bool take_chunks(const char *at, const char *end, struct bytes *body) {
    for (;;) {
        char *after;
        if (!memmem(at, (size_t)(end - at), "\r\n", 2))
            return false;
        unsigned long size = strtoul(at, &after, 16);
        at = (const char *)memmem(at, (size_t)(end - at), "\r\n", 2) + 2;
        if (!size)
            return true;
        if ((size_t)(end - at) < 2 || (size_t)(end - at) - 2 < size)
            return false;
        bytes_append(body, at, size);
        at += size + 2;
    }
}

// The status; 0: the answer is not whole.
static unsigned take_answer(struct bytes *got, struct bytes *body) {
    put_u8(got, 0);  // so that numbers at its end have one
    const char *head = (const char *)bytes_head(got), *end = head + bytes_length(got) - 1;
    const char *content = header_end(head, (size_t)(end - head));
    unsigned status = 0;
    if (!content || sscanf(head, "HTTP/1.1 %3u", &status) != 1)
        return 0;
    const char *length = header_of(head, content, "content-length");
    if (header_of(head, content, "transfer-encoding"))
        return take_chunks(content, end, body) ? status : 0;
    if (!length || strtoull(length, NULL, 10) != (uint64_t)(end - content))
        return 0;
    bytes_append(body, content, (size_t)(end - content));
    return status;
}

static unsigned ask_once(const struct sockaddr_in *to, const char *name, const struct key *key, const struct bytes *body,
                         bool numbered, struct bytes *answer) {
    char head[512], number[64] = "";
    struct bytes request = {0}, got = {0};
    unsigned status = 0;
    if (numbered)
        snprintf(number, sizeof number, "Perdure-Ordinal: %llu\r\n", (unsigned long long)key->ordinal);
    int size = snprintf(head, sizeof head,
                        "POST /perdure/v1/%s HTTP/1.1\r\nHost: perdure\r\nConnection: close\r\nContent-Type: application/json\r\n"
                        "Perdure-Lane: %s\r\n%sContent-Length: %zu\r\n\r\n",
                        name, key->lane, number, body ? bytes_length(body) : 0);
    bytes_append(&request, head, (size_t)size);
    if (body)
        bytes_append(&request, bytes_head(body), bytes_length(body));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && !connect(fd, (const struct sockaddr *)to, sizeof *to) && send_all(fd, &request) && receive_all(fd, &got))
        status = take_answer(&got, answer);
    int error = errno;
    if (fd >= 0)
        close(fd);
    bytes_free(&request);
    bytes_free(&got);
    errno = error;
    return status;
}

static unsigned ask(const char *name, const struct key *key, const struct bytes *body, bool numbered, struct bytes *answer) {
    const struct sockaddr_in to = address();
    int pause_ms = PAUSE_MS, refused = 0;
    for (;;) {
        bytes_free(answer);
        errno = 0;
        unsigned status = ask_once(&to, name, key, body, numbered, answer);
        if (status || heard)
            return status;
        refused = errno == ECONNREFUSED ? refused + 1 : 0;
        if (refused == TRIES_MAX)
            die(FAILED, "It works in the machine of a run: perdure run --image IMAGE -- COMMAND.", "nobody answers at 127.0.0.1:%d",
                ntohs(to.sin_port));
        await(-1, &(struct timespec){.tv_sec = pause_ms / 1000, .tv_nsec = pause_ms % 1000 * 1000000L});
        pause_ms = pause_ms * 2 < PAUSE_MAX_MS ? pause_ms * 2 : PAUSE_MAX_MS;
    }
}

void door_take(struct key *key) {
    struct bytes answer = {0};
    unsigned status = ask("ordinal", key, NULL, false, &answer);
    struct slice body = {bytes_head(&answer), bytes_length(&answer)};
    struct slice number = json_check(body) ? json_member(body, "ordinal") : (struct slice){0};
    if (status != 200 || !number.data)
        refused(status, body);
    key->ordinal = strtoull((const char *)number.data, NULL, 10);
    bytes_free(&answer);
}

unsigned door_call(const char *name, const struct key *key, const struct bytes *body, struct bytes *answer) {
    return ask(name, key, body, true, answer);
}
