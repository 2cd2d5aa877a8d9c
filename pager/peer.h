// Firecracker at the other end of the pager's socket: it sends its memory's regions and the userfaultfd, and keeps the
// connection open as long as it lives. Who connects is not trusted.
#pragma once
#include <stdbool.h>

#include "regions.h"

void peer_accept(int listener);  // closes the listener
int peer_fd(void);               // -1 before
// Take what has arrived. True: the handshake is complete, `uffd` and `regions` are good. Ends the pager where it is not.
bool peer_read(uint32_t blocks, struct regions *regions, int *uffd);
bool peer_is_gone(int wait_ms);  // drops what it still says
