#define _GNU_SOURCE
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "crc32.h"
#include "crew.h"
#include "report.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "what is written is as it is in memory");
_Static_assert(sizeof(struct run) == 12, "runs are written as they are in memory");

enum { VERSION = 1, FUSE_MAGIC = 0x65735546 };
enum { PIECES = 1024, BYTES_AT_ONCE = 16 << 20 };  // of one call: IOV_MAX

struct header {
    char magic[4];
    uint16_t version, block_shift;
    uint32_t blocks, runs, data_blocks, data_checksum, checksum, unused;
    uint8_t digest[DIGEST];
};
_Static_assert(sizeof(struct header) == 64, "the header is written as it is in memory");

struct output {
    int fd;
    uint64_t at;
    struct iovec piece[PIECES];
    int pieces;
    size_t waiting;  // bytes of the pieces
};

// Through FUSE (the shared folder of an emulated host) pages then go out as they are, many at a time and none copied.
// Elsewhere the page cache is faster than a disk.
static void go_direct(int fd) {
    struct statfs found;
    if (fstatfs(fd, &found) == 0 && found.f_type == FUSE_MAGIC)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_DIRECT);  // refused: then not
}

static void flush(struct output *out) {
    struct iovec *piece = out->piece;
    int left = out->pieces;
    while (left) {
        ssize_t count = pwritev(out->fd, piece, left, (off_t)out->at);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EINVAL && fcntl(out->fd, F_GETFL) & O_DIRECT) {
            fcntl(out->fd, F_SETFL, fcntl(out->fd, F_GETFL) & ~O_DIRECT);
            continue;
        }
        if (count <= 0) {
            if (count == 0)
                errno = ENOSPC;
            fail("writing the capture");
        }
        out->at += (uint64_t)count;
        for (; left && (size_t)count >= piece->iov_len; piece++, left--)
            count -= (ssize_t)piece->iov_len;
        if (left) {
            piece->iov_base = (uint8_t *)piece->iov_base + count;
            piece->iov_len -= (size_t)count;
        }
    }
    out->pieces = 0;
    out->waiting = 0;
}

static void put(struct output *out, const uint8_t *data, size_t size) {
    while (size) {
        size_t part = size < BYTES_AT_ONCE ? size : BYTES_AT_ONCE;
        if (out->pieces == PIECES || out->waiting + part > BYTES_AT_ONCE)
            flush(out);
        out->piece[out->pieces++] = (struct iovec){(void *)(uintptr_t)data, part};
        out->waiting += part;
        data += part;
        size -= part;
    }
}

struct task {
    struct output *out;
    const struct runs *runs;
    const uint8_t *memory;
    uint32_t checksum;
};

// The two halves of the work on the data, which a crew does at the same time: 0 its checksum, 1 writing it.
static void do_half(void *context, size_t half) {
    struct task *task = context;
    for (size_t i = 0; i < task->runs->count; i++) {
        const struct run *run = &task->runs->run[i];
        if (run->source != SOURCE_DATA)
            continue;
        const uint8_t *data = task->memory + (size_t)run->first * BLOCK;
        if (half)
            put(task->out, data, (size_t)run->length * BLOCK);
        else
            task->checksum = crc32_of(task->checksum, data, (size_t)run->length * BLOCK);
    }
    if (half)
        flush(task->out);
}

uint64_t output_write(const char *path, const struct runs *runs, const uint8_t *memory, uint32_t blocks,
                      const uint8_t digest[DIGEST]) {
    size_t runs_size = runs->count * sizeof *runs->run;
    size_t head_size = (sizeof(struct header) + runs_size + BLOCK - 1) / BLOCK * BLOCK;
    uint8_t *head = aligned_alloc(BLOCK, head_size);
    static struct output out;
    // never onto a file that is there: it could be the memory of a running machine
    out.fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (!head || out.fd < 0)
        fail("making the file of the capture");
    go_direct(out.fd);
    out.at = head_size;
    struct task task = {&out, runs, memory, 0};
    crew_do(2, do_half, &task);
    uint64_t size = out.at;
    struct header header = {
        .magic = {'P', 'D', 'C', 'F'}, .version = VERSION, .block_shift = 12, .blocks = blocks,
        .runs = (uint32_t)runs->count, .data_blocks = (uint32_t)runs->data_blocks, .data_checksum = task.checksum,
    };
    memcpy(header.digest, digest, DIGEST);
    memset(head, 0, head_size);
    memcpy(head, &header, sizeof header);
    if (runs_size)
        memcpy(head + sizeof header, runs->run, runs_size);
    header.checksum = crc32_of(0, head, head_size);
    memcpy(head, &header, sizeof header);
    out.at = 0;  // the head last: without it nobody takes the file for whole
    put(&out, head, head_size);
    flush(&out);
    if (close(out.fd) < 0)
        fail("closing the file of the capture");
    free(head);
    return size;
}
