#define _GNU_SOURCE
#include "ask.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "say.h"

enum { LANE_SHOWN = 80 };

// Letters, digits, - and _ of the name as they are; of a long one the beginning and a hash.
static void name_lane(struct key *key, const char *kind, const char *name) {
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

void ask_name(struct key *key, const struct words *words, const char *kind, const char *name) {
    const char *lane = words->options[LANE] ? words->options[LANE] : getenv("PERDURE_LANE");
    if (!lane) {
        name_lane(key, kind, name);
    } else {
        size_t size = strlen(lane);
        if (!size || size >= sizeof key->lane || !strcmp(lane, "auto") || strcspn(lane, " \t\r\n") != size)
            wrong("%s is no name of a lane: it has 1 to 128 characters and no space", lane);
        strcpy(key->lane, lane);
    }
    door_take(key);
}

static struct slice checked(unsigned status, const struct bytes *answer) {
    struct slice found = {bytes_head(answer), bytes_length(answer)};
    if (status >= 400 || !json_check(found))
        refused(status, found);
    return found;
}

struct slice ask(const char *call, const struct key *key, const struct bytes *body, struct bytes *answer) {
    return checked(door_call(call, key, body, answer), answer);
}

void end_by_signal(int number) {
    signal(number, SIG_DFL);
    raise(number);
    exit(128 + number);  // whoever started this has it blocked
}

struct slice ask_wait(const char *call, const struct key *key, const struct bytes *body, struct bytes *answer) {
    struct bytes nothing = {0};
    door_heed();
    unsigned status = door_call(call, key, body, answer);
    int number = door_heed_no_more();
    if (!status) {
        put(&nothing, "{}");
        door_call("wait/withdraw", key, &nothing, answer);
        end_by_signal(number);
    }
    struct slice found = checked(status, answer);
    while (is_true(found, "withdrawn"))
        pause();  // when this was first lived through, a signal came here: it comes again
    return found;
}

bool is_true(struct slice object, const char *name) { return slice_is(json_member(object, name), "true"); }
