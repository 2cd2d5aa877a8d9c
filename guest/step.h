// `perdure-guest step`: a command that is run once for all.
#pragma once
#include "door.h"

int step_run(const struct key *key, const char *name, const char *on_doubt, char **argv);
