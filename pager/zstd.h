// Decompression by the system's libzstd, found at run time: every Debian and Ubuntu has it (dpkg needs it), so that
// neither its headers nor a copy of it are needed here.
#pragma once
#include <stddef.h>
#include <stdint.h>

const char *zstd_open(void);  // NULL, or why it cannot be used
void *zstd_context(void);     // one per thread; NULL without memory

// One frame, verified: it must be the only one, `size` bytes large, carry a checksum, and that must be `checksum`.
// NULL, or what is wrong with it.
const char *zstd_decompress(void *context, uint8_t *content, size_t size, const uint8_t *frame, size_t length,
                            uint32_t checksum);
