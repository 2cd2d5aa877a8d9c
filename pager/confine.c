#define _GNU_SOURCE
#include "confine.h"

#include <errno.h>
#include <grp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "report.h"

static void must(int failed, const char *what) {
    if (failed)
        fail("machine-failed", "", "the pager cannot give up its rights: %s: %s", what, strerror(errno));
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
}
