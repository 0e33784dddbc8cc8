// ackload http|redis PORT CONNECTIONS BYTES SECONDS PIDS [PATH [STREAMS]]
//
// CONNECTIONS connections with one append of BYTES in flight on each: the next is sent when the last is
// acknowledged. http: POST to PATH; when STREAMS > 1, PATH holds a %d, and connection i goes round the
// streams i, i + CONNECTIONS, i + 2 * CONNECTIONS, ... below STREAMS. redis: XADD to the key s. The first 0.3
// s (at most a quarter of SECONDS) warm up and are not counted. One JSON line out: appends per second, CPU of
// the processes PIDS (commas between) per append in us, and latencies in ms. A reply that is not a success
// is counted as an error.
#include "common.h"

enum { REQUESTS_MAX = 64, SAMPLES_MAX = 20000000 };
typedef struct {
  int fd, nreq, next, len; // len: bytes of an incomplete reply in buf
  uint64_t sent;
  char *req[REQUESTS_MAX];
  int reqlen[REQUESTS_MAX];
  char buf[4096];
} conn;

static uint32_t lat_us[SAMPLES_MAX];
static int by_value(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static void send_next(conn *c) {
  c->sent = now();
  send_all(c->fd, c->req[c->next], c->reqlen[c->next]);
  if (++c->next == c->nreq) c->next = 0;
}

static void add_request(conn *c, int http, const char *path, int size) {
  char head[700];
  int n = http ? snprintf(head, sizeof head,
                          "POST %s HTTP/1.1\r\nHost: l\r\nContent-Type: application/octet-stream\r\n"
                          "Content-Length: %d\r\n\r\n",
                          path, size)
               : snprintf(head, sizeof head, "*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\nb\r\n$%d\r\n",
                          size);
  char *r = malloc(n + size + 2);
  memcpy(r, head, n);
  memset(r + n, 'x', size);
  n += size;
  if (!http) {
    r[n++] = '\r';
    r[n++] = '\n';
  }
  c->req[c->nreq] = r;
  c->reqlen[c->nreq++] = n;
}

// 1: a success, 0: not complete, -1: a refusal.
static int reply(conn *c, int http) {
  c->buf[c->len] = 0;
  if (!http) { // $15\r\n1700000000000-0\r\n, or -ERR ...\r\n
    char *nl = memchr(c->buf, '\n', c->len);
    if (!nl) return 0;
    if (c->buf[0] != '$') return -1;
    return c->len >= nl + 1 - c->buf + atoi(c->buf + 1) + 2;
  }
  http_head h;
  int n = parse_head(c->buf, &h);
  if (!n) return 0;
  if (h.body < 0 ? !strstr(c->buf + n - 2, "\r\n0\r\n\r\n") : c->len < n + h.body) return 0;
  return h.status / 100 == 2 ? 1 : -1;
}

int main(int argc, char **argv) {
  if (argc < 7) return 2;
  int http = !strcmp(argv[1], "http"), port = atoi(argv[2]), C = atoi(argv[3]), size = atoi(argv[4]);
  double seconds = atof(argv[5]), warm = seconds / 4 < 0.3 ? seconds / 4 : 0.3;
  const char *pids = argv[6], *path = argc > 7 ? argv[7] : "/";
  int streams = argc > 8 ? atoi(argv[8]) : 1;
  int ep = epoll_create1(0);
  conn *cs = calloc(C, sizeof *cs);
  for (int i = 0; i < C; i++) {
    conn *c = &cs[i];
    c->fd = connect_to(port);
    for (int s = streams > 1 ? i % streams : 0; s < streams && c->nreq < REQUESTS_MAX; s += C) {
      char p[300];
      snprintf(p, sizeof p, path, s);
      add_request(c, http, p, size);
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
  }
  uint64_t begin = now() + (uint64_t)(warm * 1e9), end = begin + (uint64_t)(seconds * 1e9), from = 0,
           cpu0 = 0;
  long n = 0, errors = 0, nlat = 0;
  for (int i = 0; i < C; i++) send_next(&cs[i]);
  for (struct epoll_event ev[256];;) {
    int k = epoll_wait(ep, ev, 256, 5000);
    if (k == 0) {
      fprintf(stderr, "no reply for 5 s\n");
      return 1;
    }
    uint64_t t = now();
    if (!from && t >= begin) {
      from = t;
      n = nlat = 0;
      cpu0 = cpu_ns(pids);
    }
    if (t >= end) {
      uint64_t cpu = cpu_ns(pids) - cpu0;
      qsort(lat_us, nlat, sizeof *lat_us, by_value);
      printf(
          "{\"per_s\":%.0f,\"cpu_us\":%.2f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"appends\":%ld,\"errors\":%ld}\n",
          n / ((t - from) / 1e9), cpu / 1e3 / (n ? n : 1), nlat ? lat_us[nlat / 2] / 1e3 : 0,
          nlat ? lat_us[nlat * 99 / 100] / 1e3 : 0, n, errors);
      return 0;
    }
    for (int i = 0; i < k; i++) {
      conn *c = ev[i].data.ptr;
      ssize_t r = recv(c->fd, c->buf + c->len, sizeof c->buf - 1 - c->len, 0);
      if (r <= 0) {
        fprintf(stderr, "connection closed by server\n");
        return 1;
      }
      c->len += r;
      int ok = reply(c, http);
      if (!ok) {
        if (c->len >= (int)sizeof c->buf - 1) {
          fprintf(stderr, "reply too long\n");
          return 1;
        }
        continue;
      }
      if (ok < 0 && !errors++) fprintf(stderr, "refused: %.200s\n", c->buf);
      c->len = 0;
      if (ok > 0) {
        n++;
        if (from && nlat < SAMPLES_MAX) lat_us[nlat++] = (t - c->sent) / 1000;
      }
      send_next(c);
    }
  }
}
