// What is left to a pager whose files are open: memory, time, threads, and its descriptors. A call that is not in the list
// fails with EPERM; so it is told by its error, and a C library that tries a newer call first goes on with the older one.
#define _GNU_SOURCE
#include "confine.h"

#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "report.h"

#if defined(__x86_64__)
enum { ARCHITECTURE = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { ARCHITECTURE = AUDIT_ARCH_AARCH64 };
#endif

static const uint16_t allowed[] = {
    __NR_read, __NR_pread64, __NR_write, __NR_writev, __NR_recvfrom, __NR_recvmsg, __NR_sendto, __NR_accept4, __NR_close,
    __NR_ioctl, __NR_fcntl, __NR_fadvise64, __NR_fstat, __NR_lseek, __NR_ppoll,
    __NR_mmap, __NR_munmap, __NR_mremap, __NR_mprotect, __NR_madvise, __NR_brk,
    __NR_clone, __NR_clone3, __NR_exit, __NR_exit_group, __NR_futex, __NR_set_robust_list, __NR_rseq, __NR_gettid,
    __NR_getpid, __NR_tgkill, __NR_sched_yield, __NR_sched_getaffinity, __NR_restart_syscall,
    __NR_nanosleep, __NR_clock_nanosleep, __NR_clock_gettime, __NR_getrandom,
    __NR_rt_sigprocmask, __NR_rt_sigaction, __NR_rt_sigreturn, __NR_sigaltstack,
#ifdef __NR_poll
    __NR_poll,  // not on aarch64
#endif
};

enum { CALLS = sizeof allowed / sizeof *allowed };

static void must(int failed, const char *what) {
    if (failed)
        fail("machine-failed", "", "the pager cannot give up its rights: %s: %s", what, strerror(errno));
}

static void filter_calls(void) {
    struct sock_filter code[5 + CALLS + 1], *at = code;
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < CALLS; i++)
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], (uint8_t)(CALLS - i), 0);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)(at - code), code};
    must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) < 0, "PR_SET_SECCOMP");
}

void confine(uint32_t id, const char *root) {
    const struct rlimit none = {0, 0};
    must(chroot(root) < 0 || chdir("/") < 0, "chroot");
    must(setgroups(0, NULL) < 0, "setgroups");
    must(setresgid(id, id, id) < 0, "setresgid");
    must(setresuid(id, id, id) < 0, "setresuid");  // and with it all capabilities
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0, "PR_SET_NO_NEW_PRIVS");
    must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0, "PR_SET_DUMPABLE");
    must(setrlimit(RLIMIT_CORE, &none) < 0, "RLIMIT_CORE");
    filter_calls();
}
