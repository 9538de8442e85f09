/* The load generator for WebSocket (RFC 6455): one thread on epoll, against a server on the loopback interface.
 *
 * usage: websocket MODE PORT CONNECTIONS SECONDS SIZE
 *
 * pingpong: each connection sends a text message of SIZE bytes (at most 125), waits for the same message, and sends
 *           again.
 * starts:   connects, shakes hands, sends a message, waits for the same message, sends a Close frame, reads to the end,
 *           closes; CONNECTIONS at a time, from many source addresses, since one address has too few ports.
 *
 * Prints: "begin" when the clock starts, then operations and seconds. Exits with 1 on an error or a wrong answer. */
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
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, MOST_MESSAGE = 125, MOST_HEAD = 4096, FRAME_HEAD = 2, MASK = 4 };
/* What a connection waits for. */
enum state { HEAD, MESSAGE, END };

struct client {
    int fd;
    enum state state;
    size_t got;
    char in[MOST_HEAD + 1];
};

static int epoll, size, port, starting;
static long operations;
/* The frames that are sent, masked; the frame that is expected, which has no mask. */
static unsigned char out[FRAME_HEAD + MASK + MOST_MESSAGE], expected[FRAME_HEAD + MOST_MESSAGE];
static const unsigned char mask[MASK] = {0x5a, 0x17, 0xc3, 0x88};
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

static void wrong(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void put(struct client *c, const void *data, size_t length) {
    if (send(c->fd, data, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail("send");
}

static void ask(struct client *c) {
    c->state = MESSAGE;
    c->got = 0;
    put(c, out, FRAME_HEAD + MASK + size);
}

static void dial(struct client *c) {
    struct sockaddr_in there = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    /* source addresses 127.1.x.y in turn */
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f010001 + source++ % 8000)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0)
        fail("socket");
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(c->fd, (void *)&here, sizeof here))
        fail("bind");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (void *)&there, sizeof there))
        fail("connect");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll_ctl");
    static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    c->state = HEAD;
    c->got = 0;
    put(c, request, sizeof request - 1);
}

/* Read a part of the head of the response; return whether it is complete. */
static int read_head(struct client *c) {
    ssize_t got = recv(c->fd, c->in + c->got, MOST_HEAD - c->got, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got <= 0)
        wrong("no handshake");
    c->got += got;
    c->in[c->got] = 0;
    char *blank = strstr(c->in, "\r\n\r\n");
    if (!blank)
        return 0;
    if (strncmp(c->in, "HTTP/1.1 101 ", 13) || blank + 4 != c->in + c->got)
        wrong("a wrong handshake");
    return 1;
}

/* Read a part of the message; return whether it is complete. */
static int read_message(struct client *c) {
    ssize_t got = recv(c->fd, c->in, FRAME_HEAD + size - c->got, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got <= 0 || memcmp(c->in, expected + c->got, got))
        wrong("a wrong message");
    c->got += got;
    return c->got == (size_t)(FRAME_HEAD + size);
}

/* Discard what comes until the end; return whether it has come. */
static int read_end(struct client *c) {
    ssize_t got = recv(c->fd, c->in, MOST_HEAD, MSG_DONTWAIT);
    if (got < 0 && errno != EAGAIN && errno != ECONNRESET)
        fail("recv");
    return got == 0 || (got < 0 && errno == ECONNRESET);
}

static void say_farewell(struct client *c) {
    /* FIN, Close, a masked status of two bytes: 1000. */
    unsigned char frame[] = {0x88, 0x82, mask[0], mask[1], mask[2], mask[3], 0x03 ^ mask[0], 0xe8 ^ mask[1]};
    c->state = END;
    put(c, frame, sizeof frame);
}

static void react(struct client *c) {
    switch (c->state) {
    case HEAD:
        if (read_head(c))
            ask(c);
        break;
    case MESSAGE:
        if (!read_message(c))
            break;
        if (starting) {
            say_farewell(c);
        } else {
            operations++;
            ask(c);
        }
        break;
    case END:
        if (read_end(c)) {
            close(c->fd);
            operations++;
            dial(c);
        }
    }
}

static void run(double end) {
    struct epoll_event events[EVENTS];
    while (now() < end) {
        int ready = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < ready; i++)
            react(events[i].data.ptr);
    }
}

/* Wait until each connection had its first answer, before the clock starts. */
static void wait_for_answers(struct client *clients, int count) {
    struct epoll_event events[EVENTS];
    for (int answered = 0; answered < count;) {
        int ready = epoll_wait(epoll, events, EVENTS, 10000);
        if (ready <= 0)
            wrong("no answer");
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            if (c->state == HEAD && read_head(c))
                ask(c);
            else if (c->state == MESSAGE && read_message(c))
                answered++;
        }
    }
    for (int i = 0; i < count; i++)
        ask(&clients[i]);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: websocket MODE PORT CONNECTIONS SECONDS SIZE\n");
        return 64;
    }
    starting = !strcmp(argv[1], "starts");
    port = atoi(argv[2]);
    int count = atoi(argv[3]);
    double seconds = atof(argv[4]);
    size = atoi(argv[5]);
    if (size > MOST_MESSAGE)
        wrong("the message is too long");
    expected[0] = out[0] = 0x81; /* FIN, text */
    expected[1] = size;
    out[1] = 0x80 | size;
    memcpy(out + FRAME_HEAD, mask, MASK);
    for (int i = 0; i < size; i++) {
        expected[FRAME_HEAD + i] = '0' + i % 10;
        out[FRAME_HEAD + MASK + i] = expected[FRAME_HEAD + i] ^ mask[i % MASK];
    }
    epoll = epoll_create1(0);
    struct client *clients = calloc(count, sizeof *clients);
    for (int i = 0; !starting && i < count; i++)
        dial(&clients[i]);
    if (!starting)
        wait_for_answers(clients, count);
    puts("begin");
    fflush(stdout);
    double start = now();
    for (int i = 0; starting && i < count; i++)
        dial(&clients[i]);
    run(start + seconds);
    printf("%ld %.6f\n", operations, now() - start);
    fflush(stdout);
    return 0;
}
