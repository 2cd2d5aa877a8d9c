#include "report.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int report_fd = -1;
static pthread_mutex_t saying = PTHREAD_MUTEX_INITIALIZER;

void report_open(int fd) { report_fd = fd; }

void report_say(struct text *line) {
    text_put(line, "\n");
    pthread_mutex_lock(&saying);
    for (size_t sent = 0; sent < line->length;) {
        ssize_t count = send(report_fd, line->data + sent, line->length - sent, MSG_NOSIGNAL);
        if (count < 0 && errno != EINTR)
            break;  // the keeper is gone: nobody is left to tell
        sent += count > 0 ? (size_t)count : 0;
    }
    pthread_mutex_unlock(&saying);
    text_free(line);
}

static _Noreturn void say_failed(const char *code, const char *hint, const char *message, struct text *details) {
    struct text line = {0};
    text_put(&line, "{\"event\": \"failed\", \"code\": \"%s\", \"message\": ", code);
    text_string(&line, message);
    text_put(&line, ", \"hint\": ");
    text_string(&line, hint);
    text_put(&line, ", \"details\": {%s}}", details->length ? details->data : "");
    report_say(&line);
    _exit(1);
}

void fail(const char *code, const char *hint, const char *format, ...) {
    char message[8192];
    struct text details = {0};
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    say_failed(code, hint, message, &details);
}

void fail_frame(const char *code, const char *hint, const char *layer, uint32_t frame, const char *reason) {
    char message[8192];
    struct text details = {0};
    const char *slash = strrchr(layer, '/');
    snprintf(message, sizeof message, "layer %s, frame %u: %s", layer, frame, reason);
    text_put(&details, "\"layer\": ");
    text_string(&details, slash ? slash + 1 : layer);
    text_put(&details, ", \"frame\": %u", frame);
    say_failed(code, hint, message, &details);
}

void leave(void) { _exit(0); }
