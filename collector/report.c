#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void say_written(uint64_t bytes) { printf("{\"bytes\": %llu}\n", (unsigned long long)bytes); }

void fail(const char *what) {
    int number = errno;
    // neither a phrase of ours nor one of strerror needs to be escaped
    printf("{\"errno\": %d, \"message\": \"%s: %s\"}\n", number, what, strerror(number));
    exit(1);
}
