// Shared by the load generators: clock, connections, and what the kernel says a server has used.
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

__attribute__((unused)) static int connect_to(int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
  if (fd < 0 || connect(fd, (void *)&a, sizeof a)) {
    perror("connect");
    exit(1);
  }
  return fd;
}

__attribute__((unused)) static void send_all(int fd, const char *b, size_t n) {
  while (n) {
    ssize_t k = send(fd, b, n, MSG_NOSIGNAL);
    if (k < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {
        usleep(50);
        continue;
      }
      perror("send");
      exit(1);
    }
    b += k;
    n -= k;
  }
}

// CPU time in ns of every thread of a process, from schedstat (utime+stime only tick at 10 ms). Time that
// kernel threads spend on its behalf, such as flushing a disk, is not in it.
static uint64_t cpu_ns_of(int pid) {
  char path[600];
  uint64_t sum = 0;
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR *d = opendir(path);
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d));) {
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, e->d_name);
    FILE *f = fopen(path, "r");
    unsigned long long v;
    if (!f) continue;
    if (fscanf(f, "%llu", &v) == 1) sum += v;
    fclose(f);
  }
  closedir(d);
  return sum;
}

// The same of every process in a list "PID,PID".
static uint64_t cpu_ns(const char *pids) {
  uint64_t sum = 0;
  for (const char *p = pids; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
    sum += cpu_ns_of(atoi(p));
  return sum;
}

// One HTTP/1.1 response head at b (n bytes, NUL-terminated by the caller): its length, 0 when incomplete.
// Sets the status, and the body's length, which is -1 when the body is chunked.
typedef struct {
  int status;
  long body;
} http_head;
__attribute__((unused)) static int parse_head(char *b, http_head *h) {
  char *end = strstr(b, "\r\n\r\n");
  if (!end) return 0;
  if (strncmp(b, "HTTP/1.1 ", 9)) {
    fprintf(stderr, "not an HTTP/1.1 response: %.60s\n", b);
    exit(1);
  }
  char kept = end[2], *f;
  end[2] = 0;
  h->status = atoi(b + 9);
  h->body = 0;
  if ((f = strcasestr(b, "\r\ncontent-length:")))
    h->body = atol(f + 17);
  else if (strcasestr(b, "\r\ntransfer-encoding: chunked"))
    h->body = -1;
  end[2] = kept;
  return end + 4 - b;
}
#endif
