// What a wait asks of the host, and what its answer is to a shell: text on stdout, and an exit status.
#define _GNU_SOURCE
#include "waits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ask.h"
#include "form.h"
#include "json.h"
#include "say.h"

enum { NO = 1, TIMED_OUT = 2, OPTIONS_MAX = 6, SET_MAX = 1000 };

static const char CHILD_USAGE[] = "wait child AGENT [--input JSON|-], or wait child -- COMMAND [ARGUMENT ...]";

struct kind {
    const char *name;    // as it is typed, and in its lane
    const char *usage;
    bool has_word;       // besides the kind
    enum option options[OPTIONS_MAX];
    int option_count;
    void (*put)(struct bytes *body, const struct words *words);
    // What is printed of its answer; false: nothing.
    bool (*tell)(struct bytes *text, const struct words *words, struct slice answer);
};

// What is asked -----------------------------------------------------------------------------------------------------

static void put_approval(struct bytes *body, const struct words *words) {
    put(body, "{\"kind\": \"approval\"");
    put_member(body, "prompt", words->rest[1]);
    if (words->options[SHOW]) {
        struct bytes shown = read_file(words->options[SHOW]);
        put(body, ", \"show\": ");
        json_put(body, bytes_head(&shown), bytes_length(&shown));
        bytes_free(&shown);
    }
    put_form(body, words);
}

static void put_signal(struct bytes *body, const struct words *words) {
    put(body, "{\"kind\": \"signal\"");
    put_member(body, "name", words->rest[1]);
}

static void put_time(struct bytes *body, const struct words *words) {
    put(body, "{\"kind\": \"time\"");
    put_seconds(body, "seconds", words->rest[1]);
}

// A moment: ISO 8601, which the host reads, or seconds since 1970.
static void put_until(struct bytes *body, const struct words *words) {
    const char *at = words->rest[1];
    bool is_number = strspn(at, "0123456789.") == strlen(at) && json_check((struct slice){(const uint8_t *)at, strlen(at)});
    put(body, "{\"kind\": \"time\"");
    if (!is_number) {
        put_member(body, "until", at);
        return;
    }
    put(body, ", \"until\": ");
    put(body, at);
}

static void put_child(struct bytes *body, const struct words *words) {
    bool has_command = words->command && *words->command;
    if ((words->count == 2) == has_command)
        wrong("it is written: perdure-guest %s", CHILD_USAGE);
    put(body, "{\"kind\": \"child\"");
    put_member(body, "function", words->rest[1]);
    if (has_command) {
        put(body, ", \"command\": [");
        for (char **word = words->command; *word; word++) {
            put(body, word == words->command ? "" : ", ");
            put_text_value(body, *word);
        }
        put(body, "]");
    }
    if (words->options[INPUT]) {
        put(body, ", \"input\": ");
        put_json(body, words->options[INPUT]);
    }
    put_member(body, "image", words->options[IMAGE]);
    put_mib(body, "memory_mib", words->options[MEMORY]);
    put_count(body, "vcpus", words->options[VCPUS]);
}

// What is told ------------------------------------------------------------------------------------------------------

static void put_value(struct bytes *text, struct slice value) {
    if (json_is_text(value))
        json_decode(text, value);
    else
        bytes_append(text, value.data, value.size);
}

static bool tell_approval(struct bytes *text, const struct words *words, struct slice answer) {
    if (has_form(words))
        put_value(text, json_member(answer, "values"));
    else
        put_value(text, json_member(answer, "comment"));
    return bytes_length(text);
}

static bool tell_signal(struct bytes *text, const struct words *words, struct slice answer) {
    (void)words;
    put_value(text, json_member(answer, "value"));
    return true;
}

static bool tell_nothing(struct bytes *text, const struct words *words, struct slice answer) {
    (void)text, (void)words, (void)answer;
    return false;
}

