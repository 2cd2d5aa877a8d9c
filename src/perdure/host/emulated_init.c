/* PID 1 of the emulated host: a QEMU VM that lends this machine a working KVM.
 *
 * It has three things to do, quickly, for everything here runs some forty times slower than outside:
 *   1. put together a root: the machine's own files (virtiofs, read-only) under a tmpfs, and over it, at their own
 *      absolute path, the folders that are shared for writing;
 *   2. bring up the loopback and the network cards;
 *   3. run the launcher, and run it again whenever it ends. All else is reaped.
 * A shell would start a process for each step; this is one process, and the modules that the root does not need load
 * beside the launcher's start.
 *
 * In the initramfs, /mod/order names the modules of /mod to load before the root is mounted, one a line, and /mod/later
 * those to load meanwhile. /config, written for each start, is a sequence of "key=value" records, each ended by a NUL:
 *   share=TAG PATH   a virtiofs share mounted writable at PATH
 *   address=, netmask=, gateway=     of eth0
 *   line=, line-netmask=             of eth1, where there is one: the line's own card
 *   env=NAME=VALUE, arg=WORD         of the launcher, in order
 *   folder=PATH      the launcher's working directory
 *
 * Run on the machine itself with the one argument "tsc-khz", it prints the frequency of the machine's TSC, which is the
 * emulated processors' too (QEMU passes it on), and ends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONFIG_MAX (256 << 10)
#define WORDS_MAX 256
#define CLEAN_EVERY_MS 100
#define CLEAN_MIN (2 << 20)
#define CLEAN_MAX ((size_t)64 << 20)

static char config[CONFIG_MAX + 1];
static char *config_end;

static void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("init: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    va_end(arguments);
}

/* Nothing can be repaired from in here: say why on the console and power off, so that the starter sees QEMU end. */
static void fail(const char *what) {
    say("%s: %s", what, strerror(errno));
    sync();
    reboot(RB_POWER_OFF);
    _exit(1);
}

/* Calls visit with the value of each record whose key is the given one; returns the last value, or NULL. */
static char *records(const char *key, void (*visit)(char *value)) {
    size_t length = strlen(key);
    char *found = NULL;
    for (char *at = config; at < config_end; at += strlen(at) + 1) {
        if (strncmp(at, key, length) != 0 || at[length] != '=')
            continue;
        found = at + length + 1;
        if (visit)
            visit(found);
    }
    return found;
}

