// File tools. Each runs in a child of its own (a slow disk never stalls guestd), inside the workload's root, with the
// ends of a process's streams: so files cross the channel by the same offsets and acknowledgements as any output.
//
//   pack MODE PATH      records of PATH to stdout; MODE has letters: c content, r the whole tree, d one level, f follow,
//                       s holes as such, h hard links as such
//   unpack PATH         records from stdin, made below the directory PATH
//   extended            succeeds: unpack takes holes and hard links
//   remove PATH | mkdir PATH OCTAL | symlink TARGET PATH | chmod PATH OCTAL | chown PATH UID GID
//   tree (tree.c) | top (top.c)
//   mount …                  attach.c
//   append … | remount … | sysctl … | pids …        fit.c
//
//   record = u32 bytes that follow before the content | u32 mode | u32 uid | u32 gid | u64 size | u64 mtime ns
//            | text path | text link target | the content of a regular file, size bytes
//   A regular file with a link target is another name of that one, which came before. With SPARSE in its mode the
//   content is extents: u64 offset | u64 length | data, the last of them of no length.
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

enum { BUFFER = 256 << 10, PIPE = 1 << 20, HEAD_MAX = 2 * PATH_MAX + 64, EXTENT = 16, SPARSE_LEAST = 64 << 10 };
static const uint32_t SPARSE = 1u << 31;

static uint8_t buffer[BUFFER];

static _Noreturn void fail(const char *what, const char *path) {
    int error = errno ? errno : EIO;
    dprintf(2, "%s: %s: %s", what, path, strerror(error));
    _exit(error < 125 ? error : EIO);
}

void tool_failed(const char *what, const char *name) {
    int error = errno ? errno : EIO;
    dprintf(2, "%s %s: %s", what, name, strerror(error));
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
    ssize_t moved;
    while (size && (moved = splice(fd, NULL, 1, NULL, size < PIPE ? size : PIPE, 0)) > 0)  // without a copy
        size -= (uint64_t)moved;
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
            fail("seek", path);
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
        fail("list", path);
    for (struct dirent *entry; (errno = 0, entry = readdir(entries));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        char *child = NULL;
        if (asprintf(&child, "%s%s%s", path, *path ? "/" : "", entry->d_name) < 0)
            fail("list", path);
        pack_at(fd, entry->d_name, child, levels - 1, false, device);
        free(child);
    }
    if (errno)
        fail("list", path);
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
        fail("stat", *path ? path : name);
    }
    bool regular = S_ISREG(info.st_mode), content = regular && packing.content;
    bool enter = S_ISDIR(info.st_mode) && levels && (!device || info.st_dev == device || major(info.st_dev));
    if (S_ISLNK(info.st_mode) && readlinkat(folder, name, link, sizeof link - 1) < 0)
        fail("readlink", name);
    const char *first = content && packing.links && info.st_nlink > 1 ? first_name(&info, path) : NULL;
    if (first) {
        pack_record(&info, 0, 0, path, first);
        return;
    }
    if (content || enter) {
        fd = openat(folder, name, flags);
        if (fd < 0)
            fail("open", *path ? path : name);
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

static void pack(const char *mode, const char *path) {
    int levels = strchr(mode, 'r') ? INT_MAX : strchr(mode, 'd') ? 1 : 0;
    packing.content = strchr(mode, 'c');
    packing.holes = strchr(mode, 's');
    packing.links = strchr(mode, 'h');
    fcntl(1, F_SETPIPE_SZ, PIPE);
    pack_at(AT_FDCWD, path, "", levels, strchr(mode, 'f'), 0);
}

// Unpack ------------------------------------------------------------------------------------------------------------

void make_parents(char *path) {
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

static void unpack_extents(int fd, uint64_t size, const char *path) {
    for (;;) {
        uint8_t head[EXTENT];
        struct reader r = {head, head + EXTENT, false};
        if (!read_all(head, EXTENT)) {
            errno = EPIPE;
            fail("the content ends early", path);
        }
        uint64_t offset = get_number(&r, 8), length = get_number(&r, 8);
        if (!length)
            break;
        if (offset > size || length > size - offset || lseek(fd, (off_t)offset, SEEK_SET) < 0) {
            errno = EBADMSG;
            fail("an extent is malformed", path);
        }
        unpack_content(fd, length, path);
    }
    if (ftruncate(fd, (off_t)size))
        fail("write", path);
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

static void unpack_name(const char *base, char *path, const char *first) {
    char *target = NULL;
    if (asprintf(&target, "%s/%s", base, first) < 0)
        fail("link", path);
    make_parents(path);
    if (strcmp(path, target)) {
        make_way(path, false);
        if (link(target, path))
            fail("link", path);
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
        fail("create", path);
    if (S_ISREG(mode) && flags & SPARSE)
        unpack_extents(fd, size, path);
    else if (S_ISREG(mode))
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
    } else if (!strcmp(tool, "extended") && count == 1) {
        // nothing to do: that it is known is the answer
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
    } else if (!strcmp(tool, "mount") && count == 8) {
        attach_tool(argv);
    } else if (!fit_tool(argv, count)) {
        errno = ENOSYS;
        fail("no such file tool", tool);
    }
    _exit(0);
}
