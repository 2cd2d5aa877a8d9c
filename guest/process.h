// One process of the host's choosing, as process.c keeps it and launch.c starts it.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/types.h>

#include "loop.h"
#include "streams.h"

struct process {
    struct process *next;
    uint64_t id, request;
    pid_t pid;
    uint8_t phase;
    bool tty, exit_due;
    uint32_t exit_status;
    struct watch status;  // the child reports here that it cannot start; its end: it has
    struct output output[2];
    struct input input;
};

struct process *process_find(uint64_t id);  // NULL: there is none
struct process *process_add(uint64_t id, bool tty);
void process_forget(struct process *p);
void process_status(struct watch *watch, uint32_t events);  // what `status` calls back
struct winsize get_terminal_size(struct reader *frame);     // rows u16, columns u16
