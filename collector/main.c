// The collector: what a capture left, into one dense file.
//
//     collector diff|full MEMORY TARGET [TEMPLATE_FD DIGEST]
//
// MEMORY is Firecracker's sparse memory file, TARGET the capture file to make. TEMPLATE_FD is open on the raw memory of
// the template that the machine stands on, and DIGEST are the 64 hexadecimal digits of its content: blocks that are the
// template's are only named. diff: of a hole in MEMORY nothing is said; full: it is zeros.
//
// It says {"bytes": N} and ends with status 0, or {"errno": N, "message": "..."} with status 1; then TARGET is not whole.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "report.h"
#include "scan.h"

static bool read_digest(const char *text, uint8_t digest[DIGEST]) {
    if (strlen(text) != 2 * DIGEST || strspn(text, "0123456789abcdef") != 2 * DIGEST)
        return false;
    for (size_t i = 0; i < DIGEST; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1]};
        digest[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return true;
}

int main(int argc, char **argv) {
    uint8_t digest[DIGEST] = {0};
    bool full = argc > 1 && !strcmp(argv[1], "full");
    if ((argc != 4 && argc != 6) || (!full && strcmp(argv[1], "diff")) || (argc == 6 && !read_digest(argv[5], digest))) {
        fprintf(stderr, "usage: collector diff|full MEMORY TARGET [TEMPLATE_FD DIGEST]\n");
        return 2;
    }
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail("opening the captured memory");
    struct memory memory = memory_map(fd, "mapping the captured memory"), template = {0};
    if (argc == 6) {
        template = memory_map(atoi(argv[4]), "mapping the template");
        if (template.size != memory.size) {
            errno = EINVAL;
            fail("the template has another size than the captured memory");
        }
    }
    struct runs runs = {0};
    scan(&memory, argc == 6 ? &template : NULL, full, &runs);
    say_written(output_write(argv[3], &runs, memory.data, (uint32_t)(memory.size / BLOCK), digest));
    free(runs.run);
    return 0;
}
