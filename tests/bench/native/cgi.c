/* The CGI program of the benchmark (RFC 3875): a short page, and nothing of its environment. */
#include <stdio.h>

int main(void) {
    fputs("Content-Type: text/plain\r\n\r\nhello\n", stdout);
    return 0;
}
