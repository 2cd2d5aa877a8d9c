#define _GNU_SOURCE
#include "words.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "say.h"

enum { READ_BYTES = 64 << 10 };
static const double LONGEST_S = 1e10;  // the host's

static const struct {
    const char *name;
    bool is_flag;
} options[OPTIONS] = {
    [BACKOFF] = {"--backoff", false}, [BACKOFF_MAX] = {"--backoff-max", false},
    [FIELD] = {"--field", false}, [FORM] = {"--form", false}, [IMAGE] = {"--image", false}, [INPUT] = {"--input", false},
    [JSON] = {"--json", true}, [KEEP] = {"--keep", true}, [LANE] = {"--lane", false}, [MEMORY] = {"--memory", false},
    [ON_DOUBT] = {"--on-doubt", false}, [RETRIES] = {"--retries", false}, [SHOW] = {"--show", false}, [TIMEOUT] = {"--timeout", false},
    [VCPUS] = {"--vcpus", false},
};

void put(struct bytes *out, const char *text) { bytes_append(out, text, strlen(text)); }

void put_text_value(struct bytes *out, const char *text) { json_put(out, text, strlen(text)); }

_Noreturn void wrong(const char *what, const char *word) {
    die(FAILED, "perdure-guest --help says what there is.", what, word);
}

// The value of an option, which may be the next word, or behind a =.
static const char *value_of(const char *option, char ***at) {
    const char *equals = (**at)[strlen(option)] ? **at + strlen(option) + 1 : NULL;
    if (!equals && !*++*at)
        wrong("%s needs a value", option);
    return equals ? equals : **at;
}

static bool is_option(const char *word, int option) {
    size_t size = strlen(options[option].name);
    return !strncmp(word, options[option].name, size) && (!word[size] || (word[size] == '=' && !options[option].is_flag));
}

static void take_option(struct words *words, char ***at) {
    int option = 0;
    while (option < OPTIONS && !is_option(**at, option))
        option++;
    if (option == OPTIONS)
        wrong("there is no option %s", **at);
    words->options[option] = options[option].is_flag ? options[option].name : value_of(options[option].name, at);
    if (option == FIELD && words->field_count == FIELDS_MAX)
        wrong("a form has at most 50 fields: %s is one too many", words->options[FIELD]);
    if (option == FIELD)
        words->fields[words->field_count++] = words->options[FIELD];
}

struct words take_words(char **at) {
    struct words words = {0};
    for (; *at; at++) {
        if (!strcmp(*at, "--")) {
            words.command = at + 1;
            break;
        }
        if (!strncmp(*at, "--", 2))
            take_option(&words, &at);
        else if (words.count == WORDS_MAX)
            wrong("%s is one word too many", *at);
        else
            words.rest[words.count++] = *at;
    }
    return words;
}

void check_count(const struct words *words, int least, int most, const char *what) {
    if (words->count < least || words->count > most)
        wrong("it is written: perdure-guest %s", what);
}

void check_options(const struct words *words, const enum option *taken, int count, const char *command) {
    for (int option = 0; option < OPTIONS; option++) {
        bool is_taken = !words->options[option] || option == LANE;
        for (int i = 0; i < count; i++)
            is_taken |= (int)taken[i] == option;
        if (!is_taken)
            die(FAILED, "perdure-guest --help says what there is.", "%s is not for %s", options[option].name, command);
    }
}

void put_member(struct bytes *out, const char *name, const char *text) {
    if (!text)
        return;
    put(out, ", \"");
    put(out, name);
    put(out, "\": ");
    put_text_value(out, text);
}

// The number at the beginning of a text, of digits and one point at most; negative: there is none.
static double number_of(const char *text, const char **after) {
    size_t whole = strspn(text, "0123456789"), point = text[whole] == '.', part = strspn(text + whole + point, "0123456789");
    *after = text + whole + point + part;
    return whole && (part || !point) ? strtod(text, NULL) : -1;
}

static bool is_unit(const char *at, size_t size, const char *unit) { return size == strlen(unit) && !strncmp(at, unit, size); }

double seconds_of(const char *text) {
    static const struct {
        const char *name;
        double seconds;
    } units[] = {{"ms", .001}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}, {"w", 604800}};
    double total = 0;
    const char *at = text;
    while (*at) {
        const char *end;
        double number = number_of(at, &end), unit = !*end && at == text ? 1 : 0;
        size_t size = strspn(end, "msdhw");
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (is_unit(end, size, units[i].name))
                unit = units[i].seconds;
        if (number < 0 || !unit)
            wrong("%s is no time: write 90s, 15m, 12h, 3d", text);
        total += number * unit;
        at = end + size;
    }
    if (at == text)
        wrong("%s is no time: write 90s, 15m, 12h, 3d", "nothing");
    if (!(total <= LONGEST_S))
        wrong("%s is longer than 300 years", text);
    return total;
}

void put_seconds(struct bytes *out, const char *name, const char *text) {
    char member[96];
    if (!text)
        return;
    snprintf(member, sizeof member, ", \"%s\": %.3f", name, seconds_of(text));
    put(out, member);
}

static void put_whole(struct bytes *out, const char *name, double number) {
    char member[96];
    snprintf(member, sizeof member, ", \"%s\": %.0f", name, number);
    put(out, member);
}

void put_mib(struct bytes *out, const char *name, const char *text) {
    const char *unit;
    if (!text)
        return;
    double number = number_of(text, &unit), mib = !strcmp(unit, "g") ? number * 1024 : !strcmp(unit, "m") ? number : -1;
    if (!(mib >= 1 && mib < 1e8))
        wrong("%s is no size of a memory: write 512m, or 2g", text);
    put_whole(out, name, mib);
}

unsigned count_of(const char *text, unsigned least) {
    const char *end;
    double number = number_of(text, &end);
    if (*end || !(number >= least && number < 1e6) || strchr(text, '.'))
        wrong(least ? "%s is no number from 1 on" : "%s is no number from 0 on", text);
    return (unsigned)number;
}

void put_count(struct bytes *out, const char *name, const char *text) {
    if (text)
        put_whole(out, name, count_of(text, 1));
}

struct bytes read_file(const char *name) {
    struct bytes content = {0};
    int fd = strcmp(name, "-") ? open(name, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    ssize_t count = -1;
    while (fd >= 0 && bytes_length(&content) <= VALUE_MAX) {
        count = read(fd, bytes_reserve(&content, READ_BYTES), READ_BYTES);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            break;
        content.end += (size_t)count;
    }
    if (fd < 0 || count < 0)
        die(FAILED, NULL, "%s: %s", name, strerror(errno));
    if (bytes_length(&content) > VALUE_MAX)
        die(FAILED, "Keep large things in files, and give their names.", "%s has more than 1 MiB", name);
    if (!utf8_check(bytes_head(&content), bytes_length(&content)))
        die(FAILED, "Give what a person can read, or the name of the file.", "%s is not UTF-8 text", name);
    if (fd)
        close(fd);
    return content;
}

void put_json(struct bytes *out, const char *word) {
    struct bytes content = {0};
    if (!strcmp(word, "-"))
        content = read_file("-");
    else
        put(&content, word);
    struct slice text = {bytes_head(&content), bytes_length(&content)};
    if (!json_check(text))
        die(FAILED, NULL, "this is not JSON: %.*s", (int)(text.size < 80 ? text.size : 80), (const char *)text.data);
    bytes_append(out, text.data, text.size);
    bytes_free(&content);
}
