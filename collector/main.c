// The collector: what a capture left, into one dense file.
//
//     collector REPORT_FD [TEMPLATE_FD DIGEST]
//
// TEMPLATE_FD is open on the raw memory of the template that the machine stands on, and DIGEST are the 64 hexadecimal
// digits of its content: blocks that are the template's are only named.
//
// It is started while Firecracker still writes, and waits on REPORT_FD, a stream socket, for one order, of three strings
// that each end with a NUL: "diff" or "full", the path of Firecracker's sparse memory file, and that of the capture file
// to make. diff: of a hole in the memory nothing is said; full: it is zeros.
//
// It says {"bytes": N} when the file is whole, or {"errno": N, "message": "..."}; then the file is not. Where no order
// comes, as the keeper went away, it ends.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crc32.h"
#include "crew.h"
#include "output.h"
#include "report.h"
#include "scan.h"

enum { ORDER_MAX = 16 << 10 };

static bool read_digest(const char *text, uint8_t digest[DIGEST]) {
    if (strlen(text) != 2 * DIGEST || strspn(text, "0123456789abcdef") != 2 * DIGEST)
        return false;
    for (size_t i = 0; i < DIGEST; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1]};
        digest[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return true;
}

// The three strings, in `order`; false: the keeper has gone.
static bool read_order(int fd, char order[ORDER_MAX], const char *words[3]) {
    size_t length = 0;
    int ended = 0;
    words[0] = order;
    while (ended < 3) {
        ssize_t count = length == ORDER_MAX ? 0 : read(fd, order + length, ORDER_MAX - length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return false;
        for (size_t end = length + (size_t)count; length < end; length++)
            if (!order[length] && ended < 3 && ++ended < 3)
                words[ended] = order + length + 1;
    }
    return true;
}

int main(int argc, char **argv) {
    static char order[ORDER_MAX];
    const char *words[3];
    uint8_t digest[DIGEST] = {0};
    if ((argc != 2 && argc != 4) || (argc == 4 && !read_digest(argv[3], digest))) {
        fprintf(stderr, "usage: collector REPORT_FD [TEMPLATE_FD DIGEST]\n");
        return 2;
    }
    int keeper = atoi(argv[1]);
    report_to(keeper);
    struct memory template = {0};
    if (argc == 4) {
        template = memory_map(atoi(argv[2]), "mapping the template");
        memory_prepare(&template);
    }
    crc32_prepare();
    crew_start();
    if (!read_order(keeper, order, words))
        return 0;
    // who made it owns the folder and may be hostile: it can be a link, or a pipe that nobody writes to
    int fd = open(words[1], O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        fail("opening the captured memory");
    struct memory memory = memory_map(fd, "mapping the captured memory");
    if (argc == 4 && template.size != memory.size) {
        errno = EINVAL;
        fail("the template has another size than the captured memory");
    }
    struct runs runs = {0};
    scan(&memory, argc == 4 ? &template : NULL, !strcmp(words[0], "full"), &runs);
    say_written(output_write(words[2], &runs, memory.data, (uint32_t)(memory.size / BLOCK), digest));
    free(runs.run);
    free(template.extent);
    return 0;
}
