/* The reference of the benchmark: an echo server in C on epoll, one thread, TCP and UDP on one port.
 *
 * usage: echo [BYTES]        prints its port; exits at the end of its standard input.
 *
 * Level-triggered, one buffer of BYTES, by default 64 KiB; data that the kernel does not accept is kept for its
 * connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 1 << 20, EVENTS = 512 };

struct connection {
    int fd, ended;
    size_t from, to; /* the part of kept that is unsent */
    char *kept;
};

static int epoll;
static size_t size = 65536;
static char buffer[MOST];

static void watch(struct connection *c, unsigned events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll, how, c->fd, &event);
}

static void finish(struct connection *c) {
    close(c->fd);
    free(c->kept);
    free(c);
}

static void readable(struct connection *c) {
    ssize_t got = recv(c->fd, buffer, size, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        finish(c);
        return;
    }
    ssize_t sent = send(c->fd, buffer, got, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        finish(c);
        return;
    }
    if (sent < 0)
        sent = 0;
    if (sent < got) {
        c->kept = malloc(got - sent);
        memcpy(c->kept, buffer + sent, got - sent);
        c->from = 0;
        c->to = got - sent;
        watch(c, EPOLLOUT, EPOLL_CTL_MOD);
    }
}

static void writable(struct connection *c) {
    ssize_t sent = send(c->fd, c->kept + c->from, c->to - c->from, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            finish(c);
        return;
    }
    c->from += sent;
    if (c->from == c->to) {
        free(c->kept);
        c->kept = NULL;
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
    }
}

int main(int argc, char **argv) {
    if (argc > 1)
        size = strtoul(argv[1], NULL, 10);
    if (!size || size > MOST)
        return fputs("usage: echo [BYTES], at most 1 MiB\n", stderr), 64;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    int one = 1, stream = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(stream, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(stream, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(stream, (void *)&here, sizeof here) || listen(stream, 1024))
        return perror("listen"), 1;
    getsockname(stream, (void *)&here, &length);
    int datagram = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (bind(datagram, (void *)&here, sizeof here))
        return perror("bind"), 1;
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);

    epoll = epoll_create1(0);
    struct connection listener = {.fd = stream}, asker = {.fd = datagram}, parent = {.fd = 0};
    watch(&listener, EPOLLIN, EPOLL_CTL_ADD);
    watch(&asker, EPOLLIN, EPOLL_CTL_ADD);
    watch(&parent, EPOLLIN, EPOLL_CTL_ADD);
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == &parent) {
                return 0;
            } else if (c == &listener) {
                for (int fd; (fd = accept4(stream, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                    struct connection *new = calloc(1, sizeof *new);
                    new->fd = fd;
                    watch(new, EPOLLIN, EPOLL_CTL_ADD);
                }
            } else if (c == &asker) {
                struct sockaddr_storage peer;
                for (int n = 0; n < 64; n++) {
                    length = sizeof peer;
                    ssize_t got = recvfrom(datagram, buffer, size, 0, (void *)&peer, &length);
                    if (got < 0)
                        break;
                    sendto(datagram, buffer, got, 0, (void *)&peer, length);
                }
            } else if (events[i].events & EPOLLOUT) {
                writable(c);
            } else {
                readable(c);
            }
        }
    }
}
