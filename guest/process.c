// Processes of the host's choosing. Output stays here until it is acknowledged, then the next is read (so a slow host
// slows the process); input has offsets. So each byte arrives once, over any number of connections and restores.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "guestd.h"

struct stream {
    struct watch watch;
    struct bytes kept;  // [base, base + length): not acknowledged yet
    uint64_t base, sent;
    bool ended, end_sent;
    bool drain;  // the process has exited: what is there now is all that counts
};

struct process {
    struct process *next;
    uint64_t id, request;
    pid_t pid;
    uint8_t phase;
    bool tty, exit_due, input_ack_due;
    uint32_t exit_status;
    struct stream output[2];
    struct watch status;  // the child reports here that it cannot start; its end: it has
    struct watch input;
    struct bytes input_kept;  // the last bytes below input_received
    uint64_t input_received;
    bool input_ended;
};

static struct process *processes;

static struct process *find(uint64_t id) {
    struct process *p = processes;
    while (p && p->id != id)
        p = p->next;
    return p;
}

static void forget(struct process *p) {
    struct process **link = &processes;
    while (*link != p)
        link = &(*link)->next;
    *link = p->next;
    for (int i = 0; i < 2; i++) {
        watch_close(&p->output[i].watch);
        bytes_free(&p->output[i].kept);
    }
    watch_close(&p->status);
    watch_close(&p->input);
    bytes_free(&p->input_kept);
    free(p);
}

// Output ------------------------------------------------------------------------------------------------------------

static void stream_end(struct stream *s) {
    watch_close(&s->watch);
    s->ended = true;
}

static void stream_read(struct stream *s) {
    while (!s->ended) {
        size_t room = WINDOW - bytes_length(&s->kept);
        if (!room) {
            watch_for(&s->watch, 0);
            return;
        }
        size_t most = room < CHUNK ? room : CHUNK;
        ssize_t count = read(s->watch.fd, bytes_reserve(&s->kept, most), most);
        if (count > 0) {
            s->kept.end += (size_t)count;
            if (s->drain)
                continue;
            break;
        }
        if (!bytes_length(&s->kept))
            bytes_free(&s->kept);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN && !s->drain)
            break;
        stream_end(s);  // the end of a pipe, EIO: the last holder of a terminal is gone
        return;
    }
    watch_for(&s->watch, EPOLLIN);
}

static void output_ready(struct watch *watch, uint32_t events) {
    (void)events;
    stream_read(OWNER(watch, struct stream, watch));
}

static bool stream_produce(struct process *p, int number, struct bytes *out) {
    struct stream *s = &p->output[number];
    uint64_t end = s->base + bytes_length(&s->kept);
    if (s->sent < end) {
        size_t size = end - s->sent < CHUNK ? end - s->sent : CHUNK;
        size_t begun = frame_begin(out, OUTPUT);
        put_u64(out, p->id);
        put_u8(out, (uint8_t)(number + 1));
        put_u64(out, s->sent);
        bytes_append(out, bytes_head(&s->kept) + (s->sent - s->base), size);
        frame_end(out, begun);
        s->sent += size;
        return true;
    }
    if (s->ended && !s->end_sent && p->phase != PHASE_STARTING) {
        size_t begun = frame_begin(out, OUTPUT_END);
        put_u64(out, p->id);
        put_u8(out, (uint8_t)(number + 1));
        put_u64(out, end);
        frame_end(out, begun);
        s->end_sent = true;
        return true;
    }
    return false;
}

