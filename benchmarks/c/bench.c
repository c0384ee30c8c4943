#define _GNU_SOURCE
#include "bench.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void die(const char *what) {
    perror(what);
    exit(2);
}

const char *option(int argc, char **argv, const char *name, const char *otherwise) {
    size_t length = strlen(name);
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=')
            return argv[i] + length + 1;
    return otherwise;
}

double number(int argc, char **argv, const char *name, double otherwise) {
    const char *text = option(argc, argv, name, NULL);
    return text ? atof(text) : otherwise;
}

char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file)
        die(path);
    char *data = malloc(1 << 20);
    if (!data)
        die("malloc");
    *length = fread(data, 1, 1 << 20, file);
    fclose(file);
    return data;
}

void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

int watch(int epoll, int fd, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

void change(int epoll, int fd, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

void note(struct histogram *histogram, uint64_t ns) {
    histogram->count++;
    if (ns > histogram->most)
        histogram->most = ns;
    int shift = 0;
    while ((ns >> shift) >= 2 * SUB)
        shift++;
    histogram->bucket[(size_t)shift * SUB + (ns >> shift)]++;
}

double percentile_us(const struct histogram *histogram, double share) {
    uint64_t left = (uint64_t)((double)histogram->count * share);
    for (int i = 0; i < BUCKETS; i++) {
        if (histogram->bucket[i] > left) {
            int shift = i < 2 * SUB ? 0 : i / SUB - 1;
            uint64_t low = (uint64_t)(i - shift * SUB) << shift;
            return ((double)low + (double)(1ull << shift) / 2) / 1e3;
        }
        left -= histogram->bucket[i];
    }
    return (double)histogram->most / 1e3;
}
