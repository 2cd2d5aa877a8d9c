/* The names in a folder, "--", and what belowline.LOOK prints. After each test that is looked at, and a shell with its
 * three programs takes ten times as long where processors are emulated: 1.3 s of one. Who ends meanwhile is not told. */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void stat_of(const char *pid) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%s/stat", pid);
    int fd = open(path, O_RDONLY);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (size > 0) fwrite(text, 1, size, stdout);
    if (fd >= 0) close(fd);
}

static void cwd_of(const char *pid) {
    char path[64], target[4096];
    snprintf(path, sizeof path, "/proc/%s/cwd", pid);
    ssize_t size = readlink(path, target, sizeof target);
    if (size >= 0) printf("%s -> %.*s\n", path, (int)size, target);
}

int main(int argc, char **argv) {
    struct dirent *entry;
    DIR *folder = argc > 1 ? opendir(argv[1]) : NULL;
    while (folder && (entry = readdir(folder)))
        if (entry->d_name[0] != '.') puts(entry->d_name);
    puts("--");
    DIR *proc = opendir("/proc");
    if (!proc) return 1;
    while ((entry = readdir(proc))) {
        if (!isdigit((unsigned char)entry->d_name[0])) continue;
        cwd_of(entry->d_name);
        stat_of(entry->d_name);
    }
    return fflush(stdout) ? 1 : 0;
}
