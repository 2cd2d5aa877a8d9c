// perdure-guest: the door's calls for shells. A call is found again by its lane and ordinal; so that commands which run at
// the same time need not come in the same order each time, each command has a lane of its own, named by what it asks.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ask.h"
#include "guestd.h"
#include "help.h"
#include "json.h"
#include "say.h"
#include "step.h"
#include "waits.h"

enum { NOT_THERE = 1 };

static const enum option only_json[] = {JSON}, only_keep[] = {KEEP}, of_step[] = {ON_DOUBT, RETRIES, BACKOFF, BACKOFF_MAX};

// What a word gives: a text, or with --json a JSON value; of "-" what stdin has.
static void put_value(struct bytes *body, const struct words *words, const char *word) {
    if (words->options[JSON]) {
        put_json(body, word);
    } else if (!strcmp(word, "-")) {
        struct bytes content = read_file("-");
        json_put(body, bytes_head(&content), bytes_length(&content));
        bytes_free(&content);
    } else {
        put_text_value(body, word);
    }
}

static void put_value_member(struct bytes *body, const struct words *words, const char *word) {
    put(body, ", \"value\": ");
    if (word)
        put_value(body, words, word);
    else
        put(body, "null");
    put(body, "}");
}

static int do_emit(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_options(words, only_json, 1, "emit");
    check_count(words, 1, 2, "emit NAME [VALUE|-] [--json]");
    put(&body, "{\"name\": ");
    put_text_value(&body, words->rest[0]);
    put_value_member(&body, words, words->rest[1]);
    ask_name(&key, words, "emit", words->rest[0]);
    ask("emit", &key, &body, &answer);
    return 0;
}

static int do_signal(const struct words *words) {
    struct bytes body = {0}, answer = {0}, name = {0};
    struct key key;
    check_options(words, only_json, 1, "signal");
    check_count(words, 2, 3, "signal RUN NAME [VALUE|-] [--json]");
    put(&body, "{\"run\": ");
    put_text_value(&body, words->rest[0]);
    put_member(&body, "name", words->rest[1]);
    put_value_member(&body, words, words->rest[2]);
    put(&name, words->rest[0]);
    put(&name, "/");
    bytes_append(&name, words->rest[1], strlen(words->rest[1]) + 1);
    ask_name(&key, words, "send", (const char *)bytes_head(&name));
    ask("signal", &key, &body, &answer);
    return 0;
}

static int do_message(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_options(words, only_json, 1, "message");
    check_count(words, 2, 2, "message ROLE TEXT|-");
    put(&body, "{\"message\": {\"role\": ");
    put_text_value(&body, words->rest[0]);
    put(&body, ", \"content\": ");
    put_value(&body, words, words->rest[1]);
    put(&body, "}}");
    ask_name(&key, words, "message", words->rest[0]);
    ask("message", &key, &body, &answer);
    return 0;
}

static int do_messages(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_options(words, NULL, 0, "messages");
    check_count(words, 0, 0, "messages");
    put(&body, "{}");
    ask_name(&key, words, "messages", "");
    say_value(json_member(ask("messages", &key, &body, &answer), "messages"));
    return 0;
}

static int do_checkpoint(const struct words *words) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_options(words, only_keep, 1, "checkpoint");
    check_count(words, 0, 0, "checkpoint [--keep]");
    put(&body, words->options[KEEP] ? "{\"keep\": true}" : "{}");
    ask_name(&key, words, "checkpoint", "");
    say_value(json_member(ask("checkpoint", &key, &body, &answer), "snapshot"));
    return 0;
}

static int draw(const struct words *words, const char *of) {
    struct bytes body = {0}, answer = {0};
    struct key key;
    check_options(words, NULL, 0, of);
    check_count(words, 0, 0, of);
    put(&body, "{\"of\": ");
    put_text_value(&body, of);
    put(&body, "}");
    ask_name(&key, words, of, "");
    say_value(json_member(ask("value", &key, &body, &answer), "value"));
    return 0;
}

static int do_now(const struct words *words) { return draw(words, "now"); }
static int do_random(const struct words *words) { return draw(words, "random"); }
static int do_uuid(const struct words *words) { return draw(words, "uuid"); }

// Asks nobody: an image may have no jq.
static int do_get(const struct words *words) {
    struct bytes text = {0};
    check_options(words, NULL, 0, "get");
    put_json(&text, "-");
    struct slice value = {bytes_head(&text), bytes_length(&text)};
    for (int i = 0; i < words->count && value.data; i++) {
        const char *word = words->rest[i];
        bool is_index = *word && strspn(word, "0123456789") == strlen(word);
        struct slice named = json_member(value, word);
        value = named.data || !is_index ? named : json_item(value, strtoul(word, NULL, 10));
    }
    if (!value.data)
        return NOT_THERE;
    say_value(value);
    return 0;
}

static int do_step(const struct words *words) {
    struct key key;
    check_options(words, of_step, sizeof of_step / sizeof *of_step, "step");
    if (words->count != 1 || !words->command || !*words->command)
        wrong("it is written: perdure-guest %s", "step NAME [--on-doubt ask|retry|fail] [--retries N] -- COMMAND");
    struct step step = {
        .name = words->rest[0],
        .on_doubt = words->options[ON_DOUBT] ? words->options[ON_DOUBT] : "ask",
        .retries = words->options[RETRIES] ? count_of(words->options[RETRIES], 0) : 0,
        .backoff_s = seconds_of(words->options[BACKOFF] ? words->options[BACKOFF] : "1s"),
        .backoff_max_s = seconds_of(words->options[BACKOFF_MAX] ? words->options[BACKOFF_MAX] : "10m"),
        .command = words->command,
    };
    ask_name(&key, words, "step", step.name);
    return step_run(&step, &key);
}

int client_main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*act)(const struct words *);
    } commands[] = {
        {"step", do_step},         {"emit", do_emit},     {"signal", do_signal},         {"message", do_message},
        {"messages", do_messages}, {"now", do_now},       {"random", do_random},         {"uuid", do_uuid},
        {"get", do_get},           {"checkpoint", do_checkpoint},
    };
    for (char **word = argv + 1; *word && strcmp(*word, "--"); word++)
        if (!strcmp(*word, "--help") || !strcmp(*word, "-h")) {
            say(perdure_guest_help, strlen(perdure_guest_help));
            return 0;
        }
    if (argc < 2) {
        fputs(perdure_guest_help, stderr);
        return FAILED;
    }
    if (!strcmp(argv[1], "wait"))
        return wait_main(argv + 2);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) {
            struct words words = take_words(argv + 2);
            if (words.command && commands[i].act != do_step)
                wrong("-- and a command are for step, not for %s", argv[1]);
            return commands[i].act(&words);
        }
    wrong("there is no command %s", argv[1]);
}
