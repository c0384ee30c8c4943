/* The server behind every proxy. One thread, one epoll; six ports, printed in this order:
 *
 *   hello  one byte after a whole ClientHello, then nothing until the peer closes
 *   down   bytes without end after a ClientHello
 *   up     everything after a ClientHello is thrown away
 *   echo   one byte after a ClientHello, then everything comes back
 *   tls    HTTP/1.1 over TLS, keep-alive: the body starts with 1 if the request had "x-bench: injected", else with 0
 *   plain  the same without TLS
 *
 * It ends when its standard input does, so that it can't outlive whoever started it.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum kind { HELLO, DOWN, UP, ECHO, TLS, PLAIN, KINDS };
enum role { LISTENER, HANDSHAKE, GREETING, ON };

struct conn {
    enum kind kind;
    enum role role;
    int fd;
    SSL *ssl;
    size_t seen;      /* bytes of the ClientHello, or of the request head */
    size_t need;      /* bytes that the ClientHello has, once its record header is known */
    unsigned char *in; /* only where bytes are kept: heads, and the record header */
};

enum { ROOM = 8192, CHUNK = 512 * 1024 };
static char scratch[CHUNK];
static int epoll;
static SSL_CTX *context;

static void drop(struct conn *conn) {
    if (conn->ssl)
        SSL_free(conn->ssl);
    close(conn->fd);
    free(conn->in);
    free(conn);
}

static void accept_some(struct conn *listener) {
    for (int i = 0; i < 64; i++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct conn *conn = calloc(1, sizeof *conn);
        if (!conn)
            die("calloc");
        no_delay(fd);
        conn->fd = fd;
        conn->kind = listener->kind;
        conn->role = GREETING;
        if (conn->kind == TLS || conn->kind == PLAIN) {
            conn->role = conn->kind == TLS ? HANDSHAKE : ON;
            conn->in = malloc(ROOM);
            if (!conn->in)
                die("malloc");
        }
        if (conn->kind == TLS) {
            conn->ssl = SSL_new(context);
            SSL_set_fd(conn->ssl, fd);
            SSL_set_accept_state(conn->ssl);
        }
        if (watch(epoll, fd, EPOLLIN, conn))
            die("epoll_ctl");
    }
}

/* Read until the ClientHello is whole; false if the peer has gone. */
static bool greet(struct conn *conn) {
    unsigned char data[4096];
    ssize_t count = recv(conn->fd, data, sizeof data, 0);
    if (count < 0)
        return errno == EAGAIN;
    if (!count)
        return false;
    for (ssize_t i = 0; i < count && conn->seen + (size_t)i < 5; i++) {
        if (conn->seen + (size_t)i == 3)
            conn->need = (size_t)data[i] << 8;
        if (conn->seen + (size_t)i == 4)
            conn->need = 5 + (conn->need | data[i]);
    }
    conn->seen += (size_t)count;
    if (conn->seen < 5 || conn->seen < conn->need)
        return true;
    conn->role = ON;
    if (conn->kind == DOWN)
        change(epoll, conn->fd, EPOLLOUT, conn);
    else if (conn->kind != UP)
        return send(conn->fd, "*", 1, MSG_NOSIGNAL) == 1;
    return true;
}

static bool pour(struct conn *conn) {
    for (int i = 0; i < 2; i++) {
        ssize_t count = send(conn->fd, scratch, CHUNK, MSG_NOSIGNAL);
        if (count < 0)
            return errno == EAGAIN;
        if (count < CHUNK)
            return true;
    }
    return true;
}

static bool receive(struct conn *conn) {
    /* With MSG_TRUNC, TCP throws the bytes away uncopied: the sink must not be what limits. */
    if (conn->kind == UP) {
        ssize_t count = recv(conn->fd, NULL, 4 << 20, MSG_TRUNC);
        return count > 0 || (count < 0 && errno == EAGAIN);
    }
    ssize_t count = recv(conn->fd, scratch, 65536, 0);
    if (count <= 0)
        return count < 0 && errno == EAGAIN;
    return conn->kind != ECHO || send(conn->fd, scratch, (size_t)count, MSG_NOSIGNAL) == count;
}

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 32\r\n\r\n%c234567890123456789012345678901\n";

/* Read requests and answer each; false ends the connection. */
static bool serve(struct conn *conn) {
    for (;;) {
        int count;
        if (conn->ssl) {
            ERR_clear_error();
            count = SSL_read(conn->ssl, conn->in + conn->seen, (int)(ROOM - 1 - conn->seen));
            if (count <= 0)
                return SSL_get_error(conn->ssl, count) == SSL_ERROR_WANT_READ;
        } else {
            count = (int)recv(conn->fd, conn->in + conn->seen, ROOM - 1 - conn->seen, 0);
            if (count <= 0)
                return count < 0 && errno == EAGAIN;
        }
        conn->seen += (size_t)count;
        conn->in[conn->seen] = 0;
        char *head = (char *)conn->in;
        char *end;
        while ((end = strstr(head, "\r\n\r\n"))) {
            *end = 0;
            bool last = strcasestr(head, "\r\nconnection: close");
            char answer[sizeof ANSWER];
            int length = snprintf(answer, sizeof answer, ANSWER, strcasestr(head, "\r\nx-bench: injected") ? '1' : '0');
            bool sent = conn->ssl ? SSL_write(conn->ssl, answer, length) == length
                                  : send(conn->fd, answer, (size_t)length, MSG_NOSIGNAL) == length;
            if (!sent || last) {
                if (sent && conn->ssl)
                    SSL_shutdown(conn->ssl);
                return false;
            }
            head = end + 4;
        }
        conn->seen -= (size_t)(head - (char *)conn->in);
        memmove(conn->in, head, conn->seen);
        if (conn->seen >= ROOM - 1)
            return false;
    }
}

static bool step(struct conn *conn) {
    switch (conn->role) {
    case LISTENER:
        accept_some(conn);
        return true;
    case GREETING:
        return greet(conn);
    case HANDSHAKE: {
        ERR_clear_error();
        int done = SSL_do_handshake(conn->ssl);
        if (done != 1)
            return SSL_get_error(conn->ssl, done) == SSL_ERROR_WANT_READ;
        conn->role = ON;
        return serve(conn);
    }
    case ON:
        if (conn->kind == TLS || conn->kind == PLAIN)
            return serve(conn);
        return conn->kind == DOWN ? pour(conn) : receive(conn);
    }
    return false;
}

static void listen_on(enum kind kind) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) || listen(fd, 4096))
        die("listen");
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("%d ", ntohs(address.sin_port));
    struct conn *listener = calloc(1, sizeof *listener);
    if (!listener)
        die("calloc");
    listener->kind = kind;
    listener->fd = fd;
    if (watch(epoll, fd, EPOLLIN, listener))
        die("epoll_ctl");
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, option(argc, argv, "chain", "")) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, option(argc, argv, "key", ""), SSL_FILETYPE_PEM) != 1)
        die("certificate");
    for (int kind = HELLO; kind < KINDS; kind++)
        listen_on(kind);
    puts("");
    fflush(stdout);
    struct epoll_event events[256];
    watch(epoll, STDIN_FILENO, EPOLLIN, NULL);
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            if (!conn)
                return 0;
            if (!step(conn))
                drop(conn);
        }
    }
}
