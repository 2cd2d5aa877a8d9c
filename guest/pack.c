// pack: records of files to stdout (files.c says which).
#define _GNU_SOURCE
#include "records.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static uint8_t buffer[BUFFER];

static void pack_content(int fd, uint64_t size, const char *path) {
    ssize_t moved;
    while (size && (moved = splice(fd, NULL, 1, NULL, size < PIPE ? size : PIPE, 0)) > 0)  // without a copy
        size -= (uint64_t)moved;
    while (size) {
        size_t most = size < BUFFER ? size : BUFFER;
        ssize_t count = read(fd, buffer, most);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            files_fail("read", path);
        if (count == 0) {  // it shrank while it was read: zeros keep the record whole
            count = (ssize_t)most;
            memset(buffer, 0, most);
        }
        write_all(1, buffer, (size_t)count, path);
        size -= (uint64_t)count;
    }
}

static void pack_extent(uint64_t offset, uint64_t length, const char *path) {
    struct bytes head = {0};
    put_u64(&head, offset);
    put_u64(&head, length);
    write_all(1, bytes_head(&head), bytes_length(&head), path);
    bytes_free(&head);
}

static void pack_extents(int fd, uint64_t size, const char *path) {
    off_t data = 0, hole;
    while ((uint64_t)data < size && (data = lseek(fd, data, SEEK_DATA)) >= 0 && (uint64_t)data < size) {
        hole = lseek(fd, data, SEEK_HOLE);
        if (hole <= data || (uint64_t)hole > size)
            hole = (off_t)size;
        if (lseek(fd, data, SEEK_SET) < 0)
            files_fail("seek", path);
        pack_extent((uint64_t)data, (uint64_t)(hole - data), path);
        pack_content(fd, (uint64_t)(hole - data), path);
        data = hole;
    }
    pack_extent(size, 0, path);
}

// The first names of files that have several.
static struct name {
    struct name *next;
    dev_t device;
    ino_t inode;
    char *path;
} *names[1024];

static const char *first_name(const struct stat *info, const char *path) {  // NULL: this is it
    struct name **at = &names[info->st_ino % (sizeof names / sizeof *names)];
    for (; *at; at = &(*at)->next)
        if ((*at)->inode == info->st_ino && (*at)->device == info->st_dev)
            return (*at)->path;
    *at = allocate(sizeof **at);
    (*at)->inode = info->st_ino;
    (*at)->device = info->st_dev;
    (*at)->path = strdup(path);
    return NULL;
}

static struct {
    bool content, holes, links;
} packing;

static void pack_record(const struct stat *info, uint32_t flags, uint64_t size, const char *path, const char *link) {
    struct bytes head = {0};
    size_t path_size = strlen(path), link_size = strlen(link);
    put_u32(&head, (uint32_t)(28 + 4 + path_size + 4 + link_size));
    put_u32(&head, info->st_mode | flags);
    put_u32(&head, info->st_uid);
    put_u32(&head, info->st_gid);
    put_u64(&head, size);
    put_u64(&head, (uint64_t)info->st_mtim.tv_sec * 1000000000u + (uint64_t)info->st_mtim.tv_nsec);
    put_text(&head, path, path_size);
    put_text(&head, link, link_size);
    write_all(1, bytes_head(&head), bytes_length(&head), path);
    bytes_free(&head);
}

static void pack_at(int folder, const char *name, const char *path, int levels, bool follow, dev_t device);

static void pack_children(int fd, const char *path, int levels, dev_t device) {
    DIR *entries = fdopendir(fd);
    if (!entries)
        files_fail("list", path);
    for (struct dirent *entry; (errno = 0, entry = readdir(entries));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        char *child = NULL;
        if (asprintf(&child, "%s%s%s", path, *path ? "/" : "", entry->d_name) < 0)
            files_fail("list", path);
        pack_at(fd, entry->d_name, child, levels - 1, false, device);
        free(child);
    }
    if (errno)
        files_fail("list", path);
    closedir(entries);
}

// path: relative to what was asked for. device: another file system is named, not entered, unless it is on a disk: a
// volume; 0 at the top.
static void pack_at(int folder, const char *name, const char *path, int levels, bool follow, dev_t device) {
    char link[PATH_MAX] = "";
    struct stat info;
    int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW), fd = -1;
    if (fstatat(folder, name, &info, follow ? 0 : AT_SYMLINK_NOFOLLOW)) {
        if (errno == ENOENT && *path)
            return;  // it went away meanwhile
        files_fail("stat", *path ? path : name);
    }
    bool regular = S_ISREG(info.st_mode), content = regular && packing.content;
    bool enter = S_ISDIR(info.st_mode) && levels && (!device || info.st_dev == device || major(info.st_dev));
    if (S_ISLNK(info.st_mode) && readlinkat(folder, name, link, sizeof link - 1) < 0)
        files_fail("readlink", name);
    const char *first = content && packing.links && info.st_nlink > 1 ? first_name(&info, path) : NULL;
    if (first) {
        pack_record(&info, 0, 0, path, first);
        return;
    }
    if (content || enter) {
        fd = openat(folder, name, flags);
        if (fd < 0)
            files_fail("open", *path ? path : name);
    }
    uint64_t size = regular ? (uint64_t)info.st_size : 0;
    bool sparse = content && packing.holes && size >= SPARSE_LEAST && (uint64_t)info.st_blocks * 512 < size;
    pack_record(&info, sparse ? SPARSE : 0, size, path, link);
    if (sparse)
        pack_extents(fd, size, path);
    else if (content)
        pack_content(fd, size, path);
    if (enter)
        pack_children(fd, path, levels, info.st_dev);
    else if (fd >= 0)
        close(fd);
}

void pack(const char *mode, const char *path) {
    int levels = strchr(mode, 'r') ? INT_MAX : strchr(mode, 'd') ? 1 : 0;
    packing.content = strchr(mode, 'c');
    packing.holes = strchr(mode, 's');
    packing.links = strchr(mode, 'h');
    fcntl(1, F_SETPIPE_SZ, PIPE);
    pack_at(AT_FDCWD, path, "", levels, strchr(mode, 'f'), 0);
}
