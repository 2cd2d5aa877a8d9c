// Mounts that a sandbox wishes for, in its root, besides its image: volumes (drives from /dev/vdc on), tmpfs, and
// folders that are only to be read. A volume is frozen (fsfreeze(8)) while the machine is quiesced, so that its file
// is a whole, clean file system when the machine has ended.
//
//   mount SOURCE TYPE TARGET FLAGS DATA WAIT_MS HOW     a file tool (files.c): a child, inside the workload's root
//       TYPE bind: TARGET (a folder or a file) once more over itself, with FLAGS. WAIT_MS: until SOURCE has its real size. HOW c: an empty
//       file system gets what the folder below it holds, and takes its owner and mode.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <mntent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "guestd.h"

enum { BUFFER = 64 << 10, NAMES = 4096, VALUE = 4096, POLL_US = 2000, AGAIN_MS = 50, AGAIN_LIMIT_MS = 60000 };

static const char first_volume[] = "/dev/vdc", volumes[] = "/dev/vd";

// Fill --------------------------------------------------------------------------------------------------------------

static void copy_attributes(int from, int to, const char *name) {
    char names[NAMES], value[VALUE];
    ssize_t size = flistxattr(from, names, sizeof names);
    for (char *at = names; size > 0 && at < names + size; at += strlen(at) + 1) {
        ssize_t length = fgetxattr(from, at, value, sizeof value);
        if (length >= 0 && strncmp(at, "trusted.overlay.", 16) && fsetxattr(to, at, value, (size_t)length, 0) &&
            errno != ENOTSUP)
            tool_failed("copying the attributes of", name);
    }
}

static void copy_content(int from, int to, const char *name) {
    static char buffer[BUFFER];
    for (ssize_t count; (count = read(from, buffer, sizeof buffer)) != 0;) {
        if (count < 0)
            tool_failed("reading", name);
        for (ssize_t at = 0, done; at < count; at += done)
            if ((done = write(to, buffer + at, (size_t)(count - at))) < 0)
                tool_failed("writing", name);
    }
}

static void copy_meta(int from, int to, const struct stat *info, const char *name) {
    const struct timespec times[2] = {info->st_atim, info->st_mtim};
    copy_attributes(from, to, name);
    if ((fchown(to, info->st_uid, info->st_gid) && !guestd.test) || fchmod(to, info->st_mode & 07777) ||
        futimens(to, times))
        tool_failed("copying the mode of", name);
}

static void copy_folder(int from, int to);

