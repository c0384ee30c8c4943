/* The load generator: one thread, one epoll, options of the form name=value. It prints "go" when it begins to count, and at the end
 * one line of JSON.
 *
 *   mode=hello      CONNECT, a ClientHello from a file, one byte back, close; again and again
 *   mode=once       CONNECT, a TLS handshake, one request, its answer, close; again and again
 *   mode=kept       CONNECT and TLS handshakes first, then requests over these connections
 *   mode=down|up    bytes through tunnels that stay open
 *   mode=ping       64 bytes there and back, through tunnels that stay open
 *   mode=held       opens tunnels, then holds them until its standard input ends
 *
 * `connect` and `name` may hold one %u, which becomes the number of the connection: another host each time.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum mode { M_HELLO, M_ONCE, M_KEPT, M_DOWN, M_UP, M_PING, M_HELD };
enum state { CONNECTING, ASKED, FIRST_BYTE, HANDSHAKE, READY, ANSWER, BULK, PONG };
enum { ROOM = 4096, PING = 64, CHUNK = 512 * 1024 };

struct conn {
    enum state state;
    int fd;
    unsigned number;
    size_t have;
    uint64_t began;
    SSL *ssl;
    struct conn *next, **here; /* the list of all that are open */
    char in[ROOM];
};

static struct {
    enum mode mode;
    struct sockaddr_in proxy;
    const char *connect, *name;
    char *hello;
    size_t hello_length;
    unsigned concurrency, first, most;
    int expect; /* what an answer's body must start with; 0: anything */
    bool tls;   /* whether requests are in TLS */
    uint64_t length, warm;
} want;

static int epoll;
static SSL_CTX *context;
static struct histogram latencies;
static uint64_t started, ended, begun, done, failed, reopened;
static uint64_t finished; /* operations, those before the counting included */
static unsigned opened, alive, ready;
static struct conn *all;
static bool asking; /* mode=kept: all connections stand */
static char scratch[CHUNK];
static char why[160];

static void open_next(void);

/* Names and %u come from the command line of the benchmark itself. */
#pragma GCC diagnostic ignored "-Wformat-nonliteral"

static bool counting(void) { return started && !ended; }

static void finish(void) {
    double seconds = started ? (double)((ended ? ended : now_ns()) - started) / 1e9 : 0;
    printf("{\"count\": %llu, \"seconds\": %.6f, \"failures\": %llu, \"reopened\": %llu, \"p50_us\": %.1f, \"p90_us\": %.1f, "
           "\"p99_us\": %.1f, \"max_us\": %.1f, \"opened\": %u, \"why\": \"%s\"}\n",
           (unsigned long long)done, seconds, (unsigned long long)failed, (unsigned long long)reopened,
           percentile_us(&latencies, 0.5), percentile_us(&latencies, 0.9), percentile_us(&latencies, 0.99),
           (double)latencies.most / 1e3, opened, why);
    fflush(stdout);
    _exit(0);
}

static void go(void) {
    puts("go");
    fflush(stdout);
    started = now_ns();
}

static void shut(struct conn *conn) {
    if (conn->ssl)
        SSL_free(conn->ssl);
    close(conn->fd);
    *conn->here = conn->next;
    if (conn->next)
        conn->next->here = conn->here;
    free(conn);
    alive--;
}

/* The first failure is told, the others are counted. */
static bool failure(const char *what) {
    if (!why[0])
        snprintf(why, sizeof why, "%s", what);
    return false;
}

static bool say(struct conn *conn, const char *data, size_t length) {
    return send(conn->fd, data, length, MSG_NOSIGNAL) == (ssize_t)length || failure("a send failed");
}

static void fill(char *text, size_t room, const char *format, unsigned number) { snprintf(text, room, format, number); }

static bool ask(struct conn *conn) {
    char request[512], name[256];
    fill(name, sizeof name, want.name, conn->number);
    int length = snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n", name);
    conn->began = want.mode == M_ONCE ? conn->began : now_ns();
    conn->have = 0;
    conn->state = ANSWER;
    if (!want.tls)
        return say(conn, request, (size_t)length);
    return SSL_write(conn->ssl, request, length) == length || failure("a request could not be sent");
}

static void be_ready(void) {
    if (++ready == want.concurrency && !started && want.mode != M_KEPT && want.mode != M_HELD)
        go();
}

/* Ask at once, or wait until all connections stand. */
static bool begin(struct conn *conn) {
    if (want.mode == M_ONCE || asking)
        return ask(conn);
    conn->state = READY;
    be_ready();
    return true;
}

static bool handshake(struct conn *conn) {
    ERR_clear_error();
    int result = SSL_connect(conn->ssl);
    if (result != 1) {
        int error = SSL_get_error(conn->ssl, result);
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
            return true;
        return failure("a handshake failed");
    }
    return begin(conn);
}

