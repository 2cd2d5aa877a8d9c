// The streams of one process. Output stays here until it is acknowledged, then the next is read (so a slow host slows
// the process); input has offsets. So each byte arrives once, over any number of connections and restores.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "bytes.h"
#include "loop.h"

struct output {
    struct watch watch;
    struct bytes kept;  // [base, base + length): not acknowledged yet
    uint64_t base, sent;
    bool ended, end_sent;
    bool drain;  // the process has exited: what is there now is all that counts
    bool bulk;   // of a file tool: more of it is under way
};

void output_open(struct output *s, int fd);
void output_free(struct output *s);
void output_drain(struct output *s);   // the process has exited
void output_rewind(struct output *s);  // a new connection: everything not acknowledged is sent again
uint64_t output_end(const struct output *s);  // the offset behind all that was read
void output_acknowledge(struct output *s, uint64_t offset);

// At most one frame of the process's output `number`; false: nothing to send. It does not end before the process has
// started.
bool output_produce(struct output *s, uint64_t process, uint8_t number, bool started, struct bytes *out);

struct input {
    struct watch watch;
    struct bytes kept;  // the last bytes below received
    uint64_t received;
    bool tty, started, ended, ack_due, bulk;
};

void input_open(struct input *s, int fd);
void input_free(struct input *s);
void input_start(struct input *s);  // the process has started: from now on it gets what comes
void input_close(struct input *s);  // nobody reads any more: what is kept, and comes, is thrown away
uint64_t input_limit(const struct input *s);  // the offset up to which the host may send
bool input_receive(struct input *s, uint64_t offset, struct slice data);  // false: a hole, what came between is lost
bool input_finish(struct input *s, uint64_t offset);                      // false: that is not where it ends
