/* The load generator of the TLS modes: one thread on epoll, OpenSSL, against a server on the loopback interface.
 *
 * usage: tls MODE PORT CONNECTIONS SECONDS SIZE
 *
 * handshake: connects, completes the handshake, sends SIZE bytes, waits until as many are received, sends
 *            close_notify and closes; CONNECTIONS at a time, from many source addresses, since one address has too
 *            few ports.
 * pingpong:  each connection sends SIZE bytes, waits until as many are received, and sends again.
 * bulk:      each connection sends records of 16 KiB without a pause, SIZE bytes at once, and discards what is
 *            received without a copy or decryption: otherwise this program would be the bottleneck.
 *
 * All servers negotiate the same: TLS 1.3, X25519, TLS_AES_128_GCM_SHA256, without session resumption. Certificates
 * are not verified.
 *
 * Prints: "begin" when the clock starts, then operations (for bulk: bytes received) and seconds. Exits with 1 on an
 * error or a wrong answer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, MOST = 1 << 17, MUCH = 1 << 24 };

struct client {
    int fd, asked;
    size_t got, sent, ready; /* bytes of the answer; bytes of sealed that are sent, and its size */
    SSL *tls;
    BIO *sealed;
};

static int epoll, size, port, knocking;
static long operations;
static char out[MOST], in[MOST];
static uint32_t source;
static SSL_CTX *context;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "no error of the system");
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void dial(struct client *c) {
    struct sockaddr_in there = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    /* source addresses 127.1.x.y in turn */
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f010001 + source++ % 8000)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        fail("socket");
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(fd, (void *)&here, sizeof here) || connect(fd, (void *)&there, sizeof there))
        fail("connect");
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->tls = SSL_new(context);
    SSL_set_fd(c->tls, fd);
    SSL_set_connect_state(c->tls);
}

static void watch(struct client *c, unsigned events) {
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll_ctl");
}

/* Exit unless OpenSSL only waits for the network. */
static void must_wait(struct client *c, int result, const char *what) {
    int error = SSL_get_error(c->tls, result);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
        fail(what);
}

static void ask(struct client *c) {
    if (SSL_write(c->tls, out, size) != size)
        fail("SSL_write");
    c->asked = 1;
    c->got = 0;
}

static void knock(struct client *c) {
    dial(c);
    watch(c, EPOLLIN);
    int done = SSL_do_handshake(c->tls);
    if (done != 1)
        must_wait(c, done, "the handshake");
}

static void farewell(struct client *c) {
    SSL_shutdown(c->tls);
    SSL_free(c->tls);
    close(c->fd);
}

static void go_on(struct client *c) {
    errno = 0;
    ERR_clear_error();
    if (!c->asked) {
        int done = SSL_do_handshake(c->tls);
        if (done != 1) {
            must_wait(c, done, "the handshake");
            return;
        }
        ask(c);
    }
    int got = SSL_read(c->tls, in, sizeof in);
    if (got <= 0) {
        must_wait(c, got, "SSL_read");
        return;
    }
    if (c->got + got > (size_t)size || memcmp(in, out + c->got, got))
        fail("a wrong answer");
    c->got += got;
    if (c->got < (size_t)size)
        return;
    operations++;
    if (knocking) {
        farewell(c);
        knock(c);
    } else {
        ask(c);
    }
}

/* Connect and echo one byte; the server's session tickets are received with it. */
static void open_one(struct client *c, unsigned events) {
    dial(c);
    if (SSL_do_handshake(c->tls) != 1 || SSL_write(c->tls, out, 1) != 1 || SSL_read(c->tls, in, 1) != 1 || *in != *out)
        fail("no answer");
    watch(c, events);
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
    if (!(events & EPOLLOUT))
        return;
    char *bytes;
    if (c->sent == c->ready) {
        (void)BIO_reset(c->sealed);
        if (SSL_write(c->tls, out, size) != size)
            fail("SSL_write");
        c->ready = BIO_get_mem_data(c->sealed, &bytes);
        c->sent = 0;
    }
    BIO_get_mem_data(c->sealed, &bytes);
    ssize_t sent = send(c->fd, bytes + c->sent, c->ready - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN)
        fail("send");
    if (sent > 0)
        c->sent += sent;
}

static void prepare(void) {
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set1_groups_list(context, "X25519"))
        fail("OpenSSL");
}

int main(int argc, char **argv) {
    if (argc != 6)
        return fputs("usage: tls MODE PORT CONNECTIONS SECONDS SIZE\n", stderr), 64;
    int bulk = !strcmp(argv[1], "bulk");
    knocking = !strcmp(argv[1], "handshake");
    port = atoi(argv[2]);
    int count = atoi(argv[3]);
    double seconds = atof(argv[4]);
    size = atoi(argv[5]);
    if (size < 1 || size > MOST)
        return fputs("SIZE is 1 to 131072\n", stderr), 64;
    for (int i = 0; i < MOST; i++)
        out[i] = '0' + i % 10;
    signal(SIGPIPE, SIG_IGN);
    prepare();
    epoll = epoll_create1(0);
    struct client *clients = calloc(count, sizeof *clients);
    for (int i = 0; !knocking && i < count; i++)
        open_one(&clients[i], bulk ? EPOLLIN | EPOLLOUT : EPOLLIN);
    for (int i = 0; bulk && i < count; i++) {
        clients[i].sealed = BIO_new(BIO_s_mem());
        SSL_set0_wbio(clients[i].tls, clients[i].sealed);
    }
    puts("begin");
    fflush(stdout);
    double start = now(), end = start + seconds, time = start;
    for (int i = 0; !bulk && i < count; i++)
        knocking ? knock(&clients[i]) : ask(&clients[i]);
    struct epoll_event events[EVENTS];
    while (time < end) {
        int ready = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < ready; i++)
            if (bulk)
                flow(events[i].data.ptr, events[i].events);
            else
                go_on(events[i].data.ptr);
        time = now();
    }
    printf("%ld %.6f\n", operations, time - start);
    fflush(stdout);
    return 0;
}
