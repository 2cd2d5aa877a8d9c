#include "say.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

_Noreturn void die(int status, const char *hint, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("perdure-guest: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, hint && *hint ? "\n  %s\n" : "\n", hint);
    exit(status);
}

static char *member_text(struct slice object, const char *name) {
    struct slice value = json_member(object, name);
    struct bytes text = {0};
    if (json_is_text(value))
        json_decode(&text, value);
    put_u8(&text, 0);
    return (char *)bytes_head(&text);
}

_Noreturn void refused(unsigned status, struct slice body) {
    struct slice error = json_check(body) ? json_member(body, "error") : (struct slice){0};
    char *message = member_text(error, "message");
    if (!*message)
        die(FAILED, NULL, "the host answered %u: %.*s", status, (int)(body.size < 200 ? body.size : 200), (const char *)body.data);
    die(slice_is(json_member(error, "code"), "\"cancelled\"") ? CANCELLED : FAILED, member_text(error, "hint"), "%s", message);
}

void say(const void *text, size_t size) {
    for (const char *at = text; size;) {
        ssize_t count = write(STDOUT_FILENO, at, size);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            die(FAILED, NULL, "stdout: %s", strerror(errno));
        at += count;
        size -= (size_t)count;
    }
}

void say_value(struct slice value) {
    struct bytes text = {0};
    if (json_is_text(value))
        json_decode(&text, value);
    else
        bytes_append(&text, value.data, value.size);
    bytes_append(&text, "\n", 1);
    say(bytes_head(&text), bytes_length(&text));
    bytes_free(&text);
}
