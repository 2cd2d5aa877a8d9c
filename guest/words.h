// What was typed after perdure-guest: its words and options, and what they mean.
#pragma once
#include "bytes.h"

enum option {
    BACKOFF, BACKOFF_MAX, FIELD, FORM, IMAGE, INPUT, JSON, KEEP, LANE, MEMORY, ON_DOUBT, RETRIES, SHOW, TIMEOUT, VCPUS,
    OPTIONS,
};

enum { VALUE_MAX = 1 << 20, FIELDS_MAX = 50, WORDS_MAX = 8 };

struct words {
    const char *options[OPTIONS];  // NULL: not given; of a flag its name
    const char *fields[FIELDS_MAX];  // --field may be given more than once
    int field_count;
    char *rest[WORDS_MAX];  // what is no option
    int count;
    char **command;  // behind --
};

struct words take_words(char **at);  // NULL-terminated
_Noreturn void wrong(const char *what, const char *word);
void check_count(const struct words *words, int least, int most, const char *what);
void check_options(const struct words *words, const enum option *taken, int count, const char *command);

double seconds_of(const char *text);                          // of 90, 1.5h, 1d12h
unsigned count_of(const char *text, unsigned least);
void put(struct bytes *out, const char *text);
void put_text_value(struct bytes *out, const char *text);                    // as JSON
void put_member(struct bytes *out, const char *name, const char *text);      // , "name": "text"; of NULL nothing
void put_seconds(struct bytes *out, const char *name, const char *text);     // likewise, as numbers
void put_mib(struct bytes *out, const char *name, const char *text);         // of 512m, 2g
void put_count(struct bytes *out, const char *name, const char *text);       // of 1, 2, ...
void put_json(struct bytes *out, const char *word);                          // of "-" what stdin has; checked
struct bytes read_file(const char *name);                                    // text, or of "-" stdin
