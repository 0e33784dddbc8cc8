// getload small PORT PATH CONNECTIONS SECONDS PIDS   keep-alive GETs, one in flight per connection
// getload whole PORT PATH OFFSET PIDS              one connection reads a whole resource
//
// small: one JSON line with requests per second, server CPU per request in us, body bytes per reply,
// latencies in ms. whole: GET PATH (plus ?offset=OFFSET unless OFFSET is "-"), then, while a reply carries
// Stream-Next-Offset and not Stream-Up-To-Date: true, GET PATH?offset=<that>. A server may cut the resource
// into as many replies as it likes, chunked or not. One JSON line with body bytes, MB/s (10^6), requests, and
// server CPU in ms per MB.
#include "common.h"

enum { BUF = 1 << 20, SAMPLES_MAX = 20000000 };
static uint32_t lat_us[SAMPLES_MAX];
static int by_value(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

typedef struct {
  int fd, len;
  uint64_t sent;
  char buf[16384];
} conn;

static int small(int port, const char *path, int C, double seconds, const char *pids) {
  char req[700];
  int reqlen = snprintf(req, sizeof req, "GET %s HTTP/1.1\r\nHost: l\r\n\r\n", path), ep = epoll_create1(0);
  double warm = seconds / 4 < 0.3 ? seconds / 4 : 0.3;
  conn *cs = calloc(C, sizeof *cs);
  for (int i = 0; i < C; i++) {
    cs[i].fd = connect_to(port);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &cs[i]};
    epoll_ctl(ep, EPOLL_CTL_ADD, cs[i].fd, &e);
  }
  uint64_t begin = now() + (uint64_t)(warm * 1e9), end = begin + (uint64_t)(seconds * 1e9), from = 0,
           cpu0 = 0;
  long n = 0, errors = 0, body = 0;
  for (int i = 0; i < C; i++) {
    cs[i].sent = now();
    send_all(cs[i].fd, req, reqlen);
  }
  for (struct epoll_event ev[256];;) {
    int k = epoll_wait(ep, ev, 256, 5000);
    if (k == 0) {
      fprintf(stderr, "no reply for 5 s\n");
      return 1;
    }
    uint64_t t = now();
    if (!from && t >= begin) {
      from = t;
      n = 0;
      cpu0 = cpu_ns(pids);
    }
    if (t >= end) {
      uint64_t cpu = cpu_ns(pids) - cpu0;
      long nl = n < SAMPLES_MAX ? n : SAMPLES_MAX;
      qsort(lat_us, nl, sizeof *lat_us, by_value);
      printf("{\"per_s\":%.0f,\"cpu_us\":%.2f,\"body_bytes\":%ld,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"errors\":%"
             "ld}\n",
             n / ((t - from) / 1e9), cpu / 1e3 / (n ? n : 1), body, nl ? lat_us[nl / 2] / 1e3 : 0,
             nl ? lat_us[nl * 99 / 100] / 1e3 : 0, errors);
      return 0;
    }
    for (int i = 0; i < k; i++) {
      conn *c = ev[i].data.ptr;
      ssize_t r = recv(c->fd, c->buf + c->len, sizeof c->buf - 1 - c->len, 0);
      if (r <= 0) {
        fprintf(stderr, "connection closed by server\n");
        return 1;
      }
      c->buf[c->len += r] = 0;
      http_head h;
      int head = parse_head(c->buf, &h);
      if (!head) continue;
      if (h.body < 0) { // chunked: complete when the last chunk is in; bytes include the framing
        if (!strstr(c->buf + head - 2, "\r\n0\r\n\r\n")) continue;
        body = c->len - head;
      } else {
        if (head + h.body >= (long)sizeof c->buf) {
          fprintf(stderr, "reply too long\n");
          return 1;
        }
        if (c->len < head + h.body) continue;
        body = h.body;
      }
      if (h.status != 200 && !errors++) fprintf(stderr, "refused: %.200s\n", c->buf);
      c->len = 0;
      if (n < SAMPLES_MAX) lat_us[n] = (t - c->sent) / 1000;
      n++;
      c->sent = now();
      send_all(c->fd, req, reqlen);
    }
  }
}