static bool established(struct conn *conn) {
    conn->have = 0;
    if (want.mode == M_ONCE || want.mode == M_KEPT) {
        if (!want.tls)
            return begin(conn);
        char name[256];
        fill(name, sizeof name, want.name, conn->number);
        char *colon = strchr(name, ':');
        if (colon)
            *colon = 0;
        conn->ssl = SSL_new(context);
        SSL_set_fd(conn->ssl, conn->fd);
        SSL_set_tlsext_host_name(conn->ssl, name);
        conn->state = HANDSHAKE;
        return handshake(conn);
    }
    conn->state = FIRST_BYTE;
    if (want.mode == M_DOWN || want.mode == M_UP) {
        conn->state = BULK;
        change(epoll, conn->fd, want.mode == M_DOWN ? EPOLLIN : EPOLLOUT, conn); /* level: one stream must not hog the loop */
        be_ready();
    }
    return say(conn, want.hello, want.hello_length);
}

static bool ping(struct conn *conn) {
    conn->state = PONG;
    conn->have = 0;
    conn->began = now_ns();
    return say(conn, scratch, PING);
}

/* Read into conn->in: > 0 came, 0 nothing yet, < 0 failed. */
static int receive(struct conn *conn) {
    int count;
    if (conn->ssl) {
        ERR_clear_error();
        count = SSL_read(conn->ssl, conn->in + conn->have, (int)(ROOM - 1 - conn->have));
        if (count <= 0)
            return SSL_get_error(conn->ssl, count) == SSL_ERROR_WANT_READ ? 0 : -1;
    } else {
        count = (int)recv(conn->fd, conn->in + conn->have, ROOM - 1 - conn->have, 0);
        if (count <= 0)
            return count < 0 && errno == EAGAIN ? 0 : -1;
    }
    conn->have += (size_t)count;
    conn->in[conn->have] = 0;
    return count;
}

static bool asked(struct conn *conn) {
    int count = receive(conn);
    if (count <= 0)
        return count == 0 || failure("closed before the proxy answered");
    if (!strstr(conn->in, "\r\n\r\n"))
        return conn->have < ROOM - 1 || failure("the proxy's answer is too long");
    if (strncmp(conn->in + 8, " 200", 4))
        return failure("the proxy refused");
    return established(conn);
}

/* What came of reading an answer. */
enum outcome { MORE, NEXT, CLOSE, CLOSED_BY_PEER, BROKEN };

static enum outcome answer(struct conn *conn) {
    char *end;
    size_t whole;
    do { /* until there is nothing: an edge tells of all that has come, and a proxy may send head and body apart */
        int count = receive(conn);
        if (count < 0)
            return want.mode == M_KEPT && !conn->have ? CLOSED_BY_PEER : BROKEN;
        if (!count)
            return MORE;
        end = strstr(conn->in, "\r\n\r\n");
        char *length = end ? strcasestr(conn->in, "\r\ncontent-length:") : NULL;
        if (end && (strncmp(conn->in + 8, " 200", 4) || !length || length > end))
            return BROKEN;
        if (!end && conn->have >= ROOM - 1)
            return BROKEN;
        whole = end ? (size_t)(end + 4 - conn->in) + (size_t)atoi(length + 17) : SIZE_MAX;
    } while (conn->have < whole);
    if (want.expect && end[4] != want.expect)
        return BROKEN;
    bool last = false;
    char *connection = strcasestr(conn->in, "\r\nconnection: close");
    if (connection && connection < end)
        last = true;
    finished++;
    if (counting()) {
        done++;
        note(&latencies, now_ns() - conn->began);
    }
    if (want.mode == M_ONCE)
        return CLOSE;
    return last ? CLOSED_BY_PEER : NEXT;
}

static void close_and_open(struct conn *conn) {
    if (conn->ssl)
        SSL_shutdown(conn->ssl);
    shut(conn);
    open_next();
}

static bool bulk(struct conn *conn) {
    ssize_t count = want.mode == M_DOWN ? recv(conn->fd, NULL, 4 << 20, MSG_TRUNC) : send(conn->fd, scratch, CHUNK, MSG_NOSIGNAL);
    if (count < 0 && errno == EAGAIN)
        return true;
    if (count <= 0)
        return failure("a tunnel ended");
    if (counting())
        done += (uint64_t)count;
    return true;
}

