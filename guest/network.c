// The network as every guest has it: the same address, the same way out. What lies behind that is the host's to say, so a
// snapshot fits everywhere (keeper/network.py has the other side).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guestd.h"

#define CARD "eth0"
#define ADDRESS "172.31.255.2"
#define NETMASK "255.255.255.252"
#define GATEWAY "172.31.255.1"  // which also answers for names

static void set_address(struct sockaddr *place, const char *address) {
    struct sockaddr_in *in = (struct sockaddr_in *)place;
    memset(in, 0, sizeof *in);
    in->sin_family = AF_INET;
    inet_pton(AF_INET, address, &in->sin_addr);
}

static bool raise_up(int fd, const char *name) {
    struct ifreq card = {0};
    snprintf(card.ifr_name, sizeof card.ifr_name, "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &card))
        return false;
    card.ifr_flags |= IFF_UP;
    return !ioctl(fd, SIOCSIFFLAGS, &card);
}

static bool card_up(int fd) {
    struct ifreq card = {.ifr_name = CARD};
    set_address(&card.ifr_addr, ADDRESS);
    if (ioctl(fd, SIOCSIFADDR, &card))
        return false;
    set_address(&card.ifr_netmask, NETMASK);
    if (ioctl(fd, SIOCSIFNETMASK, &card) || !raise_up(fd, CARD))
        return false;
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    set_address(&route.rt_dst, "0.0.0.0");
    set_address(&route.rt_genmask, "0.0.0.0");
    set_address(&route.rt_gateway, GATEWAY);
    return !ioctl(fd, SIOCADDRT, &route);
}

void network_boot(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || !raise_up(fd, "lo"))
        complain("the loopback interface: %s", strerror(errno));
    int off = open("/proc/sys/net/ipv6/conf/" CARD "/disable_ipv6", O_WRONLY | O_CLOEXEC);  // it would lead nowhere
    if (off >= 0 && (write(off, "1", 1) < 0 || close(off)))
        complain("IPv6 of " CARD ": %s", strerror(errno));
    struct ifreq card = {.ifr_name = CARD};
    if (fd >= 0 && !ioctl(fd, SIOCGIFINDEX, &card) && !card_up(fd))  // a machine may have none
        complain(CARD ": %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void write_hosts(char *into, size_t size, const char *hostname) {
    snprintf(into, size, "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 %s\n", hostname);
}

void network_files(const char *hostname) {
    char hosts[512];
    write_hosts(hosts, sizeof hosts, hostname);
    root_write("/etc/hosts", hosts, NULL);
    root_write("/etc/resolv.conf", "nameserver " GATEWAY "\n", NULL);
}

void network_renamed(const char *hostname) {
    char before[65] = "", old[512], hosts[512];
    gethostname(before, sizeof before - 1);
    write_hosts(old, sizeof old, before);
    write_hosts(hosts, sizeof hosts, hostname);
    root_write("/etc/hosts", hosts, old);  // what was added since stays, what was changed too
}
