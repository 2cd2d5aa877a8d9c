#include "zstd.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

// As <zstd.h> declares them; stable since version 1.0 (findFrameCompressedSize: 1.4).
static void *(*create_context)(void);
static size_t (*decompress)(void *, void *, size_t, const void *, size_t);
static unsigned long long (*content_size)(const void *, size_t);
static size_t (*frame_size)(const void *, size_t);
static unsigned (*is_error)(size_t);

static bool find(void *library, const char *name, void *place) {
    void *found = dlsym(library, name);
    memcpy(place, &found, sizeof found);  // ISO C knows no way from an object pointer to a function pointer
    return found;
}

const char *zstd_open(void) {
    void *library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return dlerror();
    bool found = find(library, "ZSTD_createDCtx", &create_context) &&
                 find(library, "ZSTD_decompressDCtx", &decompress) &&
                 find(library, "ZSTD_getFrameContentSize", &content_size) &&
                 find(library, "ZSTD_findFrameCompressedSize", &frame_size) && find(library, "ZSTD_isError", &is_error);
    return found ? NULL : "libzstd.so.1 is older than 1.4";
}

void *zstd_context(void) { return create_context(); }

const char *zstd_decompress(void *context, uint8_t *content, size_t size, const uint8_t *frame, size_t length,
                            uint32_t checksum) {
    enum { MAGIC = 0xFD2FB528u, HAS_CHECKSUM = 4 };  // RFC 8878, 3.1.1
    uint32_t magic, own;
    if (length < 12)
        return "it is too short to be one";
    memcpy(&magic, frame, 4);
    memcpy(&own, frame + length - 4, 4);
    if (own != checksum)
        return "its checksum is not the seek table's";
    if (magic != MAGIC || !(frame[4] & HAS_CHECKSUM) || content_size(frame, length) != size ||
        frame_size(frame, length) != length)
        return "its header is not that of the frame in the seek table";
    size_t done = decompress(context, content, size, frame, length);
    if (is_error(done))
        return "it does not decompress: its bytes were changed";
    return done == size ? NULL : "it holds less than its header says";
}