static void read_config(void) {
    int file = open("/config", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail("/config");
    size_t size = 0;
    ssize_t got;
    while (size < CONFIG_MAX && (got = read(file, config + size, CONFIG_MAX - size)) > 0)
        size += (size_t)got;
    close(file);
    config_end = config + size;
}

static void make_folders(const char *path) {
    char copy[4096];
    if (snprintf(copy, sizeof copy, "%s", path) >= (int)sizeof copy) {
        errno = ENAMETOOLONG;
        fail(path);
    }
    for (char *at = copy + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            mkdir(copy, 0755);
            *at = '/';
        }
    mkdir(copy, 0755);
}

static void attach(const char *source, const char *target, const char *type, unsigned long flags, const char *options) {
    mkdir(target, 0755);
    if (mount(source, target, type, flags, options) < 0)
        fail(target);
}

static void load_modules(const char *list) {
    FILE *names = fopen(list, "re");
    if (!names)
        fail(list);
    char name[128], path[256];
    while (fscanf(names, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/mod/%s", name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || (syscall(SYS_finit_module, file, "", 0) < 0 && errno != EEXIST))
            say("module %s: %s", name, strerror(errno)); /* whoever needs it says more */
        if (file >= 0)
            close(file);
    }
    fclose(names);
}

/* Switches all processors but the first off or on; the folder is /sys/devices/system/cpu. */
static void switch_processors(int folder, const char *to) {
    for (int number = 1;; number++) {
        char path[64];
        snprintf(path, sizeof path, "cpu%d/online", number);
        int file = openat(folder, path, O_WRONLY | O_CLOEXEC);
        if (file < 0)
            return; /* there are no more */
        if (write(file, to, 1) != 1)
            say("processor %d to %s: %s", number, to, strerror(errno));
        close(file);
    }
}

/* Holds one VM, that never runs, for as long as the emulated host lives. The kernel rewrites its own scheduler (static
 * keys: preempt_notifier_key, apic_sw_disabled) whenever the first VM comes or the last one goes, by way of an int3; and
 * when another processor translates that code in the same moment, QEMU 7.2 keeps a translation of the int3 for ever:
 * all processors then spin in it, and everything in here hangs. With this VM the rewriting happens once, and while there
 * is only one processor, so that nobody else can translate anything. */
static void hold_a_vm(int devices, int processors) {
    switch_processors(processors, "0");
    int kvm = openat(devices, "kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0 || ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
        say("no VM to hold: %s", strerror(errno)); /* doctor and the first sandbox say more */
    switch_processors(processors, "1");
    openat(devices, "perdure-kvm", O_CREAT | O_WRONLY, 0400); /* the launcher starts no machine before this is there */
    for (;;)
        pause();
}

static void mount_share(char *value) { /* "TAG PATH" */
    char *path = strchr(value, ' ');
    if (!path)
        return;
    *path++ = 0;
    char target[4096];
    snprintf(target, sizeof target, "/root%s", path);
    make_folders(target);
    if (mount(value, target, "virtiofs", MS_NOSUID | MS_NODEV, NULL) < 0)
        fail(target);
    path[-1] = ' ';
}

static void assemble_root(void) {
    attach("root", "/lower", "virtiofs", MS_RDONLY, NULL);
    attach("tmpfs", "/upper", "tmpfs", 0, "size=50%,mode=755");
    mkdir("/upper/files", 0755);
    mkdir("/upper/work", 0755);
    attach("overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work");
    const char *kernel_folders[] = {"/proc", "/sys", "/dev"};
    for (int i = 0; i < 3; i++) {
        char target[32];
        snprintf(target, sizeof target, "/root%s", kernel_folders[i]);
        mkdir(target, 0755);
        if (mount(kernel_folders[i], target, NULL, MS_MOVE, NULL) < 0)
            fail(target);
    }
    attach("devpts", "/root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666");
    attach("shm", "/root/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "size=25%");
    make_folders("/root/run/perdure");
    attach("below", "/root/run/perdure", "tmpfs", MS_NOSUID | MS_NODEV, "size=75%,mode=700");
    make_folders("/root/sys/fs/cgroup");
    attach("cgroup", "/root/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    records("share", mount_share);
    if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        fail("the new root");
}

static void set_address(int control, struct ifreq *card, unsigned long request, const char *address) {
    struct sockaddr_in *slot = (struct sockaddr_in *)&card->ifr_addr;
    memset(slot, 0, sizeof *slot);
    slot->sin_family = AF_INET;
    if (!address || inet_pton(AF_INET, address, &slot->sin_addr) != 1 || ioctl(control, request, card) < 0)
        say("%s: address %s: %s", card->ifr_name, address ? address : "(none)", strerror(errno));
}

static void raise_card(int control, const char *name, const char *address, const char *netmask) {
    struct ifreq card = {0};
    snprintf(card.ifr_name, sizeof card.ifr_name, "%s", name);
    if (address) {
        set_address(control, &card, SIOCSIFADDR, address);
        set_address(control, &card, SIOCSIFNETMASK, netmask);
    }
    if (ioctl(control, SIOCGIFFLAGS, &card) < 0) {
        say("%s: %s", name, strerror(errno));
        return;
    }
    card.ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &card) < 0)
        say("%s: %s", name, strerror(errno));
}

static void add_default_route(int control, const char *gateway) {
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in *hop = (struct sockaddr_in *)&route.rt_gateway;
    hop->sin_family = route.rt_dst.sa_family = route.rt_genmask.sa_family = AF_INET;
    if (!gateway || inet_pton(AF_INET, gateway, &hop->sin_addr) != 1 || ioctl(control, SIOCADDRT, &route) < 0)
        say("the route by %s: %s", gateway ? gateway : "(none)", strerror(errno));
}

static void start_network(void) {
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    raise_card(control, "lo", NULL, NULL);
    raise_card(control, "eth0", records("address", NULL), records("netmask", NULL));
    add_default_route(control, records("gateway", NULL));
    const char *line = records("line", NULL);
    if (line)
        raise_card(control, "eth1", line, records("line-netmask", NULL));
    close(control);
}

static char *arguments[WORDS_MAX], *environment[WORDS_MAX];
static int argument_count, environment_count;

static void add_argument(char *value) {
    if (argument_count < WORDS_MAX - 1)
        arguments[argument_count++] = value;
}

static void add_environment(char *value) {
    if (environment_count < WORDS_MAX - 1)
        environment[environment_count++] = value;
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static pid_t start_launcher(void) {
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    setsid();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    char *folder = records("folder", NULL);
    if (folder && chdir(folder) < 0)
        say("%s: %s", folder, strerror(errno));
    execve(arguments[0], arguments, environment);
    say("%s: %s", arguments[0], strerror(errno));
    _exit(127);
}

/* Off the first processor, which is kept free of machines (emulated.py says why): what would run there takes time from
 * them outside. */
static void leave_first_processor(void) {
    cpu_set_t others;
    CPU_ZERO(&others);
    for (int number = 1; number < CPU_SETSIZE; number++)
        CPU_SET(number, &others);
    sched_setaffinity(0, sizeof others, &others); /* in vain while the others are off: it is tried again */
}

static unsigned long long free_bytes(void) {
    struct sysinfo now;
    return sysinfo(&now) == 0 ? (unsigned long long)now.freeram * now.mem_unit : 0;
}

/* Pages from which code was executed are slow to write to under TCG, until all translations of it are gone: the first
 * writer after a machine's end pays for them. Here one that nobody waits for writes to them, as soon as they are free:
 * what was freed last is given out first. */
static void clean_free_pages(void) {
    sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    for (unsigned long long before = free_bytes();;) {
        nanosleep(&(struct timespec){.tv_nsec = CLEAN_EVERY_MS * 1000000L}, NULL);
        unsigned long long now = free_bytes();
        if (now > before + CLEAN_MIN) {
            leave_first_processor();
            size_t size = now - before < CLEAN_MAX ? (size_t)(now - before) : CLEAN_MAX;
            void *pages =
                mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
            if (pages != MAP_FAILED)
                munmap(pages, size);
            now = free_bytes();
        }
        before = now;
    }
}

static void start_cleaning(void) {
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    /* it inherits the score: no machine must be killed for what it holds */
    if (score >= 0 && write(score, "1000", 4) == 4 && fork() == 0)
        clean_free_pages();
    if (score >= 0 && (write(score, "0", 1) != 1 || close(score) < 0))
        fail("/proc/self/oom_score_adj");
}

struct tick {
    int64_t ns;
    uint64_t tsc;
};

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* The clock and the TSC at one moment: of several readings the one that took least, so that nothing came between. */
static struct tick read_tick(void) {
    struct tick best = {0};
    int64_t least = INT64_MAX;
    for (int i = 0; i < 16; i++) {
        int64_t before = clock_ns();
        uint64_t tsc = __builtin_ia32_rdtsc();
        int64_t took = clock_ns() - before;
        if (took < least) {
            least = took;
            best = (struct tick){.ns = before + took / 2, .tsc = tsc};
        }
    }
    return best;
}

/* Good to a millionth also on a busy machine: sleeping longer than asked for lengthens both sides. */
static int print_tsc_khz(void) {
    struct tick first = read_tick();
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    struct tick last = read_tick();
    printf("%.0f\n", (double)(last.tsc - first.tsc) * 1e6 / (double)(last.ns - first.ns));
    return 0;
}

int main(int count, char **words) {
    if (count == 2 && strcmp(words[1], "tsc-khz") == 0)
        return print_tsc_khz();
    say("started"); /* emulated.py waits for this: the kernel's own start ends here */
    attach("proc", "/proc", "proc", 0, NULL);
    attach("sysfs", "/sys", "sysfs", 0, NULL);
    mkdir("/dev", 0755);
    if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL) < 0 && errno != EBUSY)
        fail("/dev");
    read_config();
    load_modules("/mod/order");

    /* both folders move away while the modules load */
    int devices = open("/dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int processors = open("/sys/devices/system/cpu", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fork() == 0) {
        load_modules("/mod/later");
        hold_a_vm(devices, processors);
    }
    close(devices);
    close(processors);
    start_cleaning();
    assemble_root();
    start_network();
    say("root and network are up"); /* emulated.py waits for this, too */
    records("arg", add_argument);
    records("env", add_environment);
    if (!argument_count) {
        errno = EINVAL;
        fail("no launcher in /config");
    }
    double started = now_s();
    pid_t launcher = start_launcher();
    for (;;) {
        int status;
        pid_t pid = wait(&status);
        if (pid != launcher)
            continue; /* an orphan: it only had to be reaped */
        say("the launcher ended with status 0x%x, starting it again", status);
        if (now_s() - started < 2.0)
            sleep(1); /* one that cannot start must not take the whole processor */
        started = now_s();
        launcher = start_launcher();
    }
}
