// What pack and unpack have in common: the records of docs/formats/channel.md, and how a file tool ends.
#pragma once
#include "guestd.h"

enum { EXTENT = 16, SPARSE_LEAST = 64 << 10, BUFFER = 256 << 10, PIPE = 1 << 20 };
static const uint32_t SPARSE = 1u << 31;

void pack(const char *mode, const char *path);
void unpack(const char *base);

_Noreturn void files_fail(const char *what, const char *path);  // with errno
void write_all(int fd, const void *data, size_t size, const char *path);
bool read_all(void *data, size_t size);  // from stdin