static bool process_produce(struct process *p, struct bytes *out) {
    if (p->input_ack_due) {
        size_t begun = frame_begin(out, STDIN_ACK);
        put_u64(out, p->id);
        put_u64(out, p->input_received);
        put_u64(out, p->input_received - bytes_length(&p->input_kept) + WINDOW);
        frame_end(out, begun);
        p->input_ack_due = false;
    }
    bool produced = stream_produce(p, 0, out);
    produced |= stream_produce(p, 1, out);
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
        for (int i = 0; i < 2; i++) {
            p->output[i].sent = p->output[i].base;
            p->output[i].end_sent = false;
        }
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
        put_u64(out, p->input_received);
        put_u64(out, p->input_received - bytes_length(&p->input_kept) + WINDOW);
        p->input_ack_due = false;  // this says it; what is read before WELCOME comes is told after it
        for (int i = 0; i < 2; i++) {
            put_u64(out, p->output[i].base);
            put_u64(out, p->output[i].base + bytes_length(&p->output[i].kept));
            put_u8(out, p->output[i].ended);
        }
        frame_end(out, begun);
    }
}

void process_output_ack(struct reader *frame) {
    struct process *p = find(get_number(frame, 8));
    uint64_t number = get_number(frame, 1);
    uint64_t offset = get_number(frame, 8);
    if (frame->bad || !p)
        return;
    if (number < 1 || number > 2) {
        frame->bad = true;
        return;
    }
    struct stream *s = &p->output[number - 1];
    uint64_t length = bytes_length(&s->kept);
    if (offset <= s->base)
        return;
    if (offset > s->base + length)
        offset = s->base + length;  // the host remembers a future that a restore took back
    bytes_drop(&s->kept, offset - s->base);
    s->base = offset;
    if (s->sent < offset)
        s->sent = offset;
    if (!s->ended && s->watch.fd >= 0)
        stream_read(s);
}

// Input -------------------------------------------------------------------------------------------------------------

static void input_write(struct process *p) {
    while (bytes_length(&p->input_kept) && p->input.fd >= 0) {
        ssize_t count = write(p->input.fd, bytes_head(&p->input_kept), bytes_length(&p->input_kept));
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN) {
            watch_for(&p->input, EPOLLOUT);
            return;
        }
        if (count < 0) {
            watch_close(&p->input);  // nobody reads: the rest is thrown away, as a broken pipe does
            break;
        }
        bytes_drop(&p->input_kept, (size_t)count);
        p->input_ack_due = true;
    }
    if (p->input.fd < 0 && bytes_length(&p->input_kept)) {
        bytes_free(&p->input_kept);
        p->input_ack_due = true;
    }
    if (p->input_ended)
        watch_close(&p->input);
    else
        watch_for(&p->input, 0);
}

static void input_ready(struct watch *watch, uint32_t events) {
    struct process *p = OWNER(watch, struct process, input);
    if (events & EPOLLERR && !p->tty)
        watch_close(watch);
    input_write(p);
}

void process_stdin(struct reader *frame) {
    struct process *p = find(get_number(frame, 8));
    uint64_t offset = get_number(frame, 8);
    struct slice data = get_rest(frame);
    if (frame->bad || !p)
        return;
    if (offset > p->input_received) {
        frame->bad = true;  // a hole: what came between is lost
        return;
    }
    uint64_t known = p->input_received - offset;
    if (p->input_ended || known >= data.size)
        return;
    bytes_append(&p->input_kept, data.data + known, data.size - known);
    p->input_received += data.size - known;
    p->input_ack_due = true;
    if (p->phase != PHASE_STARTING)
        input_write(p);
}

void process_stdin_end(struct reader *frame) {
    struct process *p = find(get_number(frame, 8));
    uint64_t offset = get_number(frame, 8);
    if (frame->bad || !p || p->input_ended)
        return;
    if (offset != p->input_received) {
        frame->bad = true;
        return;
    }
    struct termios terminal;
    if (p->tty && p->input.fd >= 0 && !tcgetattr(p->input.fd, &terminal))
        bytes_append(&p->input_kept, &terminal.c_cc[VEOF], 1);  // what a person would type
    p->input_ended = true;
    if (p->phase != PHASE_STARTING)
        input_write(p);
}

// Life --------------------------------------------------------------------------------------------------------------

static void set_exited(struct process *p) {
    p->phase = PHASE_EXITED;
    p->exit_due = true;
    for (int i = 0; i < 2; i++) {
        p->output[i].drain = true;
        if (!p->output[i].ended && p->output[i].watch.fd >= 0)
            stream_read(&p->output[i]);
    }
    watch_close(&p->input);
    input_write(p);
}

