/* The load generator of the benchmark: one thread on epoll, against a server on the loopback interface.
 *
 * usage: load MODE PORT CONNECTIONS SECONDS SIZE
 *
 * pingpong: each connection sends SIZE bytes, waits until as many are received, and sends again.
 * bulk:     each connection sends without a pause and discards what is received without a copy: otherwise this
 *           program would be the bottleneck for faster servers.
 * connect:  connects, sends SIZE bytes, half-closes, reads to the end, closes; CONNECTIONS at a time, from many
 *           source addresses, since one address has too few ports.
 * udp:      as pingpong, with datagrams; a lost datagram is sent again.
 * idle:     opens the connections, prints "open", and keeps them open until the end of its standard input.
 *
 * Prints: "begin" when the clock starts, then operations (for bulk: bytes echoed) and seconds. Exits with 1 on an error
 * or a wrong answer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, MOST = 1 << 17, MUCH = 1 << 24 };

struct client {
    int fd;
    size_t got;
    double sent_at;
};

static int epoll, size, port;
static long operations;
static char out[MOST], in[MOST];
static uint32_t source;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct client *c, unsigned events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, how, c->fd, &event))
        fail("epoll_ctl");
}

static int dial(int kind, int spread) {
    struct sockaddr_in there = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, kind, 0);
    if (fd < 0)
        fail("socket");
    if (spread) {
        /* source addresses 127.1.x.y in turn */
        struct sockaddr_in here = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(0x7f010001 + source++ % 8000)};
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (void *)&here, sizeof here))
            fail("bind");
    }
    if (kind == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (void *)&there, sizeof there))
        fail("connect");
    return fd;
}

static void ask(struct client *c) {
    if (send(c->fd, out, size, MSG_NOSIGNAL) != size)
        fail("send");
    c->got = 0;
}

static void knock(struct client *c) {
    c->fd = dial(SOCK_STREAM, 1);
    ask(c);
    if (shutdown(c->fd, SHUT_WR))
        fail("shutdown");
    watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

static void pong(struct client *c, int datagram) {
    ssize_t got = recv(c->fd, in, datagram ? MOST : size, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 || memcmp(in, out + c->got, got))
        fail("a wrong answer");
    c->got += got;
    if (c->got == (size_t)size) {
        operations++;
        ask(c);
        if (datagram)
            c->sent_at = now();
    }
}

static void flow(struct client *c, unsigned events) {
    if (events & EPOLLIN) {
        /* tcp(7): with MSG_TRUNC bytes are discarded, not copied. */
        ssize_t got = recv(c->fd, in, MUCH, MSG_DONTWAIT | MSG_TRUNC);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            fail("recv");
        if (got > 0)
            operations += got;
    }
    if (events & EPOLLOUT)
        if (send(c->fd, out, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
            fail("send");
}

static void farewell(struct client *c) {
    ssize_t got = recv(c->fd, in, MOST, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got < 0)
        fail("recv");
    if (got > 0) {
        c->got += got;
        return;
    }
    if (c->got != (size_t)size) {
        fprintf(stderr, "a short answer: %zu\n", c->got);
        exit(1);
    }
    close(c->fd);
    operations++;
    knock(c);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: load MODE PORT CONNECTIONS SECONDS SIZE\n");
        return 64;
    }
    const char *mode = argv[1];
    port = atoi(argv[2]);
    int count = atoi(argv[3]);
    double seconds = atof(argv[4]);
    size = atoi(argv[5]);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    /* No lower-case letters, so that the answer of svcd's `upper` is the same as that of echo. */
    for (int i = 0; i < MOST; i++)
        out[i] = '0' + i % 10;
    epoll = epoll_create1(0);
    struct client *clients = calloc(count, sizeof *clients);
    int udp = !strcmp(mode, "udp"), bulk = !strcmp(mode, "bulk"), idle = !strcmp(mode, "idle");
    int knocking = !strcmp(mode, "connect");
    for (int i = 0; i < count; i++) {
        struct client *c = &clients[i];
        if (knocking)
            continue;
        c->fd = dial(udp ? SOCK_DGRAM : SOCK_STREAM, idle);
        if (idle)
            ask(c);
        else
            watch(c, bulk ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_ADD);
    }
    /* An open connection may not be accepted yet: each has one answer before the clock starts. */
    for (int i = 0; !udp && !idle && !knocking && i < count; i++) {
        if (send(clients[i].fd, out, 1, MSG_NOSIGNAL) != 1 || recv(clients[i].fd, in, 1, 0) != 1)
            fail("no answer");
    }
    if (idle) {
        for (int i = 0; i < count; i++)
            for (ssize_t got = 0; got < size;) {
                ssize_t more = recv(clients[i].fd, in, size, 0);
                if (more <= 0)
                    fail("recv");
                got += more;
            }
        printf("open\n");
        fflush(stdout);
        return read(0, in, 1) < 0;
    }
    puts("begin");
    fflush(stdout);
    double start = now(), end = start + seconds, time = start, checked = start;
    for (int i = 0; i < count; i++) {
        clients[i].sent_at = start;
        if (knocking)
            knock(&clients[i]);
        else if (!bulk)
            ask(&clients[i]);
    }
    struct epoll_event events[EVENTS];
    while (time < end) {
        int ready = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            if (bulk)
                flow(c, events[i].events);
            else if (knocking)
                farewell(c);
            else
                pong(c, udp);
        }
        time = now();
        if (udp && time - checked > 0.1) {
            checked = time;
            for (int i = 0; i < count; i++)
                if (time - clients[i].sent_at > 0.1) {
                    ask(&clients[i]);
                    clients[i].sent_at = time;
                }
        }
    }
    printf("%ld %.6f\n", operations, time - start);
    fflush(stdout);
    return 0;
}
