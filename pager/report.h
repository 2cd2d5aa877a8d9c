// What the pager says to its keeper: lines of JSON on a stream socket, from any thread; and how it ends.
#pragma once
#include <stdint.h>

#include "text.h"

void report_open(int fd);
void report_say(struct text *line);  // adds the newline, sends, frees

// Each of these ends the process. Codes are those of perdure.errors.
_Noreturn void fail(const char *code, const char *hint, const char *format, ...) __attribute__((format(printf, 3, 4)));
_Noreturn void fail_frame(const char *code, const char *hint, const char *layer, uint32_t frame, const char *reason);
_Noreturn void leave(void);  // the machine or the keeper has ended, or nothing is left to do: status 0
