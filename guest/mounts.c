// Modules and mounts: first those of the initramfs, later the image of the sandbox.
//
//   /dev/vda squashfs -> /image      /dev/vdb ext4 -> /overlay      both by overlayfs -> the workload's root
//
// The workload's root is moved over "/" (as switch_root does), so that a process whose root it is counts as not
// chrooted: the kernel refuses user namespaces to those who are. guestd itself stays below, in the initramfs.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guestd.h"

enum {
    PLACEHOLDER_BYTES = 4096,  // a template's drives, until a sandbox's own are put in their place
    HELD_BYTES = 64 << 10,     // the most of a name file that is carried over
    NO_LINKS = 256,            // linux/mount.h: MS_NOSYMFOLLOW
    NO_LINKS_FOUND = 0x2000,   // linux/statfs.h: ST_NOSYMFOLLOW
};

struct mounting {
    const char *source, *target, *type;
    unsigned long flags;
    const char *data;
};

static const struct mounting boot[] = {
    {"proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"},
    {"cgroup", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};

static const struct mounting image[] = {
    {"/dev/vda", "/image", "squashfs", MS_RDONLY | MS_NODEV, NULL},
    {"/dev/vdb", "/overlay", "ext4", MS_NOATIME, NULL},
    {"overlay", "/root", "overlay", MS_NOATIME, "lowerdir=/image,upperdir=/overlay/upper,workdir=/overlay/work"},
};

// In the workload's root, whose links may lead anywhere: resolved inside it.
static const struct mounting inside[] = {
    {"proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"},
    {"devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
    {"shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"},
    {"tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"},
};

static char failure[200];

static const char *fail(const struct mounting *m) {
    snprintf(failure, sizeof failure, "mounting %s on %s: %s", m->source, m->target, strerror(errno));
    return failure;
}

static const char *mount_all(const struct mounting *list, size_t count) {
    for (size_t i = 0; i < count; i++) {
        mkdir(list[i].target, 0755);
        // A kernel may have mounted its devtmpfs by itself: EBUSY.
        if (mount(list[i].source, list[i].target, list[i].type, list[i].flags, list[i].data) && errno != EBUSY)
            return fail(&list[i]);
        if (!strcmp(list[i].target, "/overlay")) {
            mkdir("/overlay/upper", 0755);
            mkdir("/overlay/work", 0700);
        }
    }
    return NULL;
}

static const char *mount_inside(void) {
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
        char target[32];
        mkdirat(guestd.root_fd, inside[i].target + 1, 0755);
        int fd = root_open(inside[i].target, O_PATH | O_DIRECTORY, 0);
        snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
        if (fd < 0 || mount(inside[i].source, target, inside[i].type, inside[i].flags, inside[i].data))
            return fail(&inside[i]);
        close(fd);
    }
    return NULL;
}

// This program again, as perdure-guest: the workload's to run, and not to write. What an image has at /run is not seen
// anyway. Without it a sandbox works: whoever needs it says so.
static void mount_tools(void) {
    char target[32];
    int fd = -1, run = root_open("/run", O_PATH | O_DIRECTORY, 0);
    if (run >= 0 && !mkdirat(run, "perdure", 0755))
        fd = root_open(TOOLS "/perdure-guest", O_CREAT | O_RDWR, 0755);
    if (run >= 0)
        close(run);
    snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
    bool bound = fd >= 0 && !mount("/init", target, NULL, MS_BIND, NULL);
    if (fd >= 0)
        close(fd);
    fd = bound ? root_open(TOOLS "/perdure-guest", O_PATH, 0) : -1;  // what is mounted there now
    snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
    if (fd < 0 || mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL))
        complain("no %s/perdure-guest: %s", TOOLS, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void load_modules(void) {
    char name[256], path[300];
    FILE *order = fopen("/mod/order", "re");
    while (order && fgets(name, sizeof name, order)) {
        name[strcspn(name, " \r\n")] = 0;
        if (!*name)
            continue;
        snprintf(path, sizeof path, "/mod/%s", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            complain("module %s: %s", name, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (order)
        fclose(order);
}

static void open_console(void) {
    int fd = open("/dev/console", O_RDWR);
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && fd >= 0; i++)
        if (fd != i)
            dup2(fd, i);
    if (fd > 2)
        close(fd);
}

void mounts_boot(void) {
    const char *failed = mount_all(boot, sizeof boot / sizeof *boot);
    open_console();
    if (failed)
        complain("%s", failed);
    mkdir(guestd.cgroup, 0755);
    load_modules();
    network_boot();
}

bool drive_is_real(const char *path) {
    uint64_t size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool known = !ioctl(fd, BLKGETSIZE64, &size);
    close(fd);
    return known && size > PLACEHOLDER_BYTES;
}

bool drives_ready(void) { return guestd.test || (drive_is_real("/dev/vda") && drive_is_real("/dev/vdb")); }

const char *mounts_image(void) {
    static const char *const links[][2] = {
        {"/proc/self/fd", "dev/fd"},
        {"/proc/self/fd/0", "dev/stdin"},
        {"/proc/self/fd/1", "dev/stdout"},
        {"/proc/self/fd/2", "dev/stderr"},
    };
    if (guestd.test)
        return NULL;
    const char *failed = mount_all(image, sizeof image / sizeof *image);
    if (failed)
        return failed;
    guestd.root_fd = open("/root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    failed = mount_inside();
    if (failed)
        return failed;
    mount_tools();
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        (void)!symlinkat(links[i][0], guestd.root_fd, links[i][1]);
    if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chdir("/"))
        return "moving the image's root into place";
    return NULL;
}

int root_open(const char *path, int flags, mode_t mode) {
    struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .mode = mode, .resolve = RESOLVE_IN_ROOT};
    return (int)syscall(SYS_openat2, guestd.root_fd, path, &how, sizeof how);
}

// How its times are kept stays, where nothing is said of it.
static bool remount_root(unsigned long flags) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", guestd.root_fd);
    return !mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | flags, NULL);
}

// Whether it is the root itself that may not be written: another read-only mount on the way (-v conf:/etc:ro, or one
// of the workload's) refuses with the same error. *flags: how it is mounted, but for that.
static bool root_is_sealed(unsigned long *flags) {
    struct statvfs root;
    if (fstatvfs(guestd.root_fd, &root) || !(root.f_flag & ST_RDONLY))
        return false;
    *flags = (root.f_flag & ST_NOSUID ? MS_NOSUID : 0) | (root.f_flag & ST_NODEV ? MS_NODEV : 0) |
             (root.f_flag & ST_NOEXEC ? MS_NOEXEC : 0) | (root.f_flag & NO_LINKS_FOUND ? NO_LINKS : 0);
    return true;
}

// Where an image has no /etc, or a link there that leads nowhere (such as to what an init system would make), the file
// is made nevertheless.
static int open_own(const char *path) {
    const int flags = O_RDWR | O_CREAT | O_NONBLOCK | O_NOCTTY;  // whatever the workload has put there: nobody waits for it
    int fd = root_open(path, flags, 0644);
    if (fd >= 0 || (errno != ENOENT && errno != ELOOP))
        return fd;
    char folder[64], link;
    const char *name = strrchr(path, '/') + 1;
    snprintf(folder, sizeof folder, "%.*s", (int)(name - path), path);
    mkdirat(guestd.root_fd, folder + 1, 0755);
    int parent = root_open(folder, O_RDONLY | O_DIRECTORY, 0);
    if (parent >= 0) {
        if (readlinkat(parent, name, &link, 1) >= 0)
            unlinkat(parent, name, 0);
        close(parent);
    }
    return root_open(path, flags, 0644);
}

static bool is_plain(int fd) {
    struct stat info;
    return fd >= 0 && !fstat(fd, &info) && S_ISREG(info.st_mode);
}

void root_write(const char *path, const char *text, const char *only_over) {
    static char held[HELD_BYTES];
    unsigned long flags = 0;
    int fd = open_own(path);
    // A root that the workload may not write: it stands still, or is not there yet, whenever something is written here.
    bool is_sealed = fd < 0 && errno == EROFS && root_is_sealed(&flags) && remount_root(flags);
    if (is_sealed)
        fd = open_own(path);
    size_t length = strlen(text), before = only_over ? strlen(only_over) : 0;
    bool plain = is_plain(fd);
    ssize_t size = plain && only_over ? read(fd, held, sizeof held) : 0;
    bool wanted = plain && size >= (ssize_t)before && size < HELD_BYTES && !memcmp(held, only_over ? only_over : "", before);
    size_t kept = wanted ? (size_t)size - before : 0;
    if (wanted && (pwrite(fd, text, length, 0) < 0 || pwrite(fd, held + before, kept, (off_t)length) < 0 ||
                   ftruncate(fd, (off_t)(length + kept))))
        complain("writing %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    if (is_sealed && !remount_root(flags | MS_RDONLY))
        complain("the root is not read-only any more: %s", strerror(errno));
}

void identity_write(const char *hostname, const char *machine_id) {
    char line[300];
    if (*hostname) {
        network_renamed(hostname);
        if (sethostname(hostname, strlen(hostname)))
            complain("host name %s: %s", hostname, strerror(errno));
        snprintf(line, sizeof line, "%s\n", hostname);
        root_write("/etc/hostname", line, NULL);
    }
    if (*machine_id) {
        snprintf(line, sizeof line, "%s\n", machine_id);
        root_write("/etc/machine-id", line, NULL);
    }
}
