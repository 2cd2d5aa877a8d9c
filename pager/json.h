// JSON read in place, value by value, from a buffer that may be cut short or hostile. No memory is allocated.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum json_state {
    JSON_OK,
    JSON_SHORT,  // the buffer ended within the value: more bytes may complete it
    JSON_BAD,    // no bytes after these make it JSON, or it is not what was asked for
};

struct json {
    const char *at, *end;
    enum json_state state;  // once it is not JSON_OK, every call does nothing
};

// The elements of an array or object:
//     json_open(&in, '[');
//     for (bool first = true; json_element(&in, ']', &first);) json_u64(&in);
//     json_open(&in, '{');
//     for (bool first = true; json_key(&in, &first, key, sizeof key);) ...
// The body of the loop takes exactly one value.
void json_open(struct json *in, char bracket);
bool json_element(struct json *in, char bracket, bool *first);
bool json_key(struct json *in, bool *first, char *key, size_t capacity);

uint64_t json_u64(struct json *in);  // a whole number without sign, fraction and exponent; 0 when it is none
bool json_bool(struct json *in);
// A string into `text`, NUL-terminated; its length. What does not fit, or holds a NUL, is passed over: text is then "".
// Surrogates that stand alone are the bytes of a path that is no UTF-8 (Python's "surrogateescape").
size_t json_string(struct json *in, char *text, size_t capacity);
void json_skip(struct json *in);      // any one value
bool json_is_over(struct json *in);   // nothing but white space is left