static void status_ready(struct watch *watch, uint32_t events) {
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
    input_write(p);
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
            status_ready(&p->status, EPOLLIN);
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
    struct process *p = find(get_number(frame, 8));
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

static struct winsize get_size(struct reader *frame) {
    struct winsize size = {.ws_row = (unsigned short)get_number(frame, 2)};
    size.ws_col = (unsigned short)get_number(frame, 2);
    return size;
}

void process_resize(struct reader *frame) {
    struct process *p = find(get_number(frame, 8));
    struct winsize size = get_size(frame);
    if (!frame->bad && p && p->tty && p->output[0].watch.fd >= 0)
        ioctl(p->output[0].watch.fd, TIOCSWINSZ, &size);
}

void process_release(struct reader *frame) {
    struct process *p = find(get_number(frame, 8));
    if (!frame->bad && p && p->phase == PHASE_EXITED)
        forget(p);
}

// Start -------------------------------------------------------------------------------------------------------------

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
    watch_open(&p->output[0].watch, master, EPOLLIN, output_ready);
    watch_open(&p->input, input, 0, input_ready);
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
    watch_open(&p->output[0].watch, out[0], EPOLLIN, output_ready);
    watch_open(&p->output[1].watch, error[0], EPOLLIN, output_ready);
    if (with_input) {
        nonblocking(in[1]);
        watch_open(&p->input, in[1], 0, input_ready);
    }
    return true;
}

static const char *start(struct process *p, struct spawn *spawn, unsigned flags, struct winsize *size) {
    int status[2];
    if (pipe2(status, O_CLOEXEC))
        return "pipe";
    nonblocking(status[0]);
    spawn->status_fd = status[1];
    watch_open(&p->status, status[0], EPOLLIN, status_ready);
    const char *failed = NULL;
    if (spawn->tty ? !open_terminal(p, spawn, size) : !open_pipes(p, spawn, flags & EXEC_STDIN)) {
        failed = spawn->tty ? "terminal" : "pipe";
    } else {
        spawn->cgroup_fd = -1;
        char path[256];
        snprintf(path, sizeof path, "%s/cgroup.procs", guestd.cgroup ? guestd.cgroup : "");
        if (guestd.cgroup && !spawn->tool)  // file tools work on a frozen workload too
            spawn->cgroup_fd = open(path, O_WRONLY | O_CLOEXEC);
        p->pid = fork();
        if (!p->pid)
            spawn_child(spawn);
        if (p->pid < 0)
            failed = "fork";
        if (spawn->cgroup_fd >= 0)
            close(spawn->cgroup_fd);
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
    struct process *p = find(id);
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
    p = allocate(sizeof *p);
    p->id = id;
    p->request = request;
    p->tty = spawn->tty;
    p->output[0].watch.fd = p->output[1].watch.fd = p->status.fd = p->input.fd = -1;
    p->next = processes;
    processes = p;
    const char *failed = start(p, spawn, flags, size);
    if (failed) {
        request_done(request, REPLY_FAILED, 0, "%s: %s", failed, strerror(errno));
        forget(p);
    }
}

void process_exec(struct reader *frame) {
    uint64_t request = get_number(frame, 8), id = get_number(frame, 8);
    unsigned flags = (unsigned)get_number(frame, 1);
    struct winsize size = get_size(frame);
    struct spawn spawn = {.tty = flags & EXEC_TTY, .tool = flags & EXEC_TOOL};
    spawn.user = slice_string(get_text(frame));
    spawn.cwd = slice_string(get_text(frame));
    spawn.argv = get_texts(frame);
    spawn.env = get_texts(frame);
    if (!frame->bad && request_begin(request))
        exec_checked(request, id, flags, &size, &spawn);
    free(spawn.user);
    free(spawn.cwd);
    free_texts(spawn.argv);
    free_texts(spawn.env);
}