static void copy_entry(int from, int to, const char *name) {
    char link[4096];
    struct stat info;
    if (fstatat(from, name, &info, AT_SYMLINK_NOFOLLOW))
        tool_failed("reading", name);
    if (S_ISLNK(info.st_mode)) {
        ssize_t size = readlinkat(from, name, link, sizeof link - 1);
        link[size < 0 ? 0 : size] = 0;
        if (size < 0 || symlinkat(link, to, name) ||
            (fchownat(to, name, info.st_uid, info.st_gid, AT_SYMLINK_NOFOLLOW) && !guestd.test))
            tool_failed("copying", name);
    } else if (S_ISDIR(info.st_mode) || S_ISREG(info.st_mode)) {
        bool folder = S_ISDIR(info.st_mode);
        if (folder && mkdirat(to, name, 0700))
            tool_failed("making", name);
        int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        int target = openat(to, name, folder ? O_RDONLY | O_CLOEXEC : O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (source < 0 || target < 0)
            tool_failed("copying", name);
        if (folder)
            copy_folder(source, target);
        else
            copy_content(source, target, name);
        copy_meta(source, target, &info, name);
        close(source);
        close(target);
    } else if (S_ISFIFO(info.st_mode) || S_ISSOCK(info.st_mode)) {
        if (mknodat(to, name, info.st_mode, 0))
            tool_failed("copying", name);
    }  // devices stay where they are
}

static void each_entry(int folder, void (*act)(int, int, const char *), int target) {
    DIR *entries = fdopendir(dup(folder));
    if (!entries)
        tool_failed("reading", "a folder");
    rewinddir(entries);
    for (struct dirent *entry; (entry = readdir(entries));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            act(folder, target, entry->d_name);
    closedir(entries);
}

static void copy_folder(int from, int to) { each_entry(from, copy_entry, to); }

static bool is_used;

static void look(int folder, int unused, const char *name) {
    (void)folder, (void)unused;
    is_used |= strcmp(name, "lost+found");
}

// An empty file system gets the folder's content. mke2fs makes lost+found, which programs that want an empty folder do
// not expect; e2fsck makes it again when it needs it.
static void fill(int below, const char *target) {
    struct stat info;
    int volume = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (volume < 0)
        tool_failed("opening", target);
    each_entry(volume, look, -1);
    if (!is_used) {
        unlinkat(volume, "lost+found", AT_REMOVEDIR);
        copy_folder(below, volume);
        if (fstat(below, &info))
            tool_failed("reading", target);
        copy_meta(below, volume, &info, target);
    }
    close(volume);
}

// Mount -------------------------------------------------------------------------------------------------------------

static void make_folders(char *path) {
    make_parents(path);
    if (mkdir(path, 0755) && errno != EEXIST)
        tool_failed("making", path);
}

static void await_drive(const char *device, int64_t wait_ms) {
    for (int64_t until_ms = now_ms() + wait_ms; !drive_is_real(device); usleep(POLL_US))
        if (now_ms() > until_ms) {
            errno = ETIMEDOUT;
            tool_failed("waiting for the drive", device);
        }
}

_Noreturn void attach_tool(char **argv) {
    const char *source = argv[1], *type = argv[2], *data = argv[5];
    char *target = argv[3];
    unsigned long flags = strtoul(argv[4], NULL, 10);
    int64_t wait_ms = strtol(argv[6], NULL, 10);
    bool again = !strcmp(type, "bind");
    if (!again || access(target, F_OK))
        make_folders(target);
    int below = open(target, again ? O_PATH | O_CLOEXEC : O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (below < 0)
        tool_failed("mounting at", target);
    if (wait_ms)
        await_drive(source, wait_ms);
    if (mount(source, target, again ? NULL : type, again ? MS_BIND | MS_REC : flags, again ? NULL : data) ||
        (again && mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | flags, NULL)))
        tool_failed("mounting at", target);
    if (strchr(argv[7], 'c'))
        fill(below, target);
    _exit(0);
}

// Freeze ------------------------------------------------------------------------------------------------------------

static void each_volume(unsigned long what) {
    struct mntent *entry;
    if (guestd.test || access(first_volume, F_OK))
        return;
    FILE *mounted = setmntent("/proc/self/mounts", "re");
    while (mounted && (entry = getmntent(mounted))) {
        if (strncmp(entry->mnt_fsname, volumes, strlen(volumes)) || strcmp(entry->mnt_type, "ext4"))
            continue;
        int fd = root_open(entry->mnt_dir, O_RDONLY | O_DIRECTORY | O_NONBLOCK, 0);
        if (fd >= 0) {
            ioctl(fd, what, 0);  // refused where it is frozen already, or is not, or is read-only
            close(fd);
        }
    }
    if (mounted)
        endmntent(mounted);
}

void volumes_freeze(void) { each_volume(FIFREEZE); }

// What a capture has of these its restore finds: so it thaws.
static struct {
    bool asked;
    pid_t by;  // cannot be killed within it, and may come to it after our thaw: so until it is gone, again
    int64_t until_ms;
    struct timer timer;
} freezing;

void volumes_freeze_by(pid_t process) {
    freezing.asked = true;
    freezing.by = process;
}

static void thaw(struct timer *timer) {
    each_volume(FITHAW);
    if (freezing.by > 0 && (!kill(freezing.by, 0) || errno != ESRCH) && now_ms() < freezing.until_ms)
        timer_start(timer, AGAIN_MS, thaw);
}

void volumes_thaw(bool is_alive) {
    if (!freezing.asked)
        return;
    freezing.asked = false;
    if (is_alive)
        freezing.by = 0;
    freezing.until_ms = now_ms() + AGAIN_LIMIT_MS;
    thaw(&freezing.timer);
}
