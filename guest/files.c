// File tools. Each runs in a child of its own (a slow disk never stalls guestd), inside the workload's root, with the
// ends of a process's streams: so files cross the channel by the same offsets and acknowledgements as any output.
//
//   pack MODE PATH      records of PATH to stdout; MODE has letters: c content, r the whole tree, d one level, f follow
//   unpack PATH         records from stdin, made below the directory PATH
//   remove PATH | mkdir PATH OCTAL | symlink TARGET PATH | chmod PATH OCTAL | chown PATH UID GID
//   tree (tree.c) | top (top.c)
//
//   record = u32 bytes that follow before the content | u32 mode | u32 uid | u32 gid | u64 size | u64 mtime ns
//            | text path | text link target | the content of a regular file, size bytes
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
#include <time.h>
#include <unistd.h>

#include "guestd.h"

enum { BUFFER = 64 << 10, HEAD_MAX = 2 * PATH_MAX + 64 };

static uint8_t buffer[BUFFER];

static _Noreturn void fail(const char *what, const char *path) {
    int error = errno ? errno : EIO;
    dprintf(2, "%s: %s: %s", what, path, strerror(error));
    _exit(error < 125 ? error : EIO);
}

static void write_all(int fd, const void *data, size_t size, const char *path) {
    const char *at = data;
    while (size) {
        ssize_t count = write(fd, at, size);
        if (count < 0 && errno != EINTR)
            fail("write", path);
        if (count > 0) {
            at += count;
            size -= (size_t)count;
        }
    }
}

static bool read_all(void *data, size_t size) {
    char *at = data;
    while (size) {
        ssize_t count = read(0, at, size);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return false;
        at += count;
        size -= (size_t)count;
    }
    return true;
}

// Pack --------------------------------------------------------------------------------------------------------------

static void pack_content(int fd, uint64_t size, const char *path) {
    while (size) {
        size_t most = size < BUFFER ? size : BUFFER;
        ssize_t count = read(fd, buffer, most);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            fail("read", path);
        if (count == 0) {  // it shrank while it was read: zeros keep the record whole
            count = (ssize_t)most;
            memset(buffer, 0, most);
        }
        write_all(1, buffer, (size_t)count, path);
        size -= (uint64_t)count;
    }
}

static void pack_record(const struct stat *info, uint64_t size, const char *path, const char *link) {
    struct bytes head = {0};
    size_t path_size = strlen(path), link_size = strlen(link);
    put_u32(&head, (uint32_t)(28 + 4 + path_size + 4 + link_size));
    put_u32(&head, info->st_mode);
    put_u32(&head, info->st_uid);
    put_u32(&head, info->st_gid);
    put_u64(&head, size);
    put_u64(&head, (uint64_t)info->st_mtim.tv_sec * 1000000000u + (uint64_t)info->st_mtim.tv_nsec);
    put_text(&head, path, path_size);
    put_text(&head, link, link_size);
    write_all(1, bytes_head(&head), bytes_length(&head), path);
    bytes_free(&head);
}

static void pack_at(int folder, const char *name, const char *path, bool content, int levels, bool follow, dev_t device);

static void pack_children(int fd, const char *path, bool content, int levels, dev_t device) {
    DIR *entries = fdopendir(fd);
    if (!entries)
        fail("list", path);
    for (struct dirent *entry; (errno = 0, entry = readdir(entries));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        char *child = NULL;
        if (asprintf(&child, "%s%s%s", path, *path ? "/" : "", entry->d_name) < 0)
            fail("list", path);
        pack_at(fd, entry->d_name, child, content, levels - 1, false, device);
        free(child);
    }
    if (errno)
        fail("list", path);
    closedir(entries);
}

// path: relative to what was asked for. device: another file system is named, not entered; 0 at the top.
static void pack_at(int folder, const char *name, const char *path, bool content, int levels, bool follow, dev_t device) {
    char link[PATH_MAX] = "";
    struct stat info;
    int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW), fd = -1;
    if (fstatat(folder, name, &info, follow ? 0 : AT_SYMLINK_NOFOLLOW)) {
        if (errno == ENOENT && *path)
            return;  // it went away meanwhile
        fail("stat", *path ? path : name);
    }
    bool regular = S_ISREG(info.st_mode), enter = S_ISDIR(info.st_mode) && levels && (!device || info.st_dev == device);
    if (S_ISLNK(info.st_mode) && readlinkat(folder, name, link, sizeof link - 1) < 0)
        fail("readlink", name);
    if ((regular && content) || enter) {
        fd = openat(folder, name, flags);
        if (fd < 0)
            fail("open", *path ? path : name);
    }
    pack_record(&info, regular ? (uint64_t)info.st_size : 0, path, link);
    if (regular && content)
        pack_content(fd, (uint64_t)info.st_size, path);
    if (enter)
        pack_children(fd, path, content, levels, info.st_dev);
    else if (fd >= 0)
        close(fd);
}

static void pack(const char *mode, const char *path) {
    int levels = strchr(mode, 'r') ? INT_MAX : strchr(mode, 'd') ? 1 : 0;
    pack_at(AT_FDCWD, path, "", strchr(mode, 'c'), levels, strchr(mode, 'f'), 0);
}

