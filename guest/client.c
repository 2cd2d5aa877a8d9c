// perdure-guest: the door's calls for shells. A call is found again by its lane and ordinal; so that commands which run at
// the same time need not come in the same order each time, each command has a lane of its own, named by what it asks.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "door.h"
#include "guestd.h"
#include "json.h"
#include "say.h"
#include "step.h"

enum { REFUSED_STATUS = 1, TIMED_OUT_STATUS = 2, LANE_SHOWN = 80, VALUE_MAX = 1 << 20, READ_BYTES = 64 << 10 };

static const char usage[] =
    "perdure-guest: what a program asks of the host of its run, from a shell\n"
    "\n"
    "  perdure-guest wait approval QUESTION [--show FILE|-] [--timeout TIME] [--json]\n"
    "        ask a person (perdure approve RUN); prints the comment, or all of the answer as JSON\n"
    "        exit status: 0 approved, 1 refused, 2 nobody answered in time\n"
    "  perdure-guest wait signal NAME [--timeout TIME]\n"
    "        until the signal comes (perdure signal RUN NAME VALUE); prints its value; 2: it did not come in time\n"
    "  perdure-guest wait time TIME\n"
    "        TIME is 90, 90s, 15m, 12h, 3d or 1d12h\n"
    "  perdure-guest step NAME [--on-doubt ask|retry|fail] -- COMMAND [ARGUMENT ...]\n"
    "        run the command once for all: its stdout and exit status are recorded, and told from the log afterwards.\n"
    "        on-doubt: what happens where its machine was lost while it ran: a person is asked, it runs again (it finds\n"
    "        the same PERDURE_IDEMPOTENCY_KEY), or it fails\n"
    "  perdure-guest emit NAME [VALUE|-] [--json]\n"
    "        tell whoever follows the run; VALUE (or stdin) is a text, with --json a JSON value\n"
    "  perdure-guest signal RUN NAME [VALUE|-] [--json]\n"
    "        send another run a signal that it waits for, once\n"
    "  perdure-guest message ROLE TEXT|-\n"
    "  perdure-guest messages\n"
    "        record a message of a conversation; print all that are recorded, as JSON\n"
    "  perdure-guest checkpoint [--keep]\n"
    "        capture the machine here: what is lost later goes on from this moment\n"
    "\n"
    "All take --lane NAME (or PERDURE_LANE): calls of one lane come one after the other, in the same order each time.\n"
    "Without it, each command has a lane of its own, by its name (`step build`), and may run beside others; two of the\n"
    "same name that run at the same time need lanes.\n"
    "Exit status 125: the host refuses, or this was not understood. While it waits, the machine may sleep for days.\n";

struct words {
    const char *show, *timeout, *lane, *on_doubt;
    bool json, keep;
    char *rest[4];  // what is no option
    int count;
    char **command;  // behind --
};

static void put(struct bytes *out, const char *text) { bytes_append(out, text, strlen(text)); }

static void put_text_value(struct bytes *out, const char *text) { json_put(out, text, strlen(text)); }

static _Noreturn void wrong(const char *what, const char *word) {
    die(FAILED, "perdure-guest --help says what there is.", what, word);
}

static bool take_value(const char *option, char ***at, const char **value) {
    size_t size = strlen(option);
    if (!strncmp(**at, option, size) && (**at)[size] == '=') {
        *value = **at + size + 1;
        return true;
    }
    if (strcmp(**at, option))
        return false;
    if (!*++*at)
        wrong("%s needs a value", option);
    *value = **at;
    return true;
}

static struct words take_words(char **at) {
    struct words words = {.lane = getenv("PERDURE_LANE")};
    for (; *at; at++) {
        if (!strcmp(*at, "--")) {
            words.command = at + 1;
            break;
        }
        if (take_value("--show", &at, &words.show) || take_value("--timeout", &at, &words.timeout) ||
            take_value("--lane", &at, &words.lane) || take_value("--on-doubt", &at, &words.on_doubt))
            continue;
        if (!strcmp(*at, "--json"))
            words.json = true;
        else if (!strcmp(*at, "--keep"))
            words.keep = true;
        else if (!strncmp(*at, "--", 2))
            wrong("there is no option %s", *at);
        else if (words.count == sizeof words.rest / sizeof *words.rest)
            wrong("%s is one word too many", *at);
        else
            words.rest[words.count++] = *at;
    }
    return words;
}

static void check_count(const struct words *words, int least, int most, const char *what) {
    if (words->count < least || words->count > most)
        wrong("it is written: perdure-guest %s", what);
}

