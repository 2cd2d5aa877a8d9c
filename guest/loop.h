// One thread, one epoll: descriptors and timers call back. A callback may close any watch, its own too.
#pragma once
#include <stdint.h>

struct watch {  // embedded in what it belongs to; fd -1: closed
    int fd;
    uint32_t events;
    void (*ready)(struct watch *watch, uint32_t events);
};

struct timer {  // all zero: off
    int64_t due_ms;
    void (*fire)(struct timer *timer);
    struct timer *next;
};

#define OWNER(member_pointer, type, member) ((type *)((char *)(member_pointer) - offsetof(type, member)))

void loop_open(void);
void loop_step(void);  // wait for one event, or for due timers, and handle it
int64_t now_ms(void);  // CLOCK_MONOTONIC

void watch_open(struct watch *watch, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t));
void watch_for(struct watch *watch, uint32_t events);  // 0: not even errors and hang-ups are reported
void watch_close(struct watch *watch);                 // closes the descriptor too

void timer_start(struct timer *timer, int64_t delay_ms, void (*fire)(struct timer *));
void timer_stop(struct timer *timer);