// What an agent returned, or the last that a program printed.
static bool tell_child(struct bytes *text, const struct words *words, struct slice answer) {
    struct slice error = json_member(answer, "error"), details = json_member(error, "details");
    struct slice result = json_member(answer, "result");
    put_value(text, words->command ? json_member(error.data ? details : result, "output") : result);
    if (bytes_length(text) && text->data[text->end - 1] == '\n')
        text->end--;  // the line's end that is printed after every value
    return words->command ? bytes_length(text) : !error.data;
}

static void complain_of(struct slice answer) {
    struct slice error = json_member(answer, "error"), run = json_member(answer, "run_id");
    struct bytes line = {0};
    if (!error.data || *error.data != '{')
        return;
    put(&line, "perdure-guest: child run ");
    put_value(&line, run);
    put(&line, ": ");
    put_value(&line, json_member(error, "message"));
    fprintf(stderr, "%.*s\n", (int)bytes_length(&line), (const char *)bytes_head(&line));
    bytes_free(&line);
}

static int status_of(const struct kind *kind, struct slice answer) {
    if (is_true(answer, "timed_out"))
        return TIMED_OUT;
    struct slice error = json_member(answer, "error");
    complain_of(answer);
    return (error.data && *error.data == '{') || (kind->put == put_approval && !is_true(answer, "approved")) ? NO : 0;
}

static const struct kind kinds[] = {
    {"approval", "wait approval QUESTION [--show FILE] [--field NAME=TYPE] [--timeout TIME]", true,
     {SHOW, FORM, FIELD, TIMEOUT, JSON}, 5, put_approval, tell_approval},
    {"signal", "wait signal NAME [--timeout TIME]", true, {TIMEOUT, JSON}, 2, put_signal, tell_signal},
    {"time", "wait time TIME", true, {0}, 0, put_time, tell_nothing},
    {"until", "wait until MOMENT", true, {0}, 0, put_until, tell_nothing},
    {"child", CHILD_USAGE, false,
     {INPUT, IMAGE, MEMORY, VCPUS, TIMEOUT, JSON}, 6, put_child, tell_child},
};

static const struct kind *kind_of(const struct words *words) {
    const struct kind *found = NULL;
    for (size_t i = 0; words->count && i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(words->rest[0], kinds[i].name))
            found = &kinds[i];
    if (!found)
        wrong("wait is for approval, signal, time, until, child, all or any, not for %s", words->count ? words->rest[0] : "nothing");
    check_count(words, found->has_word ? 2 : 1, 2, found->usage);
    if (found->has_word && words->command)
        wrong("-- and a command are for wait child, not for wait %s", found->name);
    check_options(words, found->options, found->option_count, found->name);
    return found;
}

static void say_text(struct bytes *text) {
    bytes_append(text, "\n", 1);
    say(bytes_head(text), bytes_length(text));
}

static void join(struct bytes *text, char *const *words) {
    for (const char *between = bytes_length(text) ? " " : ""; *words; words++, between = " ") {
        put(text, between);
        put(text, *words);
    }
}

static int wait_one(const struct words *words) {
    struct bytes body = {0}, answer = {0}, text = {0}, name = {0};
    const struct kind *kind = kind_of(words);
    struct key key;
    kind->put(&body, words);
    put_seconds(&body, "timeout_s", words->options[TIMEOUT]);
    put(&body, "}");
    if (words->count == 2)
        put(&name, words->rest[1]);
    else
        join(&name, words->command);
    put_u8(&name, 0);
    ask_name(&key, words, kind->name, (const char *)bytes_head(&name));
    struct slice found = ask_wait("wait", &key, &body, &answer);
    int status = status_of(kind, found);
    if (words->options[JSON])
        say_value(found);
    else if (status != TIMED_OUT && kind->tell(&text, words, found))
        say_text(&text);
    return status;
}

// Sets --------------------------------------------------------------------------------------------------------------

struct set {
    struct words whole;  // what was said of the set, among its parts
    struct part {
        struct words words;
        const struct kind *kind;
    } *parts;
    int count;
};

