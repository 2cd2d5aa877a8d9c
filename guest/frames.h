// The channel's frames: docs/formats/channel.md.
#pragma once
#include "bytes.h"

enum {
    CHANNEL_VERSION = 1,
    MAX_FRAME = 1 << 20,
    CHUNK = 32 << 10,    // stream bytes in one frame
    WINDOW = 256 << 10,  // unacknowledged bytes of one stream
    TOOL_CHUNK = 128 << 10,
    TOOL_WINDOW = 512 << 10,
    HOST_CID = 2,
    HOST_PORT = 4751,
    HTTP_PORT = 4750,
};

enum frame_type {
    HELLO = 0x01, PROCESS, SYNCED, REPLY, OUTPUT, OUTPUT_END, STDIN_ACK, EXITED, CALL_OPEN, CALL_BODY, CALL_ACK, CALL_CANCEL,
    WELCOME = 0x41, CONFIGURE, EXEC, SIGNAL, RESIZE, STDIN, STDIN_END, OUTPUT_ACK, RELEASE, QUIESCE, THAW, WAKE, POWER_OFF,
    CALL_HEAD, CALL_DATA, CALL_END, CALL_ABORT,
    USAGE,
};

enum { PHASE_STARTING, PHASE_RUNNING, PHASE_EXITED };
enum { EXEC_TTY = 1, EXEC_STDIN = 2, EXEC_TOOL = 4 };
enum { REPLY_OK, REPLY_INVALID, REPLY_CONFLICT, REPLY_FAILED, REPLY_NOT_EXECUTABLE = 126, REPLY_NOT_FOUND = 127 };
enum { QUIESCED_FROZEN = 1, QUIESCED_SYNCED = 2, QUIESCED_DROPPED = 4 };
enum { WOKE_CLOCK = 1, WOKE_ENTROPY = 2, WOKE_HOSTNAME = 4, WOKE_MACHINE_ID = 8, WOKE_THAWED = 16 };

// Take one frame off in: 1 and its type and payload (valid until in changes), 0 if it is not whole yet, -1 if malformed.
// The frame stays in the queue: drop *size bytes once it is handled.
int frame_next(const struct bytes *in, uint8_t *type, struct reader *payload, size_t *size);

size_t frame_begin(struct bytes *out, enum frame_type type);  // then put the payload
void frame_end(struct bytes *out, size_t begun);
