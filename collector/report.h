// What the collector says: one line of JSON on its standard output, and its exit status.
#pragma once
#include <stdint.h>

void say_written(uint64_t bytes);
// These end the process with status 1: what failed, and `errno` with it.
_Noreturn void fail(const char *what);
