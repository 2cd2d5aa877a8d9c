#define _GNU_SOURCE
#include "frames.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "report.h"
#include "zstd.h"

enum { READ_AGAIN = 12, READ_AGAIN_US = 100000 };  // a shared folder's pages are looked after each second

static const struct map *map;
static int *files;
static uint8_t *template_data;
static size_t template_size;

static int open_file(const char *what, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail("snapshot-invalid", "", "%s %s cannot be opened: %s", what, path, strerror(errno));
    return fd;
}

void frames_open(const struct map *opened, const char *template) {
    map = opened;
    int fd = open_file("template", template);
    struct stat found;
    if (fstat(fd, &found) < 0 || (uint64_t)found.st_size != (uint64_t)map->blocks * PAGE)
        fail("snapshot-invalid", "", "template %s has %lld bytes, not %llu", template, (long long)found.st_size,
             (unsigned long long)map->blocks * PAGE);
    template_size = (size_t)found.st_size;
    template_data = mmap(NULL, template_size, PROT_READ, MAP_SHARED, fd, 0);
    if (template_data == MAP_FAILED)
        fail("machine-failed", "", "template %s cannot be mapped: %s", template, strerror(errno));
    close(fd);
    files = calloc(map->layers + 1, sizeof *files);
    if (!files)
        fail("machine-failed", "", "the pager finds no memory for its tables");
    for (uint32_t layer = 0; layer < map->layers; layer++)
        files[layer] = open_file("layer", map->layer[layer]);
}

const uint8_t *template_at(uint32_t block) { return template_data + (size_t)block * PAGE; }

void template_trim(void) { madvise(template_data, template_size, MADV_DONTNEED); }

size_t layer_read(uint32_t layer, uint64_t offset, uint8_t *bytes, size_t size) {
    size_t done = 0;
    while (done < size) {
        ssize_t count = pread(files[layer], bytes + done, size - done, (off_t)(offset + done));
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            fail("unavailable", "", "layer %s cannot be read: %s", map->layer[layer], strerror(errno));
        if (count == 0)
            break;
        done += (size_t)count;
    }
    return done;
}

static const char *decompress(struct lane *lane, uint32_t frame, const uint8_t *bytes, size_t got, uint8_t *content) {
    if (got < map->frame_compressed[frame])
        return "the file ends within it";
    return zstd_decompress(lane->zstd, content, frame_size(map, frame), bytes, map->frame_compressed[frame],
                           map->frame_checksum[frame]);
}

// Into the file of a partial layer the node writes while we read it. Where that file comes over a shared folder, our
// kernel may hold pages that it read before: neighbours of an earlier frame, or read ahead. They are zeros there.
static size_t read_anew(struct lane *lane, uint32_t frame) {
    uint32_t layer = map->frame_layer[frame];
    uint64_t begin = map->frame_offset[frame] / PAGE * PAGE;
    size_t size = map->frame_compressed[frame];
    posix_fadvise(files[layer], (off_t)begin, (off_t)((map->frame_offset[frame] + size - begin + PAGE - 1) / PAGE * PAGE),
                  POSIX_FADV_DONTNEED);
    return layer_read(layer, map->frame_offset[frame], buffer_room(&lane->frame, size), size);
}

void frame_decompress(struct lane *lane, uint32_t frame, const uint8_t *bytes, size_t got, uint8_t *content) {
    if (!lane->zstd)
        lane->zstd = zstd_context();
    if (!lane->zstd)
        fail("machine-failed", "", "the pager finds no memory to decompress");
    const char *wrong = decompress(lane, frame, bytes, got, content);
    for (int again = 0; wrong && map->partial[map->frame_layer[frame]] && again < READ_AGAIN; again++) {
        if (again)
            usleep(READ_AGAIN_US);
        got = read_anew(lane, frame);
        wrong = decompress(lane, frame, buffer_room(&lane->frame, map->frame_compressed[frame]), got, content);
    }
    if (wrong)
        fail_frame("snapshot-invalid", "The layer was damaged after the restore began. Restore an older snapshot.",
                   map->layer[map->frame_layer[frame]], map->frame_number[frame], wrong);
}

const uint8_t *frame_content(struct lane *lane, uint32_t frame) {
    size_t size = map->frame_compressed[frame];
    uint8_t *bytes = buffer_room(&lane->frame, size), *content = buffer_room(&lane->content, frame_size(map, frame));
    size_t got = layer_read(map->frame_layer[frame], map->frame_offset[frame], bytes, size);
    frame_decompress(lane, frame, bytes, got, content);
    return content;
}
