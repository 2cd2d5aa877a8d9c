// The start of a process, the parent's side: its terminal or pipes, and the fork (spawn.c is the child's side).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guestd.h"
#include "process.h"

static int nonblocking(int fd) { return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static bool open_terminal(struct process *p, struct spawn *spawn, struct winsize *size) {
    int master = guestd.test ? open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK)
                             : root_open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK, 0);
    if (master < 0)
        return false;
    int unlock = 0, slave = -1;
    if (!ioctl(master, TIOCSPTLCK, &unlock))
        slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    int input = slave < 0 ? -1 : fcntl(master, F_DUPFD_CLOEXEC, 3);
    if (input < 0) {
        close(master);
        if (slave >= 0)
            close(slave);
        return false;
    }
    if (size->ws_row || size->ws_col)
        ioctl(master, TIOCSWINSZ, size);
    spawn->in = spawn->out = spawn->error = slave;
    output_open(&p->output[0], master);
    input_open(&p->input, input);
    p->output[1].ended = true;
    return true;
}

static bool open_pipes(struct process *p, struct spawn *spawn, bool with_input) {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, error[2] = {-1, -1};
    if ((with_input ? pipe2(in, O_CLOEXEC) : (in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) ||
        pipe2(out, O_CLOEXEC) || pipe2(error, O_CLOEXEC)) {
        for (int i = 0; i < 2; i++) {
            close(in[i]);
            close(out[i]);
        }
        return false;
    }
    spawn->in = in[0];
    spawn->out = out[1];
    spawn->error = error[1];
    nonblocking(out[0]);
    nonblocking(error[0]);
    output_open(&p->output[0], out[0]);
    output_open(&p->output[1], error[0]);
    p->output[0].bulk = p->input.bulk = spawn->tool;
    if (with_input) {
        nonblocking(in[1]);
        input_open(&p->input, in[1]);
    }
    return true;
}

// A child is born in the workload's cgroup: one that moves there makes the kernel wait for a grace period (RCU), which
// is longer than the fork and the exec of a small program together.
static pid_t fork_workload(void) {
    if (!guestd.cgroup)
        return fork();
    int folder = open(guestd.cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return -1;
    struct clone_args wish = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)folder};
    pid_t pid = (pid_t)syscall(SYS_clone3, &wish, sizeof wish);
    int error = errno;
    close(folder);
    errno = error;
    return pid;
}

static const char *start(struct process *p, struct spawn *spawn, unsigned flags, struct winsize *size) {
    int status[2];
    if (pipe2(status, O_CLOEXEC))
        return "pipe";
    nonblocking(status[0]);
    spawn->status_fd = status[1];
    watch_open(&p->status, status[0], EPOLLIN, process_status);
    const char *failed = NULL;
    if (spawn->tty ? !open_terminal(p, spawn, size) : !open_pipes(p, spawn, flags & EXEC_STDIN)) {
        failed = spawn->tty ? "terminal" : "pipe";
    } else {
        p->pid = spawn->tool ? fork() : fork_workload();  // file tools work on a frozen workload too
        if (!p->pid)
            spawn_child(spawn);
        if (p->pid < 0)
            failed = "fork";
        close(spawn->in);
        if (!spawn->tty) {
            close(spawn->out);
            close(spawn->error);
        }
    }
    close(status[1]);
    return failed;
}

static char **get_texts(struct reader *frame) {
    size_t count = get_number(frame, 4);
    if (frame->bad || count > (size_t)(frame->end - frame->at) / 4) {
        frame->bad = true;
        count = 0;
    }
    char **texts = allocate((count + 1) * sizeof *texts);
    for (size_t i = 0; i < count; i++)
        texts[i] = slice_string(get_text(frame));
    return texts;
}

static void free_texts(char **texts) {
    for (char **text = texts; *text; text++)
        free(*text);
    free(texts);
}

static void exec_checked(uint64_t request, uint64_t id, unsigned flags, struct winsize *size, struct spawn *spawn) {
    struct process *p = process_find(id);
    if (p && p->phase == PHASE_STARTING) {
        p->request = request;
        return;
    }
    if (p) {
        request_done(request, REPLY_OK, (uint32_t)p->pid, "%s", "");
        return;
    }
    if (!guestd.configured) {
        request_done(request, REPLY_CONFLICT, 0, "no image is mounted yet: configure comes first");
        return;
    }
    if (!spawn->argv[0]) {
        request_done(request, REPLY_INVALID, 0, "the command is empty");
        return;
    }
    p = process_add(id, spawn->tty);
    p->request = request;
    const char *failed = start(p, spawn, flags, size);
    if (failed) {
        request_done(request, REPLY_FAILED, 0, "%s: %s", failed, strerror(errno));
        process_forget(p);
    }
}

void process_exec(struct reader *frame) {
    uint64_t request = get_number(frame, 8), id = get_number(frame, 8);
    unsigned flags = (unsigned)get_number(frame, 1);
    struct winsize size = get_terminal_size(frame);
    struct spawn spawn = {.tty = flags & EXEC_TTY, .tool = flags & EXEC_TOOL};
    spawn.user = slice_string(get_text(frame));
    spawn.cwd = slice_string(get_text(frame));
    spawn.argv = get_texts(frame);
    spawn.env = get_texts(frame);
    struct reader none = {0}, *rest = frame->at == frame->end ? &none : frame;  // of a host from before there were these
    spawn.limits = get_texts(rest);
    spawn.groups = get_texts(rest);
    if (!frame->bad && request_begin(request))
        exec_checked(request, id, flags, &size, &spawn);
    free(spawn.user);
    free(spawn.cwd);
    free_texts(spawn.argv);
    free_texts(spawn.env);
    free_texts(spawn.limits);
    free_texts(spawn.groups);
}
