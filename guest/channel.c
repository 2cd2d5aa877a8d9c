// The connection to the host: dialled again at once whenever it breaks, which every snapshot and restore does.
// A connection carries nothing of the one before: HELLO and PROCESS frames say what is here, then all that the host
// has not acknowledged is sent again.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/vm_sockets.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "guestd.h"

enum {
    QUEUE = 256 << 10,         // frames are made only while fewer bytes than this wait to be written
    READ = 64 << 10,
    DIAL_LIMIT_MS = 2000,      // a connect that a snapshot swallowed never ends by itself
    DIAL_AGAIN_FIRST_MS = 2,
    DIAL_AGAIN_LAST_MS = 200,
};

static struct {
    struct watch socket;
    enum { DOWN, DIALLING, GREETING, UP } state;
    struct bytes in, out;
    struct timer again;
    int64_t again_ms;
    uint64_t connections;
} channel = {.socket.fd = -1, .again_ms = DIAL_AGAIN_FIRST_MS};

static void dial(struct timer *timer);

bool channel_is_up(void) { return channel.state == UP; }
bool channel_is_drained(void) { return channel.state < GREETING || !bytes_length(&channel.out); }
struct bytes *channel_out(void) { return &channel.out; }

static void hang_up(void) {
    bool was_up = channel.state == UP;
    watch_close(&channel.socket);
    bytes_free(&channel.in);
    bytes_free(&channel.out);
    channel.state = DOWN;
    if (was_up)
        channel.again_ms = DIAL_AGAIN_FIRST_MS;
    timer_start(&channel.again, was_up ? 0 : channel.again_ms, dial);
    if (!was_up && channel.again_ms < DIAL_AGAIN_LAST_MS)
        channel.again_ms *= 2;
}

static void dial_limit(struct timer *timer) {
    (void)timer;
    hang_up();
}

static void greet(void) {
    timer_stop(&channel.again);
    channel.state = GREETING;
    channel.connections++;
    size_t begun = frame_begin(&channel.out, HELLO);
    put_u16(&channel.out, CHANNEL_VERSION);
    put_u8(&channel.out, guestd.configured);
    put_u8(&channel.out, guestd.frozen);
    put_text(&channel.out, guestd.boot_id, sizeof guestd.boot_id);
    put_u64(&channel.out, channel.connections);
    put_u64(&channel.out, calls_auto_ordinal());
    put_u32(&channel.out, calls_count());
    frame_end(&channel.out, begun);
    processes_say_hello(&channel.out);
    frame_end(&channel.out, frame_begin(&channel.out, SYNCED));
}

// False: the frame is malformed, or this side does not know it.
static bool handle(uint8_t type, struct reader *frame) {
    if (channel.state == GREETING) {
        if (type != WELCOME || get_number(frame, 2) != CHANNEL_VERSION)
            return false;
        channel.state = UP;
        processes_rewind();
        calls_rewind();
        return reader_done(frame);
    }
    switch (type) {
    case CONFIGURE: system_configure(frame); break;
    case QUIESCE: system_quiesce(frame); break;
    case THAW: system_thaw(frame); break;
    case WAKE: system_wake(frame); break;
    case POWER_OFF: system_power_off(frame); break;
    case USAGE: usage_ask(frame); break;
    case EXEC: process_exec(frame); break;
    case SIGNAL: process_signal(frame); break;
    case RESIZE: process_resize(frame); break;
    case STDIN: process_stdin(frame); break;
    case STDIN_END: process_stdin_end(frame); break;
    case OUTPUT_ACK: process_output_ack(frame); break;
    case RELEASE: process_release(frame); break;
    case CALL_HEAD: return calls_head(frame);
    case CALL_DATA: return calls_data(frame);
    case CALL_END: return calls_end(frame);
    case CALL_ABORT: return calls_abort(frame);
    default: return false;
    }
    return !frame->bad;
}

static bool receive(void) {
    ssize_t count = read(channel.socket.fd, bytes_reserve(&channel.in, READ), READ);
    if (count <= 0)
        return count < 0 && (errno == EAGAIN || errno == EINTR);
    channel.in.end += (size_t)count;
    for (;;) {
        uint8_t type;
        struct reader frame;
        size_t size;
        int found = frame_next(&channel.in, &type, &frame, &size);
        if (found == 0)
            return true;
        if (found < 0 || !handle(type, &frame)) {
            complain("the host sent a frame that is not understood: dialling again");
            return false;
        }
        bytes_drop(&channel.in, size);
    }
}

static void socket_ready(struct watch *watch, uint32_t events) {
    if (channel.state == DIALLING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(watch->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error || events & (EPOLLERR | EPOLLHUP)) {
            hang_up();
            return;
        }
        greet();
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP) && !receive())
        hang_up();
}

void channel_flush(void) {
    if (channel.state < GREETING)
        return;
    for (;;) {
        bool produced = true;
        while (produced && channel.state == UP && bytes_length(&channel.out) < QUEUE) {
            produced = processes_produce(&channel.out);
            produced |= calls_produce(&channel.out);
        }
        if (!bytes_length(&channel.out))
            break;
        ssize_t count = send(channel.socket.fd, bytes_head(&channel.out), bytes_length(&channel.out), MSG_NOSIGNAL);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                hang_up();
            else
                watch_for(&channel.socket, EPOLLIN | EPOLLOUT);
            return;
        }
        bytes_drop(&channel.out, (size_t)count);
    }
    watch_for(&channel.socket, EPOLLIN);
}

static int connect_socket(int fd) {
    if (guestd.test_socket) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%s", guestd.test_socket);
        return connect(fd, (struct sockaddr *)&address, sizeof address);
    }
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = HOST_CID, .svm_port = HOST_PORT};
    return connect(fd, (struct sockaddr *)&address, sizeof address);
}

static void dial(struct timer *timer) {
    (void)timer;
    int fd = socket(guestd.test_socket ? AF_UNIX : AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        hang_up();
        return;
    }
    int failed = connect_socket(fd);
    if (failed && errno != EINPROGRESS) {
        close(fd);
        hang_up();
        return;
    }
    channel.state = DIALLING;
    watch_open(&channel.socket, fd, EPOLLIN | EPOLLOUT, socket_ready);
    if (!failed)
        greet();
    else
        timer_start(&channel.again, DIAL_LIMIT_MS, dial_limit);
}

void channel_open(void) { dial(NULL); }
