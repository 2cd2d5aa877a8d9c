// The capture file: docs/formats/capture.md.
#pragma once
#include "runs.h"

enum { DIGEST = 32 };

// Into a file that is not there yet; its size. `memory` is where the data of the runs lies.
uint64_t output_write(const char *path, const struct runs *runs, const uint8_t *memory, uint32_t blocks,
                      const uint8_t digest[DIGEST]);
