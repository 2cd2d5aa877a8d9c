// The processes of the host's choosing: their life, and what the host is told of them.
#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guestd.h"

static struct process *processes;

struct process *process_find(uint64_t id) {
    struct process *p = processes;
    while (p && p->id != id)
        p = p->next;
    return p;
}

struct process *process_add(uint64_t id, bool tty) {
    struct process *p = allocate(sizeof *p);
    p->id = id;
    p->tty = p->input.tty = tty;
    p->output[0].watch.fd = p->output[1].watch.fd = p->status.fd = p->input.watch.fd = -1;
    p->next = processes;
    processes = p;
    return p;
}

void process_forget(struct process *p) {
    struct process **link = &processes;
    while (*link != p)
        link = &(*link)->next;
    *link = p->next;
    for (int i = 0; i < 2; i++)
        output_free(&p->output[i]);
    watch_close(&p->status);
    input_free(&p->input);
    free(p);
}

// What the host is told ---------------------------------------------------------------------------------------------

static bool process_produce(struct process *p, struct bytes *out) {
    if (p->input.ack_due) {
        size_t begun = frame_begin(out, STDIN_ACK);
        put_u64(out, p->id);
        put_u64(out, p->input.received);
        put_u64(out, input_limit(&p->input));
        frame_end(out, begun);
        p->input.ack_due = false;
    }
    bool started = p->phase != PHASE_STARTING;
    bool produced = output_produce(&p->output[0], p->id, 1, started, out);
    produced |= output_produce(&p->output[1], p->id, 2, started, out);
    if (p->exit_due) {
        size_t begun = frame_begin(out, EXITED);
        put_u64(out, p->id);
        put_u32(out, p->exit_status);
        frame_end(out, begun);
        p->exit_due = false;
    }
    return produced;
}

bool processes_produce(struct bytes *out) {
    bool produced = false;
    for (struct process *p = processes; p; p = p->next)
        produced |= process_produce(p, out);
    return produced;
}

void processes_rewind(void) {
    for (struct process *p = processes; p; p = p->next) {
        for (int i = 0; i < 2; i++)
            output_rewind(&p->output[i]);
        p->exit_due = p->phase == PHASE_EXITED;
    }
}

void processes_say_hello(struct bytes *out) {
    for (struct process *p = processes; p; p = p->next) {
        size_t begun = frame_begin(out, PROCESS);
        put_u64(out, p->id);
        put_u8(out, p->phase);
        put_u8(out, p->tty);
        put_u32(out, (uint32_t)p->pid);
        put_u32(out, p->exit_status);
        put_u64(out, p->input.received);
        put_u64(out, input_limit(&p->input));
        p->input.ack_due = false;  // this says it; what is read before WELCOME comes is told after it
        for (int i = 0; i < 2; i++) {
            put_u64(out, p->output[i].base);
            put_u64(out, output_end(&p->output[i]));
            put_u8(out, p->output[i].ended);
        }
        frame_end(out, begun);
    }
}

// Streams -----------------------------------------------------------------------------------------------------------

void process_output_ack(struct reader *frame) {
    struct process *p = process_find(get_number(frame, 8));
    uint64_t number = get_number(frame, 1);
    uint64_t offset = get_number(frame, 8);
    if (frame->bad || !p)
        return;
    if (number < 1 || number > 2)
        frame->bad = true;
    else
        output_acknowledge(&p->output[number - 1], offset);
}

void process_stdin(struct reader *frame) {
    struct process *p = process_find(get_number(frame, 8));
    uint64_t offset = get_number(frame, 8);
    struct slice data = get_rest(frame);
    if (!frame->bad && p && !input_receive(&p->input, offset, data))
        frame->bad = true;
}

void process_stdin_end(struct reader *frame) {
    struct process *p = process_find(get_number(frame, 8));
    uint64_t offset = get_number(frame, 8);
    if (!frame->bad && p && !input_finish(&p->input, offset))
        frame->bad = true;
}

// Life --------------------------------------------------------------------------------------------------------------

static void set_exited(struct process *p) {
    p->phase = PHASE_EXITED;
    p->exit_due = true;
    for (int i = 0; i < 2; i++)
        output_drain(&p->output[i]);
    input_close(&p->input);
}

void process_status(struct watch *watch, uint32_t events) {
    (void)events;
    struct process *p = OWNER(watch, struct process, status);
    uint8_t report[2 + 256] = {0};
    ssize_t count = read(watch->fd, report, sizeof report - 1);
    if (count < 0)
        return;  // EAGAIN: a child that exited left it to something it forked; its end comes
    watch_close(watch);
    if (count >= 2) {
        unsigned code = report[0] | report[1] << 8;
        request_done(p->request, code, 0, "%s", (char *)report + 2);
        p->exit_status = code >= REPLY_NOT_EXECUTABLE ? code : 125;  // for a host that did not ask but adopts it
        set_exited(p);
        return;
    }
    p->phase = PHASE_RUNNING;
    request_done(p->request, REPLY_OK, (uint32_t)p->pid, "%s", "");
    input_start(&p->input);
}

void processes_reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct process *p = processes;
        while (p && (p->pid != pid || p->phase == PHASE_EXITED))
            p = p->next;
        if (!p)
            continue;  // an orphan of the workload, or a child that could not start
        if (p->phase == PHASE_STARTING) {
            process_status(&p->status, EPOLLIN);
            if (p->phase == PHASE_EXITED)
                continue;  // it could not start
        }
        p->exit_status = WIFSIGNALED(status) ? 128 + (uint32_t)WTERMSIG(status) : (uint32_t)WEXITSTATUS(status);
        set_exited(p);
    }
}

void processes_kill(void) {
    for (struct process *p = processes; p; p = p->next)
        if (p->phase != PHASE_EXITED && kill(-p->pid, SIGKILL))
            kill(p->pid, SIGKILL);
}

void process_signal(struct reader *frame) {
    uint64_t request = get_number(frame, 8);
    struct process *p = process_find(get_number(frame, 8));
    int number = (int)get_number(frame, 4);
    bool group = get_number(frame, 1);
    if (frame->bad || !request_begin(request))
        return;
    if (!p || p->phase == PHASE_EXITED)
        request_done(request, REPLY_CONFLICT, 0, "the process has exited");
    else if (number < 1 || number > 64)
        request_done(request, REPLY_INVALID, 0, "there is no signal %d", number);
    else if (kill(group ? -p->pid : p->pid, number))
        request_done(request, REPLY_FAILED, 0, "kill: %s", strerror(errno));
    else
        request_done(request, REPLY_OK, 0, "%s", "");
}

struct winsize get_terminal_size(struct reader *frame) {
    struct winsize size = {.ws_row = (unsigned short)get_number(frame, 2)};
    size.ws_col = (unsigned short)get_number(frame, 2);
    return size;
}

void process_resize(struct reader *frame) {
    struct process *p = process_find(get_number(frame, 8));
    struct winsize size = get_terminal_size(frame);
    if (!frame->bad && p && p->tty && p->output[0].watch.fd >= 0)
        ioctl(p->output[0].watch.fd, TIOCSWINSZ, &size);
}

void process_release(struct reader *frame) {
    struct process *p = process_find(get_number(frame, 8));
    if (!frame->bad && p && p->phase == PHASE_EXITED)
        process_forget(p);
}
