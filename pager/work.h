// What the workers share: the state of every frame and window, and the queues of what is to be done. Whatever is here is
// read and changed under `work.lock`; frames are read, decompressed and put into memory outside of it.
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "frames.h"
#include "map.h"
#include "memory.h"
#include "ring.h"
#include "text.h"

enum { TEMPLATE_WINDOW = 8, ZERO_WINDOW = 512 };  // blocks around a fault that are filled together

enum frame_state {
    FRAME_IDLE,    // not in memory, nobody is at it
    FRAME_WANTED,  // not in its layer's file either: the node was asked
    FRAME_HELD,    // decompressed before the machine's memory was known
    FRAME_BUSY,    // a worker is at it: whoever faults on it waits for that worker
    FRAME_PLACED,
};

struct figures {
    uint64_t faults, stale_faults, frames, decompressed, prefetched, wanted;
    struct filled filled;
};

struct job {
    enum { JOB_FRAME, JOB_WINDOW, JOB_BLOCK, JOB_WAKE, JOB_EXTENT, JOB_HELD } kind;
    uint32_t number;     // of the frame, first block, block, block, extent, extent
    uint32_t end;        // of a window
    const uint8_t *content;  // of a frame that was FRAME_HELD
    bool hot;            // a window of the working set, not for a fault
    bool patient;        // nobody waits for it
};

struct work {
    pthread_mutex_t lock;
    pthread_cond_t ready;
    const struct map *map;
    uint8_t *frame;                 // a frame_state each
    uint64_t *claimed, *filled;     // windows, by the bit of their first block
    uint64_t *woken;                // blocks whose fault was answered though their content was there before
    struct ring faults;             // blocks
    struct ring arrived;            // frames for which faults waited until the node had fetched them
    struct ring ahead;              // blocks that will be wanted next
    bool serving;                   // the machine's memory is known
    bool populating;
    uint32_t populate_run, populate_block;  // how far that has come
    uint32_t busy;                  // workers that have a job
    struct figures figures;
};
extern struct work work;

// work.c
void work_open(const struct map *map);
void work_start(void);              // the worker threads
void work_serve(void);              // the machine's memory is known
void work_faults(const uint32_t *blocks, uint32_t count);
void work_populate(void);
bool work_take_window(uint32_t block, struct job *job);  // locked: the window that holds a block; false: somebody has it
uint32_t work_window(uint32_t block, uint32_t *end);  // the window that holds a block: its first block, and its end
bool work_is_complete(void);        // populating, and nothing is left
void work_urgent(struct lane *lane);  // not locked: serve the faults that wait, in the midst of something longer

// place.c: not locked
void place_frame(struct lane *lane, uint32_t frame, const uint8_t *content, bool hot);  // it is FRAME_BUSY; NULL: read it
void place_frame_job(struct lane *lane, const struct job *job);
void place_window(const struct job *job);
void place_block(struct lane *lane, uint32_t block);

// hot.c: the working set
void hot_open(const struct map *map);
bool hot_take(struct job *job);                 // locked
bool hot_is_done(void);                         // locked
void hot_extent(struct lane *lane, uint32_t extent);
void hot_held(struct lane *lane, uint32_t extent);
const uint8_t *hot_content(uint32_t frame);     // locked: of a frame that is FRAME_HELD
void hot_used(uint32_t frame);                  // locked: that content is needed no more

// touched.c: the next working set
void touched_open(const struct map *map);
void touched_begin(void);                       // the machine starts
void touched_add(uint32_t block);               // locked
void touched_list(struct text *line);           // locked: a JSON array

// wanted.c: frames that are not here
void wanted_open(const struct map *map);
bool wanted_is_absent(uint32_t frame);                   // locked, as all that follow
void wanted_ask(uint32_t frame, bool urgent);            // with its absent neighbours where urgent
uint32_t wanted_count(void);
bool wanted_say(struct text *line, bool all);            // a JSON array of [layer, frame]; false: nothing to say
void wanted_have(uint32_t layer, uint64_t number);
int64_t wanted_deadline_ms(int64_t timeout_ms, uint32_t *frame);  // when the oldest is too old; INT64_MAX: none
int64_t now_ms(void);
extern int wanted_signal;                                // eventfd: something is to be said

static inline bool bit_of(const uint64_t *bits, uint32_t index) { return bits[index / 64] >> index % 64 & 1; }
static inline void bit_set(uint64_t *bits, uint32_t index) { bits[index / 64] |= UINT64_C(1) << index % 64; }
static inline void bit_clear(uint64_t *bits, uint32_t index) { bits[index / 64] &= ~(UINT64_C(1) << index % 64); }