static void step(struct conn *conn) {
    bool good = true;
    switch (conn->state) {
    case CONNECTING: {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error)
            good = failure("connection refused");
        else if (want.connect[0]) {
            char target[256], request[640];
            fill(target, sizeof target, want.connect, conn->number);
            int size = snprintf(request, sizeof request, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target);
            conn->state = ASKED;
            good = say(conn, request, (size_t)size);
        } else
            good = established(conn);
        break;
    }
    case ASKED:
        good = asked(conn);
        break;
    case FIRST_BYTE: {
        int count = receive(conn);
        if (count <= 0) {
            good = count == 0 || failure("a tunnel ended before the first byte");
            break;
        }
        if (want.mode == M_HELLO) {
            finished++;
            if (counting()) {
                done++;
                note(&latencies, now_ns() - conn->began);
            }
            shut(conn);
            open_next();
            return;
        }
        be_ready();
        if (want.mode == M_PING)
            good = ping(conn);
        else {
            conn->state = READY;
            done++;
            open_next();
        }
        break;
    }
    case HANDSHAKE:
        good = handshake(conn);
        break;
    case READY: /* tickets after the handshake, or the end */
        if (!conn->ssl || SSL_read(conn->ssl, conn->in, ROOM) <= 0) {
            char byte;
            ssize_t count = recv(conn->fd, &byte, 1, MSG_PEEK);
            if (count == 0 || (count < 0 && errno != EAGAIN))
                good = failure("a connection ended while it waited");
        }
        break;
    case ANSWER:
        switch (answer(conn)) {
        case NEXT:
            good = ask(conn);
            break;
        case CLOSE:
            close_and_open(conn);
            return;
        case CLOSED_BY_PEER:
            reopened++;
            close_and_open(conn);
            return;
        case MORE:
            break;
        case BROKEN:
            good = failure("an answer is missing or isn't what it should be");
        }
        break;
    case BULK:
        good = bulk(conn);
        break;
    case PONG: {
        int count = receive(conn);
        if (count < 0)
            good = failure("a tunnel ended");
        else if (conn->have >= PING) {
            if (counting()) {
                done++;
                note(&latencies, now_ns() - conn->began);
            }
            good = ping(conn);
        }
        break;
    }
    }
    if (!good) {
        failed++;
        shut(conn);
        open_next();
    }
}

static void open_next(void) {
    if ((want.most && opened >= want.most) || (failed > 200 && failed > done))
        return;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct conn *conn = calloc(1, sizeof *conn);
    if (fd < 0 || !conn)
        die("socket");
    no_delay(fd);
    conn->fd = fd;
    conn->number = want.first + opened++;
    conn->began = now_ns();
    conn->next = all;
    conn->here = &all;
    if (all)
        all->here = &conn->next;
    all = conn;
    alive++;
    if (connect(fd, (struct sockaddr *)&want.proxy, sizeof want.proxy) && errno != EINPROGRESS)
        die("connect");
    if (watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLET, conn))
        die("epoll_ctl");
}

/* All connections stand: send a request on each. */
static void ask_all(void) {
    for (struct conn *conn = all; conn; conn = conn->next)
        if (conn->state == READY && !ask(conn))
            failed++;
}

int main(int argc, char **argv) {
    static const char *const modes[] = {"hello", "once", "kept", "down", "up", "ping", "held"};
    signal(SIGPIPE, SIG_IGN);
    const char *mode = option(argc, argv, "mode", "");
    for (want.mode = M_HELLO; want.mode <= M_HELD && strcmp(mode, modes[want.mode]); want.mode++)
        ;
    if (want.mode > M_HELD)
        die("mode");
    want.proxy.sin_family = AF_INET;
    want.proxy.sin_port = htons((uint16_t)number(argc, argv, "port", 0));
    want.proxy.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    want.connect = option(argc, argv, "connect", "");
    want.name = option(argc, argv, "name", "");
    want.concurrency = (unsigned)number(argc, argv, "concurrency", 1);
    want.first = (unsigned)number(argc, argv, "first", 0);
    want.most = (unsigned)number(argc, argv, "most", 0);
    want.expect = option(argc, argv, "expect", "")[0];
    want.tls = number(argc, argv, "tls", 1) > 0;
    want.length = (uint64_t)(number(argc, argv, "seconds", 1) * 1e9);
    want.warm = (uint64_t)(number(argc, argv, "warm", 0.2) * 1e9);
    uint64_t patience = (uint64_t)(number(argc, argv, "patience", 30) * 1e9);
    const char *file = option(argc, argv, "hello", NULL);
    if (file)
        want.hello = read_file(file, &want.hello_length);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    begun = now_ns();
    for (unsigned i = 0; i < want.concurrency; i++)
        open_next();
    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(epoll, events, 256, 50);
        for (int i = 0; i < count; i++)
            step(events[i].data.ptr);
        uint64_t now = now_ns();
        if (want.mode == M_KEPT && !asking && ready >= want.concurrency) {
            asking = true;
            ask_all();
        }
        /* Every connection has come round once, so what is counted is not the beginning; nobody is waited for without end. */
        bool round = finished >= want.concurrency || now - begun >= 15 * want.warm;
        if (!started && (want.mode == M_KEPT ? asking && finished >= 2 * want.concurrency
                                             : want.mode <= M_ONCE && now - begun >= want.warm && round))
            go();
        if (want.mode == M_HELD) {
            if (ready + failed < want.most && now - begun < patience)
                continue;
            ended = now;
            printf("{\"count\": %u, \"failures\": %llu, \"why\": \"%s\"}\n", ready, (unsigned long long)failed, why);
            fflush(stdout);
            char byte;
            while (read(STDIN_FILENO, &byte, 1) > 0)
                ;
            return 0;
        }
        if (!started && now - begun > patience) {
            failure("the connections did not come to stand in time");
            failed++;
            finish();
        }
        now = now_ns();
        bool over = started && now - started >= want.length;
        if ((over && (done || now - started >= 10 * want.length)) || !alive) { /* at least one, for a figure to be made of */
            ended = now;
            finish();
        }
    }
}