static char buf[BUF + 1];
static int len, pos; // unread bytes are buf[pos..len)
static int fill(int fd) {
  if (pos) {
    memmove(buf, buf + pos, len - pos);
    len -= pos;
    pos = 0;
  }
  ssize_t r = recv(fd, buf + len, BUF - len, 0);
  if (r <= 0) {
    fprintf(stderr, "connection closed by server\n");
    exit(1);
  }
  buf[len += r] = 0;
  return r;
}
static void skip(int fd, long n) {
  while (n) {
    if (pos == len) {
      pos = len = 0;
      fill(fd);
    }
    long k = n < len - pos ? n : len - pos;
    pos += k;
    n -= k;
  }
}
static long chunks(int fd) {
  for (long sum = 0;;) {
    char *nl;
    while (!(nl = memmem(buf + pos, len - pos, "\r\n", 2))) fill(fd);
    long n = strtol(buf + pos, NULL, 16);
    pos = nl + 2 - buf;
    skip(fd, n + 2); // the chunk and its CRLF; of the last one, the empty line after no trailers
    if (!n) return sum;
    sum += n;
  }
}
static int header(const char *head, const char *name, char *out, int size) {
  char *f = strcasestr(head, name);
  if (!f) return 0;
  f += strlen(name);
  while (*f == ' ') f++;
  int n = strcspn(f, "\r");
  if (n >= size) return 0;
  memcpy(out, f, n);
  out[n] = 0;
  return 1;
}

static int whole(int port, const char *path, const char *first, const char *pids) {
  int fd = connect_to(port), follow = strcmp(first, "-");
  char req[1200], offset[400], flag[16];
  snprintf(offset, sizeof offset, "%s", first);
  long bytes = 0, requests = 0;
  uint64_t t0 = now(), cpu0 = cpu_ns(pids);
  for (int done = 0; !done;) {
    int n = follow ? snprintf(req, sizeof req, "GET %s?offset=%s HTTP/1.1\r\nHost: l\r\n\r\n", path, offset)
                   : snprintf(req, sizeof req, "GET %s HTTP/1.1\r\nHost: l\r\n\r\n", path);
    send_all(fd, req, n);
    requests++;
    http_head h;
    int head;
    pos = len = 0;
    do fill(fd);
    while (!(head = parse_head(buf, &h)));
    if (h.status != 200) {
      fprintf(stderr, "refused: %.200s\n", buf);
      return 1;
    }
    buf[head - 2] = 0;
    char next[400] = "";
    int more = header(buf, "\r\nstream-next-offset:", next, sizeof next);
    done = !follow || !more || !strcmp(next, offset) ||
           (header(buf, "\r\nstream-up-to-date:", flag, sizeof flag) && !strcasecmp(flag, "true"));
    snprintf(offset, sizeof offset, "%s", next);
    pos = head;
    if (h.body < 0)
      bytes += chunks(fd);
    else {
      skip(fd, h.body);
      bytes += h.body;
    }
  }
  double s = (now() - t0) / 1e9;
  printf("{\"bytes\":%ld,\"mb_s\":%.1f,\"requests\":%ld,\"seconds\":%.3f,\"cpu_ms_per_mb\":%.4f}\n", bytes,
         bytes / 1e6 / s, requests, s, (cpu_ns(pids) - cpu0) / 1e6 / (bytes / 1e6));
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 7 && !strcmp(argv[1], "small"))
    return small(atoi(argv[2]), argv[3], atoi(argv[4]), atof(argv[5]), argv[6]);
  if (argc == 6 && !strcmp(argv[1], "whole")) return whole(atoi(argv[2]), argv[3], argv[4], argv[5]);
  return 2;
}
