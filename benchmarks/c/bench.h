/* What the load generator and the origin share: time, options of the form name=value, sockets, the shape of a ClientHello. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint64_t now_ns(void);
void die(const char *what) __attribute__((noreturn));

/* The value of the option NAME=VALUE in argv, or OTHERWISE. */
const char *option(int argc, char **argv, const char *name, const char *otherwise);
double number(int argc, char **argv, const char *name, double otherwise);

/* A whole file; the caller frees it. */
char *read_file(const char *path, size_t *length);

void no_delay(int fd);
int watch(int epoll, int fd, uint32_t events, void *what);
void change(int epoll, int fd, uint32_t events, void *what);

/* Latencies in buckets that are 1/64 wide: every percentile is right to 1.6 %, whatever its size. */
enum { SUB = 64, BUCKETS = 64 * SUB };
struct histogram {
    uint64_t count, most;
    uint64_t bucket[BUCKETS];
};
void note(struct histogram *histogram, uint64_t ns);
double percentile_us(const struct histogram *histogram, double share);

#endif
