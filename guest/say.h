// What perdure-guest tells whoever called it.
#pragma once
#include "bytes.h"

// Exit statuses of perdure-guest itself: the run is to end; wrong usage, or the host refuses. Others are answers.
enum { CANCELLED = 124, FAILED = 125 };

_Noreturn void die(int status, const char *hint, const char *format, ...) __attribute__((format(printf, 3, 4)));
_Noreturn void refused(unsigned status, struct slice body);  // the host's words
void say(const void *text, size_t size);                     // to stdout
void say_value(struct slice value);                          // a text as it is, anything else as JSON; and a line's end
