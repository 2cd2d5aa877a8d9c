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
#include "records.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void files_fail(const char *what, const char *path) {
    int error = errno ? errno : EIO;
    dprintf(2, "%s: %s: %s", what, path, strerror(error));
    _exit(error < 125 ? error : EIO);
}

void tool_failed(const char *what, const char *name) {
    int error = errno ? errno : EIO;
    dprintf(2, "%s %s: %s", what, name, strerror(error));
    _exit(error < 125 ? error : EIO);
}

void write_all(int fd, const void *data, size_t size, const char *path) {
    const char *at = data;
    while (size) {
        ssize_t count = write(fd, at, size);
        if (count < 0 && errno != EINTR)
            files_fail("write", path);
        if (count > 0) {
            at += count;
            size -= (size_t)count;
        }
    }
}

bool read_all(void *data, size_t size) {
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

void make_parents(char *path) {
    for (char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = 0;
        if (mkdir(path, 0755) && errno != EEXIST)
            files_fail("mkdir", path);
        *at = '/';
    }
}

static void remove_tree(int folder, const char *name) {
    if (!unlinkat(folder, name, 0))
        return;
    if (errno != EISDIR && errno != EPERM)
        files_fail("remove", name);
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *entries = fd < 0 ? NULL : fdopendir(fd);
    if (!entries)
        files_fail("remove", name);
    for (struct dirent *entry; (entry = readdir(entries));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            remove_tree(fd, entry->d_name);
    closedir(entries);
    if (unlinkat(folder, name, AT_REMOVEDIR))
        files_fail("remove", name);
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
            files_fail("mkdir", path);
    } else if (!strcmp(tool, "symlink") && count == 3) {
        if (symlink(argv[1], argv[2]))
            files_fail("symlink", argv[2]);
    } else if (!strcmp(tool, "chmod") && count == 3) {
        if (chmod(argv[1], (mode_t)strtoul(argv[2], NULL, 8)))
            files_fail("chmod", argv[1]);
    } else if (!strcmp(tool, "chown") && count == 4) {
        if (lchown(argv[1], (uid_t)strtoul(argv[2], NULL, 10), (gid_t)strtoul(argv[3], NULL, 10)))
            files_fail("chown", argv[1]);
    } else if (!strcmp(tool, "tree") && (count == 3 || count == 4)) {
        tree_tool(argv[1], argv[2], argv[3]);
    } else if (!strcmp(tool, "top") && count == 1) {
        top_tool();
    } else if (!strcmp(tool, "mount") && count == 8) {
        attach_tool(argv);
    } else if (!fit_tool(argv, count)) {
        errno = ENOSYS;
        files_fail("no such file tool", tool);
    }
    _exit(0);
}
