// The child's side of exec, as Docker's users know it: user, groups, limits, working directory, environment, PATH.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guestd.h"

enum { GROUPS = 1 << 16, OPEN_FILES = 65536 };
static const char capabilities[] = "capabilities ";
static const char default_path[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static int report_fd = -1;

struct account {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS];
    size_t group_count;
    char name[64], home[PATH_MAX];
};

static _Noreturn void fail(unsigned code, const char *format, ...) {
    char report[2 + 250] = {(char)code, (char)(code >> 8)};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report + 2, sizeof report - 2, format, arguments);
    va_end(arguments);
    if (write(report_fd, report, 2 + strlen(report + 2)) < 0)
        _exit(125);
    _exit(126);
}

// Field number of a line "a:b:c", NUL-terminated in place; NULL: there are not so many.
static char *field(char *line, int number) {
    while (number-- > 0) {
        line = strchr(line, ':');
        if (!line)
            return NULL;
        line++;
    }
    return line;
}

static bool field_is(const char *at, const char *text) {
    size_t length = strlen(text);
    return at && !strncmp(at, text, length) && (at[length] == ':' || at[length] == '\n' || !at[length]);
}

static bool number(const char *text, uint32_t *value) {
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    unsigned long found = strtoul(text, &end, 10);
    *value = (uint32_t)found;
    return !*end && found < UINT32_MAX;
}

static bool lists_member(char *members, const char *name) {
    size_t length = strlen(name);
    while (members && length) {
        if (!strncmp(members, name, length) && strchr(",\n", members[length]))
            return true;
        members = strchr(members, ',');
        members = members ? members + 1 : NULL;
    }
    return false;
}

static bool find_user(const char *user, struct account *account) {
    uint32_t uid = UINT32_MAX;
    bool numeric = number(user, &uid), found = false;
    char line[4096];
    FILE *passwd = fopen("/etc/passwd", "re");
    while (passwd && !found && fgets(line, sizeof line, passwd)) {
        char *uid_at = field(line, 2), *gid_at = field(line, 3), *home = field(line, 5);
        if (!uid_at || !gid_at)
            continue;
        found = numeric ? strtoul(uid_at, NULL, 10) == uid : field_is(line, user);
        if (!found)
            continue;
        account->uid = (uid_t)strtoul(uid_at, NULL, 10);
        account->gid = (gid_t)strtoul(gid_at, NULL, 10);
        if (home && home[strcspn(home, ":\n")])
            snprintf(account->home, sizeof account->home, "%.*s", (int)strcspn(home, ":\n"), home);
        snprintf(account->name, sizeof account->name, "%.*s", (int)strcspn(line, ":"), line);
    }
    if (passwd)
        fclose(passwd);
    if (!found && numeric)
        account->uid = uid;
    return found || numeric;
}

static gid_t *room_for_group(struct account *account) {
    if (account->group_count == GROUPS)  // NGROUPS_MAX of linux/limits.h: setgroups(2) takes no more
        fail(REPLY_INVALID, "a process is in at most %d groups", GROUPS);
    return &account->groups[account->group_count++];
}

// With group NULL: the groups that list the account. Else: *gid is that one's.
static bool find_groups(const char *group, struct account *account, gid_t *gid) {
    uint32_t id = UINT32_MAX;
    bool numeric = group && number(group, &id), found = false;
    char *line = NULL;
    size_t capacity = 0;
    FILE *file = fopen("/etc/group", "re");
    while (file && !numeric && getline(&line, &capacity, file) >= 0) {
        char *gid_at = field(line, 2);
        if (!gid_at)
            continue;
        if (group && field_is(line, group)) {
            id = (uint32_t)strtoul(gid_at, NULL, 10);
            found = true;
        } else if (!group && lists_member(field(line, 3), account->name)) {
            *room_for_group(account) = (gid_t)strtoul(gid_at, NULL, 10);
        }
    }
    if (file)
        fclose(file);
    free(line);
    if (numeric || found)
        *gid = id;
    return !group || numeric || found;
}

static void find_account(char *user, char **more_groups, struct account *account) {
    snprintf(account->home, sizeof account->home, "/");
    char *group = strchr(user, ':');
    if (group)
        *group++ = 0;
    if (!find_user(*user ? user : "0", account))
        fail(REPLY_INVALID, "unable to find user %s: no such name in the image's /etc/passwd", user);
    if (!find_groups(group && *group ? group : NULL, account, &account->gid))
        fail(REPLY_INVALID, "unable to find group %s: no such name in the image's /etc/group", group);
    for (; *more_groups; more_groups++)
        if (!find_groups(*more_groups, account, room_for_group(account)))
            fail(REPLY_INVALID, "unable to find group %s: no such name in the image's /etc/group", *more_groups);
}

// What it could gain by exec(2) or has as root: those of the mask (capabilities(7)).
static void bound_capabilities(uint64_t mask) {
    for (int one = 0; one < 64 && prctl(PR_CAPBSET_READ, one, 0, 0, 0) >= 0; one++)
        if (!(mask >> one & 1) && prctl(PR_CAPBSET_DROP, one, 0, 0, 0))
            fail(REPLY_FAILED, "cannot drop capability %d: %s", one, strerror(errno));
}

