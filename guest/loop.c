#include "loop.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static int epoll = -1;
static struct timer *timers;

static void control(int operation, struct watch *watch) {
    struct epoll_event event = {.events = watch->events, .data.ptr = watch};
    if (epoll_ctl(epoll, operation, watch->fd, &event) < 0) {
        perror("guestd: epoll_ctl");
        abort();
    }
}

void loop_open(void) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) {
        perror("guestd: epoll_create1");
        abort();
    }
}

int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void watch_open(struct watch *watch, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t)) {
    *watch = (struct watch){.fd = fd, .ready = ready};
    watch_for(watch, events);
}

void watch_for(struct watch *watch, uint32_t events) {
    uint32_t before = watch->events;
    if (watch->fd < 0 || before == events)
        return;
    watch->events = events;
    control(!before ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, watch);
}

void watch_close(struct watch *watch) {
    if (watch->fd < 0)
        return;
    watch_for(watch, 0);  // a child may still hold the file open, so closing alone would not end the events
    close(watch->fd);
    watch->fd = -1;
}

void timer_start(struct timer *timer, int64_t delay_ms, void (*fire)(struct timer *)) {
    timer_stop(timer);
    timer->due_ms = now_ms() + delay_ms;
    timer->fire = fire;
    timer->next = timers;
    timers = timer;
}

void timer_stop(struct timer *timer) {
    for (struct timer **link = &timers; *link; link = &(*link)->next)
        if (*link == timer) {
            *link = timer->next;
            break;
        }
    *timer = (struct timer){0};
}

static struct timer *first_timer(void) {
    struct timer *first = timers;
    for (struct timer *timer = timers; timer; timer = timer->next)
        if (timer->due_ms < first->due_ms)
            first = timer;
    return first;
}

void loop_step(void) {
    struct timer *first = first_timer();
    int64_t wait = first ? first->due_ms - now_ms() : -1;
    struct epoll_event event;
    // One event at a time: what its callback closes cannot be among events that were fetched with it.
    int count = epoll_wait(epoll, &event, 1, !first ? -1 : wait < 0 ? 0 : wait > 60000 ? 60000 : (int)wait);
    if (count < 0 && errno != EINTR) {
        perror("guestd: epoll_wait");
        abort();
    }
    if (count > 0) {
        struct watch *watch = event.data.ptr;
        watch->ready(watch, event.events);
    }
    first = first_timer();
    if (first && first->due_ms <= now_ms()) {
        void (*fire)(struct timer *) = first->fire;
        timer_stop(first);
        fire(first);
    }
}
