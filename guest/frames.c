#include "frames.h"

#include <string.h>

int frame_next(const struct bytes *in, uint8_t *type, struct reader *payload, size_t *size) {
    if (bytes_length(in) < 4)
        return 0;
    struct reader head = {bytes_head(in), in->data + in->end, false};
    size_t length = get_number(&head, 4);
    if (length < 1 || length > MAX_FRAME)
        return -1;
    if ((size_t)(head.end - head.at) < length)
        return 0;
    *type = *head.at;
    *payload = (struct reader){head.at + 1, head.at + length, false};
    *size = 4 + length;
    return 1;
}

size_t frame_begin(struct bytes *out, enum frame_type type) {
    put_u32(out, 0);
    put_u8(out, (uint8_t)type);
    return bytes_length(out) - 5;  // from the head, which stays where it is while the frame is made
}

void frame_end(struct bytes *out, size_t begun) {
    uint8_t *at = bytes_head(out) + begun;
    size_t length = bytes_length(out) - begun - 4;
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(length >> 8 * i);
}
