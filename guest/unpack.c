// unpack: records of files from stdin (files.c says which), made below a folder.
#define _GNU_SOURCE
#include "records.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 2 * PATH_MAX + 64 };

static uint8_t buffer[BUFFER];

static bool leads_out(const char *path) {
    for (const char *at = path; at; at = strchr(at, '/'), at = at ? at + 1 : NULL)
        if (!strncmp(at, "..", 2) && (!at[2] || at[2] == '/'))
            return true;
    return *path == '/';
}

static void unpack_content(int fd, uint64_t size, const char *path) {
    while (size) {
        size_t most = size < BUFFER ? size : BUFFER;
        if (!read_all(buffer, most)) {
            errno = EPIPE;
            files_fail("the content ends early", path);
        }
        if (fd >= 0)
            write_all(fd, buffer, most, path);
        size -= most;
    }
}

static void unpack_extents(int fd, uint64_t size, const char *path) {
    for (;;) {
        uint8_t head[EXTENT];
        struct reader r = {head, head + EXTENT, false};
        if (!read_all(head, EXTENT)) {
            errno = EPIPE;
            files_fail("the content ends early", path);
        }
        uint64_t offset = get_number(&r, 8), length = get_number(&r, 8);
        if (!length)
            break;
        if (offset > size || length > size - offset || lseek(fd, (off_t)offset, SEEK_SET) < 0) {
            errno = EBADMSG;
            files_fail("an extent is malformed", path);
        }
        unpack_content(fd, length, path);
    }
    if (ftruncate(fd, (off_t)size))
        files_fail("write", path);
}

// A file, link or node takes the place of what has its name; only a directory stays where it is.
static void make_way(const char *path, bool for_folder) {
    struct stat there;
    if (lstat(path, &there))
        return;
    if (S_ISDIR(there.st_mode) != for_folder) {
        errno = for_folder ? ENOTDIR : EISDIR;
        files_fail("a directory and something else have one name", path);
    }
    if (!for_folder && unlink(path))
        files_fail("unlink", path);
}

static void unpack_name(const char *base, char *path, const char *first) {
    char *target = NULL;
    if (asprintf(&target, "%s/%s", base, first) < 0)
        files_fail("link", path);
    make_parents(path);
    if (strcmp(path, target)) {
        make_way(path, false);
        if (link(target, path))
            files_fail("link", path);
    }
    free(target);
}

static void unpack_entry(char *path, uint32_t flags, uid_t uid, gid_t gid, uint64_t size, uint64_t mtime_ns, const char *link) {
    mode_t mode = flags & ~SPARSE;
    int fd = -1;
    bool failed = false;
    make_parents(path);
    make_way(path, S_ISDIR(mode));
    if (S_ISDIR(mode))
        failed = mkdir(path, 0700) && errno != EEXIST;
    else if (S_ISLNK(mode))
        failed = symlink(link, path);
    else if (S_ISREG(mode))
        failed = (fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0;
    else
        failed = mknod(path, mode & ~(mode_t)07777, 0);  // a pipe or a socket; devices do not travel
    if (failed)
        files_fail("create", path);
    if (S_ISREG(mode) && flags & SPARSE)
        unpack_extents(fd, size, path);
    else if (S_ISREG(mode))
        unpack_content(fd, size, path);
    if (lchown(path, uid, gid) && !guestd.test)
        files_fail("chown", path);
    if (!S_ISLNK(mode) && chmod(path, mode & 07777))
        files_fail("chmod", path);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {(time_t)(mtime_ns / 1000000000), (long)(mtime_ns % 1000000000)}};
    utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
    if (fd >= 0 && close(fd))
        files_fail("close", path);
}

static _Noreturn void malformed(void) {
    errno = EBADMSG;
    files_fail("unpack", "a record is malformed");
}

void unpack(const char *base) {
    static uint8_t head[HEAD_MAX];
    uint8_t prefix[4];
    umask(0);
    fcntl(0, F_SETPIPE_SZ, PIPE);
    while (read_all(prefix, 1)) {
        if (!read_all(prefix + 1, 3))
            malformed();
        struct reader r = {prefix, prefix + 4, false};
        size_t head_size = get_number(&r, 4);
        if (head_size > HEAD_MAX || !read_all(head, head_size))
            malformed();
        r = (struct reader){head, head + head_size, false};
        uint32_t mode = (uint32_t)get_number(&r, 4);
        uid_t uid = (uid_t)get_number(&r, 4);
        gid_t gid = (gid_t)get_number(&r, 4);
        uint64_t size = get_number(&r, 8), mtime_ns = get_number(&r, 8);
        char *name = slice_string(get_text(&r)), *link = slice_string(get_text(&r)), *path = NULL;
        mode_t kind = mode & ~SPARSE;
        bool again = S_ISREG(kind) && *link;
        if (!reader_done(&r) || leads_out(name) || S_ISBLK(kind) || S_ISCHR(kind) || (again && (size || leads_out(link))) ||
            asprintf(&path, "%s%s%s", base, *name ? "/" : "", name) < 0)
            malformed();
        if (again)
            unpack_name(base, path, link);
        else
            unpack_entry(path, mode, uid, gid, size, mtime_ns, link);
        free(name);
        free(link);
        free(path);
    }
}
