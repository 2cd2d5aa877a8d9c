#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "map.h"
#include "report.h"

enum { TEXT_MAX = 1 << 16, DESCRIPTORS_MAX = 8, READS_MAX = 16 };

static int connection = -1, received = -1;
static char text[TEXT_MAX];
static size_t length;

void peer_accept(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;  // it went away again
    connection = fd;
    close(listener);
}

int peer_fd(void) { return connection; }

static _Noreturn void refuse(const char *reason) { fail("machine-failed", "", "%s", reason); }

// Keep the one descriptor that came beside the bytes.
static void take_descriptors(struct msghdr *message) {
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (received >= 0)
                refuse("Firecracker sent more than one descriptor to the pager");
            received = fd;
        }
    }
    if (message->msg_flags & MSG_CTRUNC)
        refuse("Firecracker sent more than one descriptor to the pager");
}

// Waking who waits at an address is nothing that any other descriptor does; there need not be anyone.
static bool is_userfaultfd(int fd, uint64_t address) {
    struct uffdio_range range = {address, PAGE};
    return ioctl(fd, UFFDIO_WAKE, &range) == 0;
}

bool peer_read(uint32_t blocks, struct regions *regions, int *uffd) {
    union {
        char bytes[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {text + length, sizeof text - length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    ssize_t size = recvmsg(connection, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (size <= 0)
        refuse("Firecracker's handshake with the pager broke off");
    take_descriptors(&message);
    length += (size_t)size;
    char why[256];
    bool layout;
    enum json_state state = regions_parse(regions, text, length, blocks, &layout, why, sizeof why);
    if (state == JSON_SHORT && length < sizeof text)
        return false;
    if (state == JSON_SHORT)
        refuse("Firecracker's handshake with the pager does not read: it does not end");
    if (state == JSON_BAD)
        fail(layout ? "snapshot-invalid" : "machine-failed", "", "%s", why);
    if (received < 0)
        refuse("Firecracker sent no userfaultfd to the pager");
    if (!is_userfaultfd(received, regions->region[0].address))
        refuse("Firecracker sent a descriptor to the pager that is no userfaultfd");
    int flags = fcntl(received, F_GETFL);
    fcntl(received, F_SETFL, flags | O_NONBLOCK);  // poll(2) works only so
    *uffd = received;
    return true;
}

bool peer_is_gone(int wait_ms) {
    struct pollfd waiting = {.fd = connection, .events = POLLIN | POLLRDHUP};
    for (int reads = 0; reads < READS_MAX && poll(&waiting, 1, wait_ms) > 0; reads++) {
        char dropped[4096];
        ssize_t size = recv(connection, dropped, sizeof dropped, MSG_DONTWAIT);
        if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR))
            return true;
        wait_ms = 0;
    }
    return false;
}
