// What the collector says to the keeper: one line of JSON.
#pragma once
#include <stdint.h>

void report_to(int fd);
void say_written(uint64_t bytes);
// Ends the process with status 1: what failed, and `errno` with it. From any thread.
_Noreturn void fail(const char *what);