// Unpack ------------------------------------------------------------------------------------------------------------

static void make_parents(char *path) {
    for (char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = 0;
        if (mkdir(path, 0755) && errno != EEXIST)
            fail("mkdir", path);
        *at = '/';
    }
}

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
            fail("the content ends early", path);
        }
        if (fd >= 0)
            write_all(fd, buffer, most, path);
        size -= most;
    }
}

// A file, link or node takes the place of what has its name; only a directory stays where it is.
static void make_way(const char *path, bool for_folder) {
    struct stat there;
    if (lstat(path, &there))
        return;
    if (S_ISDIR(there.st_mode) != for_folder) {
        errno = for_folder ? ENOTDIR : EISDIR;
        fail("a directory and something else have one name", path);
    }
    if (!for_folder && unlink(path))
        fail("unlink", path);
}

static void unpack_entry(char *path, mode_t mode, uid_t uid, gid_t gid, uint64_t size, uint64_t mtime_ns, const char *link) {
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
        fail("create", path);
    if (S_ISREG(mode))
        unpack_content(fd, size, path);
    if (lchown(path, uid, gid) && !guestd.test)
        fail("chown", path);
    if (!S_ISLNK(mode) && chmod(path, mode & 07777))
        fail("chmod", path);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {(time_t)(mtime_ns / 1000000000), (long)(mtime_ns % 1000000000)}};
    utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
    if (fd >= 0 && close(fd))
        fail("close", path);
}

static _Noreturn void malformed(void) {
    errno = EBADMSG;
    fail("unpack", "a record is malformed");
}

static void unpack(const char *base) {
    static uint8_t head[HEAD_MAX];
    uint8_t prefix[4];
    umask(0);
    while (read_all(prefix, 1)) {
        if (!read_all(prefix + 1, 3))
            malformed();
        struct reader r = {prefix, prefix + 4, false};
        size_t head_size = get_number(&r, 4);
        if (head_size > HEAD_MAX || !read_all(head, head_size))
            malformed();
        r = (struct reader){head, head + head_size, false};
        mode_t mode = (mode_t)get_number(&r, 4);
        uid_t uid = (uid_t)get_number(&r, 4);
        gid_t gid = (gid_t)get_number(&r, 4);
        uint64_t size = get_number(&r, 8), mtime_ns = get_number(&r, 8);
        char *name = slice_string(get_text(&r)), *link = slice_string(get_text(&r)), *path = NULL;
        if (!reader_done(&r) || leads_out(name) || S_ISBLK(mode) || S_ISCHR(mode) ||
            asprintf(&path, "%s%s%s", base, *name ? "/" : "", name) < 0)
            malformed();
        unpack_entry(path, mode, uid, gid, size, mtime_ns, link);
        free(name);
        free(link);
        free(path);
    }
}

// The others --------------------------------------------------------------------------------------------------------

static void remove_tree(int folder, const char *name) {
    if (!unlinkat(folder, name, 0))
        return;
    if (errno != EISDIR && errno != EPERM)
        fail("remove", name);
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *entries = fd < 0 ? NULL : fdopendir(fd);
    if (!entries)
        fail("remove", name);
    for (struct dirent *entry; (entry = readdir(entries));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            remove_tree(fd, entry->d_name);
    closedir(entries);
    if (unlinkat(folder, name, AT_REMOVEDIR))
        fail("remove", name);
}

_Noreturn void files_tool(char **argv) {
    const char *tool = argv[0];
    int count = 0;
    while (argv[count])
        count++;
    umask(022);
    if (!strcmp(tool, "pack") && count == 3) {
        pack(argv[1], argv[2]);
    } else if (!strcmp(tool, "unpack") && count == 2) {
        unpack(argv[1]);
    } else if (!strcmp(tool, "remove") && count == 2) {
        remove_tree(AT_FDCWD, argv[1]);
    } else if (!strcmp(tool, "mkdir") && count == 3) {
        char *path = strdup(argv[1]);
        struct stat there;
        make_parents(path);
        if (mkdir(path, 0700) ? errno != EEXIST || stat(path, &there) || (!S_ISDIR(there.st_mode) && (errno = EEXIST))
                              : chmod(path, (mode_t)strtoul(argv[2], NULL, 8)))
            fail("mkdir", path);
    } else if (!strcmp(tool, "symlink") && count == 3) {
        if (symlink(argv[1], argv[2]))
            fail("symlink", argv[2]);
    } else if (!strcmp(tool, "chmod") && count == 3) {
        if (chmod(argv[1], (mode_t)strtoul(argv[2], NULL, 8)))
            fail("chmod", argv[1]);
    } else if (!strcmp(tool, "chown") && count == 4) {
        if (lchown(argv[1], (uid_t)strtoul(argv[2], NULL, 10), (gid_t)strtoul(argv[3], NULL, 10)))
            fail("chown", argv[1]);
    } else if (!strcmp(tool, "tree") && (count == 3 || count == 4)) {
        tree_tool(argv[1], argv[2], argv[3]);
    } else if (!strcmp(tool, "top") && count == 1) {
        top_tool();
    } else {
        errno = ENOSYS;
        fail("no such file tool", tool);
    }
    _exit(0);
}
