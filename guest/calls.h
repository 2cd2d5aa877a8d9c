// Calls: what programs in the guest ask of the host. clients.c has the programs' sockets, calls.c the host's side.
#pragma once
#include "guestd.h"
#include "http.h"

struct call {
    struct call *next;
    struct watch client;
    struct bytes in;   // of the client, beyond this request
    struct bytes out;  // to the client, framed
    struct http http;
    enum {
        READING,   // a request
        ASKED,     // the host has it to answer
        ANSWERED,  // the answer has come whole; the client still takes it
        REFUSED,   // an error was answered; what else the client sends is thrown away
    } state;
    int64_t heard_ms;  // when the client last said something, or had its answer
    bool continued;
    uint64_t id, ordinal;
    struct slice lane;
    bool auto_lane, numbered_here;  // the client named neither; a lane alone, and hears the number
    bool opened;           // CALL_OPEN went out on this connection to the host
    uint64_t body_sent;    // of the request's, on this connection to the host
    bool head_received, chunked, no_body, last_chunk_sent;
    struct bytes answer;   // received, not yet framed for the client
    uint64_t received, taken, taken_told;  // offsets in the answer's body
    size_t framed;         // bytes of the answer's body in out
    uint64_t length_left;  // of the content-length that the host promised
    bool sized;
};

extern struct call *calls;  // all connections of programs, whatever they are at

size_t calls_bodies_size(void);       // of the requests of all, and of what is read of further ones
void call_begin(struct call *call);   // its request is whole: the host is to have it
void call_forget(struct call *call);  // with its connection

// clients.c
void client_step(struct call *call);   // write what there is for the program
void client_close(struct call *call);  // its socket, and what was read of it and is to be written to it
void put_string(struct bytes *b, const char *text);
const char *http_phrase(unsigned status);
