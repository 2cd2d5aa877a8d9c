// peer SOCKET BLOCKS: a process whose memory a pager serves, as Firecracker's is. It maps BLOCKS of memory, registers them
// with a userfaultfd, hands that to the pager, and then does what each line of stdin says. Unlike perdure.testing.faulting
// it faults from many threads at once, and at the speed of the machine.
//   connect                     no answer
//   touch FIRST COUNT THREADS   read every block in order; several threads take turns. Answers with the seconds it took
//   scatter SEED THREADS        each thread reads every block, in an order of its own. Answers with the seconds
//   sum FIRST COUNT             answers with the FNV-1a hash of all the bytes
//   unmap                       take the memory away from under the pager; it is told
//   flood ROUNDS THREADS        half of the threads remove blocks (those with number % 4 == 1) and look that they are
//                               zeros afterwards, the others read the rest. Answers with the number of wrong blocks
//   race PAUSE                  removes blocks at the moment at which they are filled. Answers in the same way
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, THREADS_MAX = 64 };

static volatile uint8_t *memory;
static size_t blocks;
static int uffd = -1, connection = -1;
static atomic_size_t wrong, turn, done;

static void need(int condition, const char *what) {
    if (!condition) {
        perror(what);
        exit(1);
    }
}

static void map_memory(void) {
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    uffd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK) : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    need(uffd >= 0, "userfaultfd");
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP};
    need(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
    size_t size = (blocks + 1) * BLOCK;  // the last one is registered, but the pager is not told of it
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(data != MAP_FAILED, "mmap");
    madvise(data, size, MADV_NOHUGEPAGE);
    struct uffdio_register range = {.range = {(uintptr_t)data, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    need(!ioctl(uffd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
    memory = data;
}

static void connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    need(!connect(connection, (struct sockaddr *)&address, sizeof address), "connect");
    char text[256];
    int length = snprintf(text, sizeof text, "[{\"base_host_virt_addr\": %llu, \"size\": %zu, \"offset\": 0, \"page_size\": %d}]",
                          (unsigned long long)(uintptr_t)memory, blocks * BLOCK, BLOCK);
    struct iovec part = {text, (size_t)length};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr head;
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &uffd, sizeof uffd);
    need(sendmsg(connection, &message, MSG_NOSIGNAL) == length, "sendmsg");
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

struct part {
    size_t number, threads, first, count, seed;
};

static void *touch(void *argument) {
    struct part *part = argument;
    for (size_t i = part->number; i < part->count; i += part->threads)
        (void)memory[(part->first + i) * BLOCK];
    return NULL;
}

static void *scatter(void *argument) {
    struct part *part = argument;
    uint32_t *order = malloc(blocks * sizeof *order);
    uint64_t state = part->seed * 2654435761u + part->number + 1;
    for (size_t i = 0; i < blocks; i++)
        order[i] = (uint32_t)i;
    for (size_t i = blocks - 1; i; i--) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        size_t other = state % (i + 1);
        uint32_t held = order[i];
        order[i] = order[other];
        order[other] = held;
    }
    for (size_t i = 0; i < blocks; i++)
        (void)memory[(size_t)order[i] * BLOCK];
    free(order);
    return NULL;
}

static void remove_block(size_t block) {
    static const uint8_t zeros[BLOCK];
    uint8_t *place = (uint8_t *)memory + block * BLOCK;
    madvise(place, BLOCK, MADV_DONTNEED);
    wrong += memcmp(place, zeros, BLOCK) != 0;
}

static void *flood(void *argument) {
    struct part *part = argument;
    size_t removers = (part->threads + 1) / 2;
    if (part->number >= removers) {
        for (size_t block = part->number - removers; block < blocks; block += part->threads - removers)
            if (block % 4 != 1)
                (void)memory[block * BLOCK];
        return NULL;
    }
    for (size_t round = 0; round < part->count; round++)
        for (size_t block = 1 + 4 * part->number; block < blocks; block += 4 * removers) {
            if (round % 2)
                (void)memory[block * BLOCK];  // so that there is something to remove
            remove_block(block);
        }
    return NULL;
}

// Two threads: one touches the first of every 16 blocks, the other removes one of those that come with it at that moment.
static void *race(void *argument) {
    struct part *part = argument;
    for (size_t i = 0; i < blocks / 16; i++) {
        size_t first = i * 7919 % (blocks / 16) * 16;  // no order in which anybody would read ahead
        if (part->number == 0) {
            atomic_store(&turn, i + 1);
            (void)memory[first * BLOCK];
            while (atomic_load(&done) < i + 1)
                ;
        } else {
            while (atomic_load(&turn) < i + 1)
                ;
            for (volatile size_t pause = 0; pause < i % 64 * part->count; pause++)
                ;
            remove_block(first + 13);
            atomic_store(&done, i + 1);
        }
    }
    return NULL;
}

static double in_threads(void *(*run)(void *), struct part common) {
    static struct part parts[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    double began = seconds();
    for (size_t i = 0; i < common.threads; i++) {
        parts[i] = common;
        parts[i].number = i;
        need(!pthread_create(&threads[i], NULL, run, &parts[i]), "pthread_create");
    }
    for (size_t i = 0; i < common.threads; i++)
        pthread_join(threads[i], NULL);
    return seconds() - began;
}

static uint64_t sum(size_t first, size_t count) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = first * BLOCK; i < (first + count) * BLOCK; i++)
        hash = (hash ^ memory[i]) * 1099511628211u;
    return hash;
}

int main(int argc, char **argv) {
    char line[256], op[32];
    need(argc == 3, "usage: peer SOCKET BLOCKS");
    blocks = strtoul(argv[2], NULL, 10);
    map_memory();
    while (fgets(line, sizeof line, stdin)) {
        size_t a = 0, b = 0, c = 0;
        sscanf(line, "%31s %zu %zu %zu", op, &a, &b, &c);
        if (!strcmp(op, "connect"))
            connect_to(argv[1]);
        else if (!strcmp(op, "touch"))
            printf("%.6f\n", in_threads(touch, (struct part){.first = a, .count = b, .threads = c}));
        else if (!strcmp(op, "scatter"))
            printf("%.6f\n", in_threads(scatter, (struct part){.seed = a, .threads = b}));
        else if (!strcmp(op, "unmap"))
            munmap((void *)memory, blocks * BLOCK);
        else if (!strcmp(op, "sum"))
            printf("%016llx\n", (unsigned long long)sum(a, b));
        else if (!strcmp(op, "race")) {
            in_threads(race, (struct part){.count = a, .threads = 2});
            printf("%zu\n", (size_t)wrong);
        } else if (!strcmp(op, "flood")) {
            in_threads(flood, (struct part){.count = a, .threads = b});
            printf("%zu\n", (size_t)wrong);
        }
        fflush(stdout);
    }
    return 0;
}
