// `perdure-guest step`: a command that is run once for all.
#pragma once
#include "door.h"

struct step {
    const char *name, *on_doubt;
    unsigned retries;  // attempts after the first, where its exit status was not 0
    double backoff_s, backoff_max_s;  // the first pause between two, and the longest: each is twice the one before
    char **command;
};

int step_run(const struct step *step, const struct key *first);  // the exit status
