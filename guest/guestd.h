// guestd is PID 1 of every microVM. One thread and one epoll loop; each .c file is one duty:
//   main.c      start, signals, the loop            mounts.c   modules, boot and image mounts, files in the image
//   channel.c   the connection to the host          system.c   freeze, quiesce, wake, power off
//   requests.c  requests are done once              process.c  the host's processes: their life
//   clients.c   the HTTP door: programs' sockets    streams.c  their output and input
//   calls.c     their calls at the host             launch.c   their start: terminal or pipes, fork
//   http.c      parser of HTTP/1.1 requests         spawn.c    the child's side: user, cwd, PATH, exec
//   lanes.c     lanes that programs name            usage.c    what the workload uses
//   network.c   interfaces, name files              memory.c   who has the machine's memory
//   files.c pack.c unpack.c tree.c top.c   file tools, run as children
//   attach.c    mounts that a sandbox wishes for, volumes
//   fit.c       how else a sandbox wishes to find its machine
//   client.c words.c help.c waits.c form.c step.c   perdure-guest: the door's calls for shells
//   ask.c say.c door.c json.c   what these ask, and tell
//   frames.c bytes.c loop.c   the pieces below all that
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bytes.h"
#include "frames.h"
#include "loop.h"

struct guestd {
    bool test;                 // on a developer's machine: no mounts, no chroot, no clock, no power off
    const char *test_socket;   // dialled instead of vsock
    const char *cgroup;        // the workload's cgroup v2 folder, NULL: none (test)
    int root_fd;               // the root that workloads see
    bool configured, frozen;
    uint8_t boot_id[16];
};
extern struct guestd guestd;

void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));  // to the console

// channel.c: `out` is the queue to the host; put frames there only while channel_is_up().
void channel_open(void);
void channel_flush(void);  // fill the queue from processes and calls, write what the host takes
bool channel_is_up(void);
bool channel_is_drained(void);  // nothing is left to write (or there is no host)
struct bytes *channel_out(void);

// requests.c: each request of the host is done once, and answered again when it is asked again.
bool request_begin(uint64_t request);  // false: it was seen before, nothing to do
void request_answer(uint64_t request, const char *message);  // of one that may be done again: it is not remembered
void request_done(uint64_t request, unsigned code, uint32_t value, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

// process.c
void processes_say_hello(struct bytes *out);
void processes_rewind(void);                 // a new connection: everything not acknowledged is sent again
bool processes_produce(struct bytes *out);   // at most one frame per stream; false: nothing to send
void processes_reap(void);
void processes_kill(void);
void process_signal(struct reader *frame);  // each takes its frame and reports a malformed one in frame->bad
void process_resize(struct reader *frame);
void process_stdin(struct reader *frame);
void process_stdin_end(struct reader *frame);
void process_output_ack(struct reader *frame);
void process_release(struct reader *frame);

// launch.c
void process_exec(struct reader *frame);

// spawn.c
struct spawn {
    bool tty, tool;
    char *user, *cwd;
    char **argv, **env;  // NULL-terminated, as these:
    char **limits;       // what it may (spawn.c)
    char **groups;       // names or numbers, besides the user's own
    int in, out, error;  // with a tty, all three are its slave
    int status_fd;       // a failure is told here: u16 reply code, text; closed by exec
};
_Noreturn void spawn_child(const struct spawn *spawn);
void close_from(int fd);  // that descriptor and all above it

// files.c
_Noreturn void files_tool(char **argv);  // exit status: 0 or an errno
_Noreturn void tool_failed(const char *what, const char *name);  // with errno
void make_parents(char *path);                                   // of a tool's file

// tree.c, top.c: likewise
_Noreturn void tree_tool(const char *mode, const char *folder, const char *lower);
_Noreturn void top_tool(void);

// fit.c
bool fit_tool(char **argv, int count);  // false: none of these tools

// attach.c
_Noreturn void attach_tool(char **argv);  // of eight words
void volumes_freeze(void);                // may take long: in a child
void volumes_freeze_by(pid_t process);    // that one was told to
void volumes_thaw(bool is_alive);         // it has done so, and was not killed within it

// calls.c
void calls_open(int port);  // prints the port on stdout in a test
void calls_rewind(void);
bool calls_produce(struct bytes *out);
uint32_t calls_count(void);
uint64_t calls_auto_ordinal(void);
bool calls_head(struct reader *frame);  // false: malformed, or at an offset that cannot be
bool calls_data(struct reader *frame);
bool calls_end(struct reader *frame);
bool calls_abort(struct reader *frame);

// lanes.c
bool lane_take(struct slice name, uint64_t *ordinal);  // the next of the lane, from 0 on; false: there are too many lanes

// client.c: perdure-guest, which is this program under another name
int client_main(int argc, char **argv);

// mounts.c
#define TOOLS "/run/perdure"  // in the workload's root: the folder that has perdure-guest
void mounts_boot(void);
const char *mounts_image(void);  // NULL, or what failed
bool drives_ready(void);
bool drive_is_real(const char *path);  // no placeholder of a template
int root_open(const char *path, int flags, mode_t mode);  // a path inside the workload's root, whatever links it holds
// Over whatever the file holds; or over `only_over` at its beginning, or not at all.
void root_write(const char *path, const char *text, const char *only_over);
void identity_write(const char *hostname, const char *machine_id);

// network.c
void network_boot(void);
void network_files(const char *hostname);    // for an image that was just mounted
void network_renamed(const char *hostname);  // before the host name changes

// memory.c
size_t memory_report(char *out, size_t size);  // its length; 0: nothing is known
long memory_cached_kib(void);                  // what the caches of files hold
long memory_free_kib(void);                    // far cheaper than both

// usage.c
void usage_ask(struct reader *frame);

// system.c
void system_configure(struct reader *frame);
void system_quiesce(struct reader *frame);
void system_thaw(struct reader *frame);
void system_wake(struct reader *frame);
void system_power_off(struct reader *frame);
