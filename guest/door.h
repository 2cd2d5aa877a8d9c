// The client's side of the door: what perdure-guest asks guestd, one connection for each call.
#pragma once
#include "bytes.h"

struct key {
    char lane[129];
    uint64_t ordinal;
};

// The next number of the lane, from guestd. Ends the program where nobody listens.
void door_take(struct key *key);
// From here on SIGTERM, SIGINT and SIGHUP (those that are not ignored) end a call: its status is 0.
void door_heed(void);
int door_heed_no_more(void);  // the signal that came, 0: none; then one that comes a second later ends the program
// Instead: from here on they go to `how`, with those that came since the answer. SIG_DFL: they end the program.
void door_signals_to(void (*how)(int));
// Asks until it is answered; the answer's status, and its body, which is JSON where the status is below 400.
unsigned door_call(const char *name, const struct key *key, const struct bytes *body, struct bytes *answer);
