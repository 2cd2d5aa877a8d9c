// The form of an approval: fields that a person fills in.
#pragma once
#include "words.h"

bool has_form(const struct words *words);
void put_form(struct bytes *body, const struct words *words);  // as a member, where there is one
