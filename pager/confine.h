#pragma once
#include <stdint.h>

// Give up every right that serving does not need, for good: the files are open, and what is heard from now on comes from a
// machine. The ids are those of user and group; `root` is an empty folder. Before any thread is started. Fails where it is
// not permitted.
void confine(uint32_t id, const char *root);
