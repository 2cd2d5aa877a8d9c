// CRC-32 (IEEE 802.3), as zlib computes it.
#pragma once
#include <stddef.h>
#include <stdint.h>

uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t size);  // begin with 0; an earlier result goes on
