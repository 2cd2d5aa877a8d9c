// As many threads as there are processors, at most four, ready before there is anything to do.
#pragma once
#include <stddef.h>

void crew_start(void);
// do(context, n) for every n below count, each once, on all threads; returns when all are done.
void crew_do(size_t count, void (*do_one)(void *context, size_t number), void *context);