// Each "RESOURCE SOFT HARD", numbers as setrlimit(2) has them, -1: none; or "capabilities MASK", in hexadecimal; or
// "no-new-privileges".
static void set_limits(char **limits) {
    if (!guestd.test) {
        struct rlimit files = {OPEN_FILES, OPEN_FILES};
        setrlimit(RLIMIT_NOFILE, &files);
    }
    for (; *limits; limits++) {
        char *at = *limits;
        if (!strncmp(at, capabilities, strlen(capabilities))) {
            bound_capabilities(strtoull(at + strlen(capabilities), NULL, 16));
            continue;
        }
        if (!strcmp(at, "no-new-privileges")) {
            if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
                fail(REPLY_FAILED, "no-new-privileges: %s", strerror(errno));
            continue;
        }
        int resource = (int)strtol(at, &at, 10);
        rlim_t soft = (rlim_t)strtoull(at, &at, 10), hard = (rlim_t)strtoull(at, &at, 10);
        struct rlimit limit = {soft, hard};
        if (setrlimit((unsigned)resource, &limit))
            fail(REPLY_INVALID, "cannot set limit %d (setrlimit) to %lld:%lld: %s", resource, (long long)soft,
                 (long long)hard, strerror(errno));
    }
}

static void enter_cwd(const char *cwd) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", *cwd ? cwd : "/");
    if (*path != '/')
        fail(REPLY_INVALID, "the working directory '%s' is not an absolute path", path);
    for (char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = 0;
        mkdir(path, 0755);
        *at = '/';
    }
    mkdir(path, 0755);
    if (chdir(path))
        fail(REPLY_NOT_EXECUTABLE, "cannot enter the working directory '%s': %s", path, strerror(errno));
}

static void become(const struct account *account) {
    if (geteuid())
        return;  // a test that is not run by root
    if (setgroups(account->group_count, account->groups) || setresgid(account->gid, account->gid, account->gid) ||
        setresuid(account->uid, account->uid, account->uid))
        fail(REPLY_FAILED, "cannot become user %u: %s", account->uid, strerror(errno));
}

// perdure-guest is found by the programs of a run, behind whatever they have themselves.
static void add_tools(void) {
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s:" TOOLS, getenv("PATH"));
    if (length < (int)sizeof path)
        setenv("PATH", path, 1);
}

static void set_environment(const struct spawn *spawn, const struct account *account) {
    char host[256] = "";
    clearenv();
    for (char **variable = spawn->env; *variable; variable++)
        if (strchr(*variable, '=') > *variable)
            putenv(*variable);
    gethostname(host, sizeof host - 1);
    setenv("PATH", default_path, 0);
    if (getenv("PERDURE_DOOR"))
        add_tools();
    setenv("HOME", account->home, 0);
    setenv("HOSTNAME", host, 0);
    if (spawn->tty)
        setenv("TERM", "xterm", 0);
}

static void set_streams(const struct spawn *spawn, const struct account *account) {
    setsid();
    const int from[3] = {spawn->in, spawn->out, spawn->error};
    for (int fd = 0; fd < 3; fd++) {
        if (dup2(from[fd], fd) < 0)
            fail(REPLY_FAILED, "dup2: %s", strerror(errno));
        if (fd || spawn->tty)
            (void)!fchown(fd, account->uid, (gid_t)-1);  // so that it can open /dev/stdout again
    }
    if (spawn->tty && ioctl(0, TIOCSCTTY, 0))
        fail(REPLY_FAILED, "no controlling terminal: %s", strerror(errno));
}

void close_from(int fd) { syscall(SYS_close_range, fd, ~0u, 0); }

static void reset_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    for (int signal_number = 1; signal_number < 32; signal_number++)
        signal(signal_number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void execute(char **argv) {
    const char *name = argv[0];
    int error = ENOENT;
    if (strchr(name, '/')) {
        execv(name, argv);
        error = errno;
    } else if (*name) {
        const char *path = getenv("PATH");
        for (const char *end; path; path = *end ? end + 1 : NULL) {
            char file[PATH_MAX];
            struct stat info;
            end = strchrnul(path, ':');
            int length = snprintf(file, sizeof file, "%.*s%s%s", (int)(end - path), path, end > path ? "/" : "./", name);
            if (length >= (int)sizeof file || stat(file, &info) || S_ISDIR(info.st_mode))
                continue;
            execv(file, argv);
            error = errno;
            if (error != EACCES)
                break;  // it is there, and it does not run: a later one of the same name must not hide that
        }
    }
    if (error == ENOENT && !strchr(name, '/'))
        fail(REPLY_NOT_FOUND, "exec: \"%.120s\": executable file not found in $PATH", name);
    bool missing = error == ENOENT || error == ENOTDIR;
    fail(missing ? REPLY_NOT_FOUND : REPLY_NOT_EXECUTABLE, "exec: \"%.120s\": %s", name,
         error == ENOEXEC ? "exec format error" : missing ? "no such file or directory" : strerror(error));
}

_Noreturn void spawn_child(const struct spawn *spawn) {
    static struct account account;
    report_fd = spawn->status_fd;
    umask(022);
    // They see what the workload's root is made of, and its cgroup.
    bool is_outside = spawn->tool && (!strcmp(spawn->argv[0], "tree") || !strcmp(spawn->argv[0], "pids"));
    if (!guestd.test && (fchdir(guestd.root_fd) || (!is_outside && (chroot(".") || chdir("/")))))
        fail(REPLY_FAILED, "cannot enter the image: %s", strerror(errno));
    if (spawn->tool) {
        set_streams(spawn, &account);
        reset_signals();
        close_from(3);  // it does not exec, so guestd's own descriptors would stay open: the end of its input, too
        files_tool(spawn->argv);
    }
    find_account(spawn->user, spawn->groups, &account);
    set_streams(spawn, &account);
    enter_cwd(spawn->cwd);
    set_limits(spawn->limits);
    become(&account);
    set_environment(spawn, &account);
    reset_signals();
    execute(spawn->argv);
}
