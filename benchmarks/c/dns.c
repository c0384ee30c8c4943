/* Asks one question over UDP again and again, with so many queries open at a time; prints as load.c does. An answer counts if it has
 * the query's number, no error and a record. What isn't answered within a second is asked again and counted as a failure. */
#define _GNU_SOURCE
#include "bench.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 512 };

static unsigned char query[300];
static size_t size;
static uint64_t asked[MOST];

/* A query for the address of NAME, without EDNS: the number, flags (recursion desired), one question. */
static void compose(const char *name) {
    static const unsigned char head[] = {0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0};
    memcpy(query, head, sizeof head);
    size = sizeof head;
    while (*name && size < 256) {
        size_t label = strcspn(name, ".");
        query[size++] = (unsigned char)label;
        memcpy(query + size, name, label);
        size += label;
        name += label + (name[label] == '.');
    }
    static const unsigned char tail[] = {0, 0, 1, 0, 1};
    memcpy(query + size, tail, sizeof tail);
    size += sizeof tail;
}

static void ask(int fd, unsigned number) {
    query[0] = (unsigned char)(number >> 8);
    query[1] = (unsigned char)number;
    asked[number] = now_ns();
    if (send(fd, query, size, 0) < 0)
        die("send");
}

int main(int argc, char **argv) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    server.sin_port = htons((uint16_t)number(argc, argv, "port", 0));
    unsigned many = (unsigned)number(argc, argv, "concurrency", 32);
    uint64_t length = (uint64_t)(number(argc, argv, "seconds", 1) * 1e9), warm = (uint64_t)(number(argc, argv, "warm", 0.2) * 1e9);
    if (many > MOST)
        many = MOST;
    compose(option(argc, argv, "name", "localhost"));
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server))
        die("socket");
    static struct histogram latencies;
    uint64_t done = 0, failed = 0, started = 0, begun = now_ns(), looked = begun, now;
    for (unsigned i = 0; i < many; i++)
        ask(fd, i);
    for (;;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        poll(&wait, 1, 50);
        unsigned char answer[1500];
        ssize_t count;
        while ((count = recv(fd, answer, sizeof answer, MSG_DONTWAIT)) > 0) {
            unsigned which = (unsigned)answer[0] << 8 | answer[1];
            if (count < 12 || which >= many)
                continue;
            bool good = !(answer[3] & 15) && (answer[6] || answer[7]);
            if (started && good) {
                done++;
                note(&latencies, now_ns() - asked[which]);
            }
            failed += !good;
            ask(fd, which);
            if (now_ns() - begun > warm + length)
                break;
        }
        now = now_ns();
        if (now - looked > 200000000) {
            looked = now;
            for (unsigned i = 0; i < many; i++)
                if (now - asked[i] > 1000000000) {
                    failed++;
                    ask(fd, i);
                }
        }
        if (!started && now - begun >= warm) {
            puts("go");
            fflush(stdout);
            started = now_ns();
        }
        if (started && now > started && now - started >= length)
            break;
    }
    printf("{\"count\": %llu, \"seconds\": %.6f, \"failures\": %llu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"opened\": %u, \"why\": \"%s\"}\n",
           (unsigned long long)done, (double)(now - started) / 1e9, (unsigned long long)failed, percentile_us(&latencies, 0.5),
           percentile_us(&latencies, 0.99), many, failed ? "queries without an answer, or with an error" : "");
    return 0;
}
