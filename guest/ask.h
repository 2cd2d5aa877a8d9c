// One call of a command of perdure-guest: its lane and number, and what the host says.
#pragma once
#include "door.h"
#include "words.h"

// The lane that --lane or PERDURE_LANE names, or one named by what is asked (kind and name); and its next number.
void ask_name(struct key *key, const struct words *words, const char *kind, const char *name);
// The answer, which is JSON, in `answer`'s memory. A refusal of the host ends the program.
struct slice ask(const char *call, const struct key *key, const struct bytes *body, struct bytes *answer);
// The same of a wait: a signal that ends the program withdraws it first, so that the run is not parked on what nobody
// waits for.
struct slice ask_wait(const char *call, const struct key *key, const struct bytes *body, struct bytes *answer);
_Noreturn void end_by_signal(int number);
bool is_true(struct slice object, const char *name);