// An option of the set may stand with any of its waits, once.
static void lift(struct set *set, struct words *part) {
    static const enum option lifted[] = {TIMEOUT, LANE, JSON};
    for (size_t i = 0; i < sizeof lifted / sizeof *lifted; i++) {
        const char *value = part->options[lifted[i]];
        if (value && set->whole.options[lifted[i]] && lifted[i] == TIMEOUT)
            wrong("a set has one --timeout, not %s besides: put a wait for a time into it instead", value);
        if (value)
            set->whole.options[lifted[i]] = value;
        part->options[lifted[i]] = NULL;
    }
}

// WAIT + WAIT + ...: a + of its own ends a wait, also in a child's command.
static struct set take_set(char **at, struct bytes *name) {
    struct set set = {.parts = allocate(SET_MAX * sizeof *set.parts)};
    for (char **begun = at;; begun = at + 1) {
        for (at = begun; *at && strcmp(*at, "+"); at++) {
        }
        bool is_last = !*at;
        *at = NULL;
        if (set.count == SET_MAX)
            wrong("a set has at most %s waits", "1000");
        struct part *part = &set.parts[set.count++];
        part->words = take_words(begun);
        lift(&set, &part->words);
        part->kind = kind_of(&part->words);
        join(name, begun);
        if (is_last)
            return set;
    }
}

// The values of all, as a list: of an approval all that was said, of what has none (a time, a failed child) null.
static int take_all(const struct set *set, struct slice found, struct bytes *text) {
    struct slice answers = json_member(found, "waits");
    int status = 0;
    for (int i = 0; i < set->count; i++) {
        const struct kind *kind = set->parts[i].kind;
        struct slice answer = json_item(answers, (size_t)i), value = answer;
        if (kind->put != put_approval)
            value = json_member(answer, kind->put == put_child ? "result" : "value");
        put(text, i ? ", " : "[");
        if (value.data)
            bytes_append(text, value.data, value.size);
        else
            put(text, "null");
        status |= status_of(kind, answer);
    }
    put(text, "]");
    return status;
}

// Which came first, from 0 on, and what it would have printed by itself.
static int take_first(const struct set *set, struct slice found, struct bytes *text) {
    struct slice order = json_item(json_member(found, "order"), 0);
    size_t first = order.data ? strtoul((const char *)order.data, NULL, 10) : SET_MAX;
    if (first >= (size_t)set->count)
        die(FAILED, NULL, "the host answered that none of the waits came: %.*s", (int)(found.size < 200 ? found.size : 200),
            (const char *)found.data);
    const struct part *part = &set->parts[first];
    struct slice answer = json_item(json_member(found, "waits"), first);
    struct bytes value = {0};
    put_value(text, order);
    if (part->kind->tell(&value, &part->words, answer)) {
        put(text, " ");
        bytes_append(text, bytes_head(&value), bytes_length(&value));
    }
    bytes_free(&value);
    return status_of(part->kind, answer);
}

static int wait_set(const char *mode, char **at) {
    struct bytes body = {0}, answer = {0}, name = {0}, text = {0};
    struct key key;
    struct set set = take_set(at, &name);
    put(&body, "{\"mode\": ");
    put_text_value(&body, mode);
    put(&body, ", \"waits\": [");
    for (int i = 0; i < set.count; i++) {
        put(&body, i ? ", " : "");
        set.parts[i].kind->put(&body, &set.parts[i].words);
        put(&body, "}");
    }
    put(&body, "]");
    put_seconds(&body, "timeout_s", set.whole.options[TIMEOUT]);
    put(&body, "}");
    put_u8(&name, 0);
    ask_name(&key, &set.whole, mode, (const char *)bytes_head(&name));
    struct slice found = ask_wait("wait/set", &key, &body, &answer);
    bool is_late = is_true(found, "timed_out");
    int status = is_late ? TIMED_OUT : !strcmp(mode, "any") ? take_first(&set, found, &text) : take_all(&set, found, &text);
    if (set.whole.options[JSON])
        say_value(found);
    else if (!is_late)
        say_text(&text);
    return status;
}

int wait_main(char **words) {
    if (*words && (!strcmp(*words, "all") || !strcmp(*words, "any")))
        return wait_set(*words, words + 1);
    struct words one = take_words(words);
    return wait_one(&one);
}
