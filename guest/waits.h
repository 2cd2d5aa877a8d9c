// `perdure-guest wait`: for a person, a signal, a time, a child, or for several of these at once.
#pragma once

int wait_main(char **words);  // those behind `wait`; the exit status
