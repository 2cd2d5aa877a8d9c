/* PID 1 of a guest that can tell whether its memory is what it left: it counts aloud, and before each number it checks
 * 4 MiB of pseudo-random words, of which it changes a few each time. "tick N ok" or "tick N BROKEN".
 * The kernel's command line may say ticker_exit=N: reboot after N ticks (that ends Firecracker). */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512 << 10, CHANGED = 64 };
static uint64_t words[WORDS];

static uint64_t mixed(uint64_t x) {
    x ^= x >> 33; x *= 0xff51afd7ed558ccdULL; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}

int main(void) {
    long last = 0;
    char line[4096] = "";
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, "");
    int fd = open("/proc/cmdline", O_RDONLY);
    if (fd >= 0 && read(fd, line, sizeof line - 1) > 0 && strstr(line, "ticker_exit="))
        last = atol(strstr(line, "ticker_exit=") + 12);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < WORDS; i++) sum += words[i] = mixed(i);
    for (long tick = 1;; tick++) {
        uint64_t found = 0;
        for (uint64_t i = 0; i < WORDS; i++) found += words[i];
        printf("tick %ld %s\n", tick, found == sum ? "ok" : "BROKEN");
        fflush(stdout);
        if (last && tick >= last) reboot(RB_AUTOBOOT);
        for (int i = 0; i < CHANGED; i++) {
            uint64_t at = mixed(tick * CHANGED + i) % WORDS;
            sum -= words[at];
            sum += words[at] = mixed(words[at] + tick);
        }
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
}