// Seconds of 90, 1.5h, 1d12h.
static double seconds_of(const char *text) {
    static const struct {
        const char *name;
        double seconds;
    } units[] = {{"ms", .001}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}, {"w", 604800}};
    double total = 0;
    const char *at = text;
    while (*at) {
        char *end;
        double number = *at >= '0' && *at <= '9' ? strtod(at, &end) : -1;
        if (number < 0)
            wrong("%s is no time: write 90s, 15m, 12h, 3d", text);
        double unit = !*end && at == text ? 1 : 0;
        at = end;
        size_t size = strspn(at, "msdhw");
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (size == strlen(units[i].name) && !strncmp(at, units[i].name, size))
                unit = units[i].seconds;
        if (!unit)
            wrong("%s is no time: write 90s, 15m, 12h, 3d", text);
        total += number * unit;
        at += size;
    }
    if (at == text)
        wrong("%s is no time: write 90s, 15m, 12h, 3d", "nothing");
    return total;
}

static void put_seconds(struct bytes *out, const char *name, const char *text) {
    char member[96];
    if (!text)
        return;
    snprintf(member, sizeof member, ", \"%s\": %.3f", name, seconds_of(text));
    put(out, member);
}

// A file, or stdin where it is "-".
static struct bytes read_file(const char *name) {
    struct bytes content = {0};
    int fd = strcmp(name, "-") ? open(name, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    ssize_t count = -1;
    while (fd >= 0 && bytes_length(&content) <= VALUE_MAX &&
           (count = read(fd, bytes_reserve(&content, READ_BYTES), READ_BYTES)) > 0)
        content.end += (size_t)count;
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

// A lane named by what is asked: letters, digits, - and _ of it as they are; of a long one the beginning and a hash.
static void name_lane(struct key *key, const struct words *words, const char *kind, const char *name) {
    if (words->lane) {
        size_t size = strlen(words->lane);
        if (!size || size >= sizeof key->lane || !strcmp(words->lane, "auto") || strcspn(words->lane, " \t\r\n") != size)
            wrong("%s is no name of a lane: it has 1 to 128 characters and no space", words->lane);
        strcpy(key->lane, words->lane);
        return;
    }
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    size_t at = (size_t)snprintf(key->lane, sizeof key->lane, "sh:%s:", kind);
    for (const char *c = name; *c; c++) {
        bool is_plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("-_", *c);
        hash = (hash ^ (uint8_t)*c) * 1099511628211u;
        if (at < LANE_SHOWN)
            at += (size_t)snprintf(key->lane + at, sizeof key->lane - at, is_plain ? "%c" : "%%%02X", (uint8_t)*c);
    }
    if (at >= LANE_SHOWN)
        snprintf(key->lane + at, sizeof key->lane - at, "~%016llx", (unsigned long long)hash);
}

static struct slice ask(const char *call, struct key *key, const struct bytes *body, struct bytes *answer) {
    unsigned status = door_call(call, key, body, answer);
    struct slice found = {bytes_head(answer), bytes_length(answer)};
    if (status >= 400 || !json_check(found))
        refused(status, found);
    return found;
}

static bool is_true(struct slice object, const char *name) { return slice_is(json_member(object, name), "true"); }

static int wait_approval(const struct words *words, struct key *key) {
    struct bytes body = {0}, answer = {0};
    check_count(words, 2, 2, "wait approval QUESTION [--show FILE] [--timeout TIME]");
    put(&body, "{\"kind\": \"approval\", \"prompt\": ");
    put_text_value(&body, words->rest[1]);
    if (words->show) {
        struct bytes shown = read_file(words->show);
        put(&body, ", \"show\": ");
        json_put(&body, bytes_head(&shown), bytes_length(&shown));
        bytes_free(&shown);
    }
    put_seconds(&body, "timeout_s", words->timeout);
    put(&body, "}");
    struct slice found = ask("wait", key, &body, &answer), comment = json_member(found, "comment");
    bool timed_out = is_true(found, "timed_out");
    if (words->json)
        say_value(found);
    else if (comment.size > 2)
        say_value(comment);
    return is_true(found, "approved") ? 0 : timed_out ? TIMED_OUT_STATUS : REFUSED_STATUS;
}

static int wait_signal(const struct words *words, struct key *key) {
    struct bytes body = {0}, answer = {0};
    check_count(words, 2, 2, "wait signal NAME [--timeout TIME]");
    put(&body, "{\"kind\": \"signal\", \"name\": ");
    put_text_value(&body, words->rest[1]);
    put_seconds(&body, "timeout_s", words->timeout);
    put(&body, "}");
    struct slice found = ask("wait", key, &body, &answer);
    if (is_true(found, "timed_out"))
        return TIMED_OUT_STATUS;
    say_value(json_member(found, "value"));
    return 0;
}

static int wait_time(const struct words *words, struct key *key) {
    struct bytes body = {0}, answer = {0};
    check_count(words, 2, 2, "wait time TIME");
    put(&body, "{\"kind\": \"time\"");
    put_seconds(&body, "seconds", words->rest[1]);
    put(&body, "}");
    ask("wait", key, &body, &answer);
    return 0;
}

static int do_wait(const struct words *words) {
    static const struct {
        const char *kind;
        int (*wait)(const struct words *, struct key *);
    } kinds[] = {{"approval", wait_approval}, {"signal", wait_signal}, {"time", wait_time}};
    struct key key;
    for (size_t i = 0; words->count && i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(words->rest[0], kinds[i].kind)) {
            name_lane(&key, words, kinds[i].kind, words->count > 1 ? words->rest[1] : "");
            if (words->count > 1)
                door_take(&key);
            return kinds[i].wait(words, &key);
        }
    wrong("wait is for approval, signal or time, not for %s", words->count ? words->rest[0] : "nothing");
}

// What a word gives: a text, or with --json a JSON value; of "-" what stdin has.
static void put_value(struct bytes *body, const struct words *words, char *word) {
    struct bytes content = {0};
    if (!strcmp(word, "-"))
        content = read_file("-");
    else
        put(&content, word);
    struct slice text = {bytes_head(&content), bytes_length(&content)};
    if (!words->json)
        json_put(body, text.data, text.size);
    else if (json_check(text))
        bytes_append(body, text.data, text.size);
    else
        die(FAILED, "Without --json it is taken as a text.", "this is not JSON: %.*s", (int)(text.size < 80 ? text.size : 80),
            (const char *)text.data);
    bytes_free(&content);
}

static int do_emit(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_count(words, 1, 2, "emit NAME [VALUE|-] [--json]");
    put(&body, "{\"name\": ");
    put_text_value(&body, words->rest[0]);
    put(&body, ", \"value\": ");
    if (words->count == 2)
        put_value(&body, words, words->rest[1]);
    else
        put(&body, "null");
    put(&body, "}");
    name_lane(&key, words, "emit", words->rest[0]);
    door_take(&key);
    ask("emit", &key, &body, &answer);
    return 0;
}

static int do_signal(const struct words *words) {
    struct bytes body = {0}, answer = {0}, name = {0};
    struct key key;
    check_count(words, 2, 3, "signal RUN NAME [VALUE|-] [--json]");
    put(&body, "{\"run\": ");
    put_text_value(&body, words->rest[0]);
    put(&body, ", \"name\": ");
    put_text_value(&body, words->rest[1]);
    put(&body, ", \"value\": ");
    if (words->count == 3)
        put_value(&body, words, words->rest[2]);
    else
        put(&body, "null");
    put(&body, "}");
    put(&name, words->rest[0]);
    put(&name, "/");
    bytes_append(&name, words->rest[1], strlen(words->rest[1]) + 1);
    name_lane(&key, words, "send", (const char *)bytes_head(&name));
    door_take(&key);
    ask("signal", &key, &body, &answer);
    return 0;
}

static int do_message(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_count(words, 2, 2, "message ROLE TEXT|-");
    put(&body, "{\"message\": {\"role\": ");
    put_text_value(&body, words->rest[0]);
    put(&body, ", \"content\": ");
    put_value(&body, words, words->rest[1]);
    put(&body, "}}");
    name_lane(&key, words, "message", words->rest[0]);
    door_take(&key);
    ask("message", &key, &body, &answer);
    return 0;
}

static int do_messages(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_count(words, 0, 0, "messages");
    put(&body, "{}");
    name_lane(&key, words, "messages", "");
    door_take(&key);
    say_value(json_member(ask("messages", &key, &body, &answer), "messages"));
    return 0;
}

static int do_checkpoint(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_count(words, 0, 0, "checkpoint [--keep]");
    put(&body, words->keep ? "{\"keep\": true}" : "{}");
    name_lane(&key, words, "checkpoint", "");
    door_take(&key);
    say_value(json_member(ask("checkpoint", &key, &body, &answer), "snapshot"));
    return 0;
}

static int do_step(const struct words *words) {
    struct key key;
    if (words->count != 1 || !words->command || !*words->command)
        wrong("it is written: perdure-guest %s", "step NAME [--on-doubt ask|retry|fail] -- COMMAND");
    name_lane(&key, words, "step", words->rest[0]);
    door_take(&key);
    return step_run(&key, words->rest[0], words->on_doubt ? words->on_doubt : "ask", words->command);
}

int client_main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*act)(const struct words *);
    } commands[] = {{"wait", do_wait},         {"step", do_step},         {"emit", do_emit},
                    {"signal", do_signal},     {"message", do_message},   {"messages", do_messages}, {"checkpoint", do_checkpoint}};
    for (char **word = argv + 1; *word && strcmp(*word, "--"); word++)
        if (!strcmp(*word, "--help") || !strcmp(*word, "-h")) {
            say(usage, strlen(usage));
            return 0;
        }
    if (argc < 2) {
        fputs(usage, stderr);
        return FAILED;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) {
            struct words words = take_words(argv + 2);
            if (words.command && strcmp(argv[1], "step"))
                wrong("-- and a command are for step, not for %s", argv[1]);
            return commands[i].act(&words);
        }
    wrong("there is no command %s", argv[1]);
}
