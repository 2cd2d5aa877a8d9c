// The file tool `tree`: what the workload's root is made of, for a tar or a layer of an image. It is not in that root:
// relative paths begin there, absolute ones in the initramfs.
//
//   tree MODE FOLDER [LOWER]   all below FOLDER, folders before what is in them, other file systems named, not entered;
//                              MODE c: with content; LOWER: what FOLDER lies over, as overlayfs has it
//
//   record = u32 bytes that follow before the content | u32 mode | u32 uid | u32 gid | u64 size | u64 mtime ns
//            | u64 device | u64 inode | u32 names | u64 node (major << 32 | minor) | u8 was | u8 opaque
//            | text path | text link target | u32 count, then pairs of texts: extended attributes
//            | u32 count, then pairs of u64: offset and length of what is not a hole | the content of those
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "guestd.h"

enum { BUFFER = 64 << 10, EXTENTS = 1024 };
enum { WAS_NOT, WAS, WAS_SAME };  // in LOWER; SAME: a folder with the same mode and owner

static uint8_t buffer[BUFFER];
static char names[BUFFER];

struct extent {
    uint64_t offset, length;
};

static _Noreturn void fail(const char *what, const char *path) {
    int error = errno ? errno : EIO;
    dprintf(2, "%s: /%s: %s", what, path, strerror(error));
    _exit(error < 125 ? error : EIO);
}

static void write_all(const void *data, size_t size, const char *path) {
    for (const char *at = data; size;) {
        ssize_t count = write(1, at, size);
        if (count < 0 && errno != EINTR)
            fail("write", path);
        if (count > 0) {
            at += count;
            size -= (size_t)count;
        }
    }
}

static size_t find_extents(int fd, uint64_t size, struct extent *found) {
    size_t count = 0;
    for (off_t at = 0; (uint64_t)at < size;) {
        off_t data = lseek(fd, at, SEEK_DATA), end = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
        if (data < 0 && errno == ENXIO)
            return count;
        if (end < 0 || count == EXTENTS) {  // nothing is known of holes here, or they are too many
            found[0] = (struct extent){0, size};
            return 1;
        }
        if ((uint64_t)data >= size)
            return count;
        if ((uint64_t)end > size)
            end = (off_t)size;
        found[count++] = (struct extent){(uint64_t)data, (uint64_t)(end - data)};
        at = end;
    }
    return count;
}

static void send_content(int fd, const struct extent *extent, const char *path) {
    uint64_t at = extent->offset, end = extent->offset + extent->length;
    while (at < end) {
        size_t most = end - at < BUFFER ? (size_t)(end - at) : BUFFER;
        ssize_t count = pread(fd, buffer, most, (off_t)at);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            fail("read", path);
        if (count == 0) {  // it shrank while it was read: zeros keep the record whole
            count = (ssize_t)most;
            memset(buffer, 0, most);
        }
        write_all(buffer, (size_t)count, path);
        at += (uint64_t)count;
    }
}

// Those that travel: not the ones that overlayfs keeps for itself.
static bool travels(const char *name) {
    return (!strncmp(name, "user.", 5) || !strncmp(name, "trusted.", 8) || !strncmp(name, "security.", 9)) &&
           strncmp(name, "user.overlay.", 13) && strncmp(name, "trusted.overlay.", 16);
}

static void put_attributes(struct bytes *head, int fd) {
    struct bytes pairs = {0};
    uint32_t count = 0;
    ssize_t size = fd < 0 ? 0 : flistxattr(fd, names, sizeof names);
    for (const char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
        ssize_t length = travels(name) ? fgetxattr(fd, name, buffer, sizeof buffer) : -1;
        if (length < 0)
            continue;
        put_text(&pairs, name, strlen(name));
        put_text(&pairs, buffer, (size_t)length);
        count++;
    }
    put_u32(head, count);
    bytes_append(head, bytes_head(&pairs), bytes_length(&pairs));
    bytes_free(&pairs);
}

