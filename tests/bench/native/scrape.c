/* Requests /metrics at a steady rate over one connection, as Prometheus does.
 *
 * usage: scrape PORT RATE SECONDS gzip|identity
 *
 * Each answer is read whole, by its Content-Length. A late request is sent at once, so that the rate is kept if
 * possible. Prints: answers, seconds, bytes of their bodies. Exits with 1 on an error or a status other than 200. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 22 };

static char in[MOST + 1];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static long scrape(int fd, const char *request) {
    size_t got = 0, whole = 0, length = strlen(request);
    if (send(fd, request, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail("send");
    do {
        ssize_t more = recv(fd, in + got, MOST - got, 0);
        if (more <= 0)
            fail("recv");
        got += more;
        in[got] = 0;
        char *end = whole ? NULL : strstr(in, "\r\n\r\n");
        if (end) {
            char *field = strstr(in, "Content-Length: ");
            if (strncmp(in, "HTTP/1.1 200", 12) || !field || field > end)
                fail("the answer");
            whole = end + 4 - in + atol(field + 16);
            length = whole - (end + 4 - in);
        }
    } while (!whole || got < whole);
    return length;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: scrape PORT RATE SECONDS gzip|identity\n");
        return 64;
    }
    struct sockaddr_in there = {.sin_family = AF_INET,
                                .sin_port = htons(atoi(argv[1])),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    double pause = 1 / atof(argv[2]), start = now(), end = start + atof(argv[3]), due = start, time = start;
    char request[512];
    snprintf(request, sizeof request,
             "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: Prometheus/3\r\nAccept-Encoding: %s\r\n"
             "Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3\r\n\r\n",
             argv[4]);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (void *)&there, sizeof there))
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    long answers = 0, bytes = 0;
    while (time < end) {
        bytes += scrape(fd, request);
        answers++;
        due += pause;
        time = now();
        if (due > time)
            usleep((due - time) * 1e6);
        time = now();
    }
    printf("%ld %.6f %ld\n", answers, time - start, bytes);
    return 0;
}
