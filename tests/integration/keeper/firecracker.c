// Stands for Firecracker: serves an HTTP socket and agrees to everything. Static, for it runs in an empty jail.
//
// What it does beside that is the word in the file of the state that it is told to load, or in its own name:
//   refuse-me exit-zero talk-much wait-here (reads the drive "wait" to its end)     stopped- broken-
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <fcntl.h>

static char data[1 << 16], word[64];
static size_t length;

static void read_all(const char *path, char *into, size_t most) {
    int fd = open(path, O_RDONLY);
    char dropped[4096];
    ssize_t count;
    size_t held = 0;
    while (fd >= 0 && (count = read(fd, into ? into + held : dropped, into ? most - held : sizeof dropped)) > 0)
        held += into ? (size_t)count : 0;
    if (into)
        into[held] = 0;
    close(fd);
}

static void say(int connection, const char *text) {
    if (write(connection, text, strlen(text)) < 0)
        exit(1);
}

int main(int argc, char **argv) {
    const char *path = "api.sock";
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], "--api-sock"))
            path = argv[i + 1];
    if (strstr(argv[0], "stopped-"))
        raise(SIGSTOP);
    if (strstr(argv[0], "broken-"))
        return 3;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0) {
        perror(path);
        return 4;
    }
    printf("stand-in speaks\n");
    fflush(stdout);
    int connection = accept(listener, NULL, NULL);
    for (ssize_t count; (count = read(connection, data + length, sizeof data - 1 - length)) > 0;) {
        length += (size_t)count;
        data[length] = 0;
        for (char *body; (body = strstr(data, "\r\n\r\n"));) {
            body += 4;
            char *head = strcasestr(data, "content-length:");
            char *end = body + (head && head < body ? strtoul(head + 15, NULL, 10) : 0);
            if (end > data + length)
                break;
            *word = 0;
            if (memmem(body, (size_t)(end - body), "snapshot_path", 13))
                read_all("state", word, sizeof word - 1);
            if (strstr(word, "wait-here"))
                read_all("wait", NULL, 0);
            if (strstr(word, "refuse-me"))
                say(connection, "HTTP/1.1 400 Bad\r\nContent-Length: 23\r\n\r\n{\"fault_message\":\"no!\"}");
            else
                say(connection, "HTTP/1.1 204 No Content\r\n\r\n");
            for (int line = 0; strstr(word, "talk-much") && line < 20000; line++)
                printf("line %d %0100d\n", line, 0);
            fflush(stdout);
            if (strstr(word, "exit-zero"))
                return 0;
            length -= (size_t)(end - data);
            memmove(data, end, length + 1);
        }
    }
    for (;;)
        pause();
}