static void send_record(const struct stat *info, unsigned was, bool opaque, const char *path, const char *link, int fd,
                        bool content) {
    static struct extent extents[EXTENTS];
    struct bytes head = {0};
    uint8_t prefix[4];
    bool regular = S_ISREG(info->st_mode);
    size_t count = regular && content ? find_extents(fd, (uint64_t)info->st_size, extents) : 0;
    put_u32(&head, info->st_mode);
    put_u32(&head, info->st_uid);
    put_u32(&head, info->st_gid);
    put_u64(&head, regular ? (uint64_t)info->st_size : 0);
    put_u64(&head, (uint64_t)info->st_mtim.tv_sec * 1000000000u + (uint64_t)info->st_mtim.tv_nsec);
    put_u64(&head, info->st_dev);
    put_u64(&head, info->st_ino);
    put_u32(&head, (uint32_t)info->st_nlink);
    put_u64(&head, (uint64_t)major(info->st_rdev) << 32 | minor(info->st_rdev));
    put_u8(&head, (uint8_t)was);
    put_u8(&head, opaque);
    put_text(&head, path, strlen(path));
    put_text(&head, link, strlen(link));
    put_attributes(&head, fd);
    put_u32(&head, (uint32_t)count);
    for (size_t i = 0; i < count; i++) {
        put_u64(&head, extents[i].offset);
        put_u64(&head, extents[i].length);
    }
    for (int i = 0; i < 4; i++)
        prefix[i] = (uint8_t)(bytes_length(&head) >> 8 * i);
    write_all(prefix, 4, path);
    write_all(bytes_head(&head), bytes_length(&head), path);
    bytes_free(&head);
    for (size_t i = 0; i < count; i++)
        send_content(fd, &extents[i], path);
}

static bool is_opaque(int fd) {
    char value[2];
    return fgetxattr(fd, "trusted.overlay.opaque", value, sizeof value) > 0 && *value == 'y';
}

static DIR *listed(int fd, const char *path) {
    int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = copy < 0 ? NULL : fdopendir(copy);
    if (!entries)
        fail("list", path);
    return entries;
}

static struct dirent *next_entry(DIR *entries, const char *path) {
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(entries);
        if (!entry && errno)
            fail("list", path);
        if (!entry || (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")))
            return entry;
    }
}

static char *child_of(const char *path, const char *name) {
    char *child = NULL;
    if (asprintf(&child, "%s%s%s", path, *path ? "/" : "", name) < 0)
        fail("list", path);
    return child;
}

// An opaque folder hides what LOWER has there: that is gone, with no whiteout to say so.
static void send_hidden(int fd, int lower, const char *path) {
    DIR *entries = listed(lower, path);
    for (struct dirent *entry; (entry = next_entry(entries, path));) {
        struct stat there;
        if (!fstatat(fd, entry->d_name, &there, AT_SYMLINK_NOFOLLOW))
            continue;
        char *child = child_of(path, entry->d_name);
        memset(&there, 0, sizeof there);
        send_record(&there, WAS, false, child, "", -1, false);
        free(child);
    }
    closedir(entries);
}

static unsigned was_in(int lower, const char *name, const struct stat *info) {
    struct stat before;
    if (lower < 0 || fstatat(lower, name, &before, AT_SYMLINK_NOFOLLOW))
        return WAS_NOT;
    bool same = S_ISDIR(info->st_mode) && before.st_mode == info->st_mode && before.st_uid == info->st_uid &&
                before.st_gid == info->st_gid;
    return same ? WAS_SAME : WAS;
}

// lower: the folder that `folder` lies over, -1: none.
static void walk(int folder, int lower, const char *path, bool content, dev_t device) {
    DIR *entries = listed(folder, path);
    for (struct dirent *entry; (entry = next_entry(entries, path));) {
        char link[PATH_MAX] = "", *child = child_of(path, entry->d_name);
        const char *name = entry->d_name;
        struct stat info;
        int fd = -1, below = -1;
        if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW)) {
            if (errno != ENOENT)  // else it went away meanwhile
                fail("stat", child);
            free(child);
            continue;
        }
        bool is_folder = S_ISDIR(info.st_mode);
        if (S_ISLNK(info.st_mode) && readlinkat(folder, name, link, sizeof link - 1) < 0)
            fail("readlink", child);
        if (is_folder || (S_ISREG(info.st_mode) && content)) {
            fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | (is_folder ? O_DIRECTORY : 0));
            if (fd < 0)
                fail("open", child);
        }
        bool opaque = is_folder && is_opaque(fd);
        send_record(&info, was_in(lower, name, &info), opaque, child, link, fd, content);
        if (is_folder && info.st_dev == device) {
            below = lower < 0 ? -1 : openat(lower, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (opaque && below >= 0)
                send_hidden(fd, below, child);
            walk(fd, below, child, content, device);
        }
        if (below >= 0)
            close(below);
        if (fd >= 0)
            close(fd);
        free(child);
    }
    closedir(entries);
}

_Noreturn void tree_tool(const char *mode, const char *folder, const char *lower) {
    int top = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int below = lower ? open(lower, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    struct stat info;
    if (top < 0 || (lower && below < 0) || fstat(top, &info))
        fail("open", top < 0 ? folder : lower);
    walk(top, below, "", strchr(mode, 'c'), info.st_dev);
    _exit(0);
}
