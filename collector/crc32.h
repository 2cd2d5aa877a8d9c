// CRC-32 (IEEE 802.3), as zlib computes it.
#pragma once
#include <stddef.h>
#include <stdint.h>

void crc32_prepare(void);  // once, before any other call
uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t size);  // begin with 0; an earlier result goes on
