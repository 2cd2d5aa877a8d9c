// Values of JSON (RFC 8259) in memory: checked, looked into, and texts written.
#pragma once
#include "bytes.h"

bool json_check(struct slice text);  // one value, and nothing after it
// The value of the first member of this name of an object that was checked; data is NULL where it has none.
struct slice json_member(struct slice object, const char *name);
struct slice json_item(struct slice list, size_t index);  // likewise, of a list; from 0 on
bool json_is_text(struct slice value);
void json_decode(struct bytes *out, struct slice value);            // a checked string, as UTF-8
void json_put(struct bytes *out, const void *text, size_t size);    // a string; what is not UTF-8 becomes U+FFFD
bool utf8_check(const uint8_t *text, size_t size);
